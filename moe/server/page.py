"""The page at `/`: one file, and a policy that lets nothing else run or load."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from pathlib import Path

from starlette.responses import HTMLResponse


def _hashes(html: str, tag: str) -> str:
    """CSP sources that admit exactly the inline elements of the page."""
    digests = [
        base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        for content in re.findall(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
    ]
    return " ".join(f"'sha256-{digest}'" for digest in digests)


def policy(html: str) -> str:
    """The Content-Security-Policy of the page: its own style and script, its own server."""
    return "; ".join(
        [
            "default-src 'none'",
            f"style-src {_hashes(html, 'style')}",
            f"script-src {_hashes(html, 'script')}",
            "connect-src 'self'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        ]
    )


@cache
def _page() -> str:
    return (Path(__file__).parent / "page.html").read_text(encoding="utf-8")


def page_response() -> HTMLResponse:
    """The page with its headers."""
    html = _page()
    headers = {"Content-Security-Policy": policy(html), "Referrer-Policy": "no-referrer"}
    return HTMLResponse(html, headers=headers)
