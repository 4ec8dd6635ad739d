"""The page: what it may load, and what a browser makes of it."""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest


def test_the_page_loads_nothing_from_elsewhere(here: Any) -> None:
    reply = here.client.get("/")
    html, policy = reply.body.decode(), reply.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    for tag in ("style", "script"):
        [content] = re.findall(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    assert "//" not in re.sub(r"^\s*//.*$|  // .*$", "", html, flags=re.M)
    assert "innerHTML" not in html and "style=" not in html


CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
@pytest.mark.parametrize(
    ("request_", "parts", "absent"),
    [
        ({"text": "nice"}, ["Who answers", "mood-0", "90.0 %", "80.0 %", "20.0 %"], ["<mark"]),
        # Characters that JavaScript counts twice, and markup that must stay text.
        (
            {"text": "who?", "context": "\U0001f33e <b>mill</b> of Ada Brook"},
            ["<mark>Ada</mark> Brook", "&lt;b&gt;mill&lt;/b&gt;", "70.0 %"],
            ["<b>mill"],
        ),
        (
            {"text": "\U0001f33e  to <b>Oslo</b>"},
            ["city: Oslo", "60.0 %", "to &lt;b&gt;<mark>Oslo</mark>&lt;/b&gt;"],
            ["<b>Oslo"],
        ),
        ({"text": "who?", "context": "nobody"}, ["The passage does not say"], ["<mark"]),
        ({"text": "code"}, ["None of my experts", "fits no task", "Who came nearest"], ["<mark"]),
        ({"text": "boom"}, ["Not answered", "the model failed"], ["Who answers"]),
    ],
    ids=["label", "span", "tags", "no answer", "abstained", "failure"],
)
def test_the_page_in_a_browser(
    here: Any, tmp_path: Path, request_: dict[str, str], parts: list[str], absent: list[str]
) -> None:
    link = f"http://127.0.0.1:{here.client.port}/#{urlencode(request_, quote_via=quote)}"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-proxy-server", "--no-first-run"]
    done = subprocess.run(
        [str(CHROMIUM), *flags, f"--user-data-dir={tmp_path}", "--virtual-time-budget=10000",
         "--dump-dom", link],
        capture_output=True, text=True, timeout=120,
    )
    result = done.stdout.partition('id="result"')[2].partition("<script>")[0]
    for part in parts:
        assert part in result
    for part in absent:
        assert part not in result
