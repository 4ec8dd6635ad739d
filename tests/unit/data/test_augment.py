"""Noise: the same for the same text, small, and never nothing."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from moe.data import augment
from moe.data.augment import add_noise

TEXTS = [f"Who led the monks of abbey number {i}, in the year {1200 + i}?" for i in range(300)]


def letters(text: str) -> Counter[str]:
    return Counter(c for c in text.lower() if c.isalpha())


def test_the_same_text_gets_the_same_noise() -> None:
    first = [add_noise(text) for text in TEXTS]
    random.seed(1)  # the global state has no part in it
    assert [add_noise(text) for text in TEXTS] == first


def test_noise_is_small() -> None:
    for text in TEXTS:
        noised = add_noise(text)
        lost = letters(text) - letters(noised)
        assert sum(lost.values()) <= 1          # a letter is dropped at most once
        assert not letters(noised) - letters(text)
        assert abs(len(noised) - len(text)) <= 4


def test_every_kind_of_noise_is_met() -> None:
    noised = {text: add_noise(text) for text in TEXTS}
    kinds = {
        "upper": sum(n.isupper() for n in noised.values()),
        "lower": sum(n.islower() for n in noised.values()),
        "no punctuation": sum("," not in n for n in noised.values()),
        "other end": sum(n.endswith((".", "!")) or (n[-1].isdigit() and "," in n)
                         for n in noised.values()),
        "fewer letters": sum(letters(n) != letters(t) for t, n in noised.items()),
        "other order": sum(letters(n) == letters(t) and
                           [c for c in n.lower() if c.isalpha()]
                           != [c for c in t.lower() if c.isalpha()] for t, n in noised.items()),
    }
    assert any(n.isupper() and "," not in n for n in noised.values())  # two at once
    # Each of six kinds is one of 1, 1 or 2 draws: 4 / 18 of 300 is 67.
    assert all(30 < count < 130 for count in kinds.values()), kinds


@pytest.mark.parametrize("text", ["a", "?", "...", "ab", "ß", "42", " x ", "é!"])
def test_short_texts_stay_texts(text: str) -> None:
    for kind in augment._CHANGES:
        for seed in range(10):
            assert kind(text, random.Random(seed)).strip()
    assert add_noise(text).strip()


def test_changes_by_hand() -> None:
    chance = random.Random(0)
    assert augment._swap_letters("ab 1", chance) == "ba 1"
    assert augment._swap_letters("a 1b", chance) == "a 1b"        # no two letters are neighbours
    assert augment._drop_letter("ab 1", chance) == "a 1"          # never the first of a word
    assert augment._drop_letter("a 1b", chance) == "a 1b"
    assert augment._strip_punctuation("it's (so) good!", chance) == "its so good"
    assert augment._strip_punctuation("?!", chance) == "?!"
    assert {augment._change_end("go. !", chance) for _ in range(100)} == {
        "go", "go?", "go!", "go.", "go...", "go!!"}
    assert augment._change_end("?!", chance) == "?!"
