"""From text to windows: the tokenizer, pieces of long contexts, padding, sizes of micro-batches.

numpy and tokenizers alone, so that every backend shares it.

Dimensions: B windows of a micro-batch, L tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from moe.types import InputError

Ids = NDArray[np.int32]


@dataclass(frozen=True, kw_only=True)
class Words:
    """The words of a text: runs without a blank or punctuation, and each punctuation character.

    They are the pieces that the tokenizer never joins, so that they, like the token ids, do not
    depend on whether there is a blank before a comma.

    Attributes:
        starts_W: First token of each word.
        offsets_W2: Its characters [start, end).
    """

    starts_W: NDArray[np.int64]
    offsets_W2: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.starts_W)


def _no_tokenizer(name: str, why: str) -> InputError:
    return InputError(
        f"no tokenizer at {name!r} ({why}): expected a folder or hub name with a tokenizer.json"
    )


class TextTokenizer:
    """Token ids and character offsets of plain text, without special tokens or truncation."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        # Packaged tokenizers may carry a truncation and padding of their own.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        ids = {name: tokenizer.token_to_id(name) for name in ("[CLS]", "[SEP]", "[PAD]")}
        missing = [name for name, number in ids.items() if number is None]
        if missing:
            raise InputError(f"the tokenizer has no {', '.join(missing)}: expected DistilBERT's")
        self.cls_id = int(ids["[CLS]"] or 0)
        self.sep_id = int(ids["[SEP]"] or 0)
        self.pad_id = int(ids["[PAD]"] or 0)

    @classmethod
    def from_pretrained(cls, name: str) -> TextTokenizer:
        """The tokenizer of a local folder or hub name.

        Raises:
            InputError: There is none, or it is not a fast tokenizer.
        """
        # Here, so that windows can be cut without transformers and torch.
        from transformers import AutoTokenizer

        try:
            tokenizer: Tokenizer = AutoTokenizer.from_pretrained(name).backend_tokenizer
        except (OSError, ValueError, AttributeError) as error:
            raise _no_tokenizer(name, str(error).splitlines()[0]) from error
        # Of a folder without its files transformers makes one that knows no word.
        if tokenizer.get_vocab_size() == len(tokenizer.get_added_tokens_decoder()):
            raise _no_tokenizer(name, "it knows no word")
        return cls(tokenizer)

    @classmethod
    def from_json(cls, text: str) -> TextTokenizer:
        """The tokenizer that `to_json` described."""
        return cls(Tokenizer.from_str(text))

    def to_json(self) -> str:
        """The whole tokenizer, as in `tokenizer.json`."""
        text: str = self._tokenizer.to_str()
        return text

    def encode(self, texts: Sequence[str]) -> list[tuple[Ids, NDArray[np.int32]]]:
        """For each text its token ids (n,) and the character offsets (n, 2) of the tokens."""
        encodings = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [
            (np.array(e.ids, dtype=np.int32), np.array(e.offsets, dtype=np.int32).reshape(-1, 2))
            for e in encodings
        ]

    def fragmentation(self, texts: Sequence[str]) -> list[float]:
        """How finely the words of each text break: tokens beyond the first, a character.

        The mean over a text's words, 0 where each is one token. Misspelt and foreign words break
        into more and shorter tokens than others of their length.
        """
        encodings = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [_fragmentation(e.word_ids, e.offsets) for e in encodings]

    def words(self, text: str) -> Words:
        """The words of a text, with their tokens as `encode` numbers them."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        starts = np.flatnonzero(np.diff(np.array(encoding.word_ids, dtype=np.int64), prepend=-1))
        offsets = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
        ends = np.append(starts, len(offsets))[1:] - 1
        offsets_W2 = np.stack([offsets[starts, 0], offsets[ends, 1]], axis=1)
        return Words(starts_W=starts, offsets_W2=offsets_W2)


def _fragmentation(word_ids: Sequence[int | None], offsets: Sequence[tuple[int, int]]) -> float:
    if not offsets:
        return 0.0
    words = np.array(word_ids, dtype=np.int64)
    _, word_of_token, tokens_W = np.unique(words, return_inverse=True, return_counts=True)
    characters_W = np.bincount(word_of_token, weights=[end - start for start, end in offsets])
    return float(np.mean((tokens_W - 1) / np.maximum(characters_W, 1)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """`[CLS] text [SEP]`, or `[CLS] text [SEP] piece of the context [SEP]`.

    Attributes:
        text_ids: Tokens of the text, already cut to fit.
        context_ids: Tokens of the piece, or None without a context.
        first: Index of the piece's first token in the whole context.
        task: Number of the row's task, -1 if unknown.
        label: Class of the row, -1 if there is none.
        span: First and last context token of the answer, counted in the whole context; (-1, -1)
            if there is none.
        tags: Class of the word that begins at each token of the text, -1 at the others; None
            without tags.
        targets: Numbers of the tasks that the gate should send a routing row to; empty for every
            other row.
        answered: Those of them whose answer is in `label` or `span`.
    """

    text_ids: Ids
    context_ids: Ids | None = None
    first: int = 0
    task: int = -1
    label: int = -1
    span: tuple[int, int] = (-1, -1)
    tags: Ids | None = None
    targets: tuple[int, ...] = ()
    answered: tuple[int, ...] = ()

    def __len__(self) -> int:
        """Tokens, special ones included."""
        return len(self.text_ids) + (2 if self.context_ids is None else len(self.context_ids) + 3)

    @property
    def offset(self) -> int:
        """Add it to a position in the window to get the token's index in the whole context."""
        return self.first - len(self.text_ids) - 2

    @property
    def positions(self) -> tuple[int, int]:
        """The answer's first and last position in the window, (0, 0) if it is not inside."""
        start, end = self.span
        length = 0 if self.context_ids is None else len(self.context_ids)
        if start < self.first or end >= self.first + length or start < 0:
            return 0, 0
        return start - self.offset, end - self.offset


def text_room(num_context: int, max_length: int) -> int:
    """Most tokens of a text: all of the window without a context, half of it with one."""
    return max_length - 2 if num_context == 0 else (max_length - 3) // 2


def window_starts(num_text: int, num_context: int, max_length: int, stride: int) -> list[int]:
    """First context token of each window.

    Args:
        num_text: Tokens of the text, before it is cut.
        num_context: Tokens of the whole context.
        max_length: Tokens of a window, special ones included.
        stride: Context tokens shared by neighbours; at most half of a window's room is.
    """
    room = max_length - 3 - min(num_text, text_room(num_context, max_length))
    if num_context <= room:
        return [0]
    step = max(room - stride, room // 2, 1)
    # The last window ends with the context, so that all of them are equally long.
    return [*range(0, num_context - room, step), num_context - room]


def make_windows(
    text_ids: Ids, context_ids: Ids | None, *, max_length: int, stride: int
) -> list[Window]:
    """The windows of one request, left to right; one if there is no context or it is short."""
    if context_ids is None or len(context_ids) == 0:
        return [Window(text_ids=text_ids[: text_room(0, max_length)])]
    starts = window_starts(len(text_ids), len(context_ids), max_length, stride)
    text_ids = text_ids[: text_room(len(context_ids), max_length)]
    room = max_length - 3 - len(text_ids)
    return [
        Window(text_ids=text_ids, context_ids=context_ids[s : s + room], first=s) for s in starts
    ]


@dataclass(frozen=True, kw_only=True)
class PaddedWindows:
    """Windows as arrays of one length.

    Attributes:
        input_ids: (B, L) int64, the id of [PAD] at padding.
        attention_mask: (B, L) bool, True at tokens.
        context_mask: (B, L) bool, True at tokens of the context.
    """

    input_ids: NDArray[np.int64]
    attention_mask: NDArray[np.bool_]
    context_mask: NDArray[np.bool_]


def pad_windows(windows: Sequence[Window], tokenizer: TextTokenizer) -> PaddedWindows:
    """The windows with their special tokens, filled up to the longest.

    Args:
        windows: B windows.
        tokenizer: For the ids of the special tokens.
    """
    shape = len(windows), max(map(len, windows))
    input_ids = np.full(shape, tokenizer.pad_id, dtype=np.int64)
    attention_mask = np.zeros(shape, dtype=bool)
    context_mask = np.zeros(shape, dtype=bool)
    for row, window in enumerate(windows):
        end = 1 + len(window.text_ids)
        input_ids[row, 0] = tokenizer.cls_id
        input_ids[row, 1:end] = window.text_ids
        input_ids[row, end] = tokenizer.sep_id
        if window.context_ids is not None:
            last = end + 1 + len(window.context_ids)
            input_ids[row, end + 1 : last] = window.context_ids
            input_ids[row, last] = tokenizer.sep_id
            context_mask[row, end + 1 : last] = True
        attention_mask[row, : len(window)] = True
    return PaddedWindows(
        input_ids=input_ids, attention_mask=attention_mask, context_mask=context_mask
    )


def token_budget(
    lengths: Sequence[int],
    max_tokens: int,
    max_padding: float,
    counts: Sequence[int] | None = None,
) -> list[list[int]]:
    """Groups of indices, longest first, within a token and a padding limit.

    Args:
        lengths: Tokens of each item.
        max_tokens: Most tokens of a group, padding included; a longer item is alone.
        max_padding: Most padding of a group as a share of its tokens.
        counts: Rows of each item, 1 if not given.
    """
    counts = [1] * len(lengths) if counts is None else counts
    groups: list[list[int]] = []
    longest = rows = real = 0
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length, count = lengths[index], counts[index]
        processed = longest * (rows + count)
        full = processed > max_tokens or real + length * count < (1 - max_padding) * processed
        if not groups or full:
            groups.append([])
            longest, rows, real = length, 0, 0
        groups[-1].append(index)
        rows += count
        real += length * count
    return groups
