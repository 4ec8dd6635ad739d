"""Where the characters of a normalised text stood in the text that came."""

from __future__ import annotations

import re

import numpy as np
import pytest

from moe.data.text import is_blank, normalise_text, restore_offsets


@pytest.mark.parametrize("text", [
    "fly to Oslo", "  fly \n\n to\t\tOslo  ", "a\u2028b c", "x\x00y z", "\U0001f33e Oslo , ok",
    "caf\u00e9 \ud800 ok",
])
def test_words_are_found_again(text: str) -> None:
    normal = normalise_text(text)
    spans = [match.span() for match in re.finditer(r"\S+", normal)]
    places = restore_offsets(text, np.array(spans))
    found = [text[a:b].replace("\ud800", "\ufffd") for a, b in places]
    assert found == [normal[a:b] for a, b in spans]


def test_parts_of_words_and_several_words() -> None:
    #       0123456789
    text = "  ab   cde"  # normalised "ab cde"
    places = restore_offsets(text, np.array([[0, 1], [1, 2], [4, 6], [0, 6]]))
    assert places.tolist() == [[2, 3], [3, 4], [8, 10], [2, 10]]


def test_of_a_word_that_was_composed_the_whole_is_taken() -> None:
    text = "x cafe\u0301s y"  # e and an accent of its own: five letters in six characters
    assert normalise_text(text) == "x caf\u00e9s y"
    places = restore_offsets(text, np.array([[2, 7], [3, 4], [8, 9]]))
    assert places.tolist() == [[2, 8], [2, 8], [9, 10]]


def test_without_spans() -> None:
    assert restore_offsets("", np.zeros((0, 2), dtype=np.int64)).shape == (0, 2)


@pytest.mark.parametrize(("text", "expected"), [(" \n\x00", True), ("", True), (" a ", False)])
def test_blank(text: str, expected: bool) -> None:
    assert is_blank(text) is expected
