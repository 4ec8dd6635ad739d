"""Text as the model reads it, and where its characters stood in the text that came."""

from __future__ import annotations

import re
import unicodedata

import numpy as np
from numpy.typing import NDArray

_BLANKS = re.compile(r"[\x00-\x1f\x7f-\x9f\s]+")  # category Cc and white space
_PIECES = re.compile(r"[^\x00-\x1f\x7f-\x9f\s]+")
_SURROGATES = re.compile("[\ud800-\udfff]")


def replace_surrogates(text: str) -> str:
    """Lone surrogates, which UTF-8 cannot hold, become U+FFFD; the length stays."""
    return _SURROGATES.sub("\ufffd", text)


def is_blank(text: str) -> bool:
    """Whether there is nothing but white space and control characters."""
    return not _BLANKS.sub("", text)


def normalise_text(text: str) -> str:
    """NFC; runs of white space and control characters become one space; stripped."""
    return _BLANKS.sub(" ", unicodedata.normalize("NFC", replace_surrogates(text))).strip()


def restore_offsets(text: str, offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    """Offsets [start, end) into `normalise_text(text)`, (n, 2), as offsets into `text`.

    Of a piece between blanks whose letters NFC changed, which is rare, the whole piece is taken.
    """
    starts: list[int] = []
    ends: list[int] = []
    for piece in _PIECES.finditer(replace_surrogates(text)):
        first, last = piece.span()
        normal = normalise_text(piece[0])
        same = normal == piece[0]
        starts += range(first, last) if same else [first] * len(normal)
        ends += range(first + 1, last + 1) if same else [last] * len(normal)
        starts.append(last)  # of the blank after it
        ends.append(last + 1)
    places = np.array([starts, ends], dtype=np.int64).reshape(2, -1)
    return np.stack([places[0, offsets[:, 0]], places[1, offsets[:, 1] - 1]], axis=1)


def shorten(value: object) -> str:
    """`repr(value)`, at most 80 characters long."""
    shown = repr(value[:81] if isinstance(value, str) else value)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."
