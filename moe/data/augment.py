"""Noise in case, punctuation and spelling, so that the gate reads words and not typography."""

from __future__ import annotations

import random
import string
from collections.abc import Callable, Mapping

_END = ".!?"


def _swap_letters(text: str, chance: random.Random) -> str:
    places = [i for i in range(len(text) - 1) if text[i : i + 2].isalpha()]
    if not places:
        return text
    i = chance.choice(places)
    return text[:i] + text[i + 1] + text[i] + text[i + 2 :]


def _drop_letter(text: str, chance: random.Random) -> str:
    places = [i for i in range(1, len(text)) if text[i - 1 : i + 1].isalpha()]
    if not places:
        return text
    i = chance.choice(places)
    return text[:i] + text[i + 1 :]


def _strip_punctuation(text: str, chance: random.Random) -> str:
    kept = "".join(c for c in text if c not in string.punctuation)
    return kept if kept.strip() else text


def _change_end(text: str, chance: random.Random) -> str:
    bare = text.rstrip(_END + " ")
    return (bare + chance.choice(["", "?", "!", ".", "...", "!!"])) if bare else text


_CHANGES = (
    lambda text, chance: text.upper(),
    lambda text, chance: text.lower(),
    _strip_punctuation,
    _change_end,
    _swap_letters,
    _drop_letter,
)


def add_noise(text: str) -> str:
    """One or two changes of `text`, always the same ones for the same text; never empty."""
    chance = random.Random(text)
    for change in chance.sample(_CHANGES, chance.choice([1, 1, 2])):
        text = change(text, chance)
    return text


def misspell(text: str, every: int = 5) -> str:
    """A typo, always the same for the same text, in the first of every `every` words."""
    chance = random.Random(text)
    words = text.split(" ")
    for place in range(0, len(words), every):
        words[place] = chance.choice([_swap_letters, _drop_letter])(words[place], chance)
    return " ".join(words)


# What people do to a text that changes nothing of what they want.
PERTURBATIONS: Mapping[str, Callable[[str], str]] = {
    "lower": str.lower,
    "no_punctuation": lambda text: _strip_punctuation(text, random.Random(0)),
    "typos": misspell,
    "upper": str.upper,
}
