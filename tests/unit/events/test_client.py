"""What `scripts/publish.py` makes of lines."""

from __future__ import annotations

import hashlib

from moe.events.client import _header, keyed


def test_a_line_is_known_by_the_id_in_it_or_by_itself() -> None:
    lines = [b'{"id": "7", "text": "a"}\n', b"\n", b'{"id": 7}', b'"a text"\n', b"{broken"]
    own = [hashlib.sha256(body).hexdigest() for body in (b'{"id": 7}', b'"a text"', b"{broken")]
    assert list(keyed(lines)) == [
        ("7", b'{"id": "7", "text": "a"}'), (own[0], b'{"id": 7}'), (own[1], b'"a text"'),
        (own[2], b"{broken"),
    ]


def test_a_header_holds_no_line_break() -> None:
    assert _header("7 a") == "7 a"
    assert _header("7\r\nNats-Rollup: all") == hashlib.sha256(b"7\r\nNats-Rollup: all").hexdigest()
    assert _header("ä").isalnum() and _header("ä").isascii()
