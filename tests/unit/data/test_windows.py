"""Tokens, windows, and which of them go together."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordPiece

from moe.data.windows import (
    TextTokenizer,
    Window,
    make_windows,
    text_room,
    token_budget,
    window_starts,
)
from moe.types import InputError


def ids(*numbers: int) -> np.ndarray:
    return np.array(numbers, dtype=np.int32)


# --- tokenizer --------------------------------------------------------------------------------


def test_encode_gives_ids_and_characters(word_tokenizer: TextTokenizer) -> None:
    (tokens, offsets), (none, no_offsets) = word_tokenizer.encode(["The abbot, in", ""])
    text = "The abbot, in"
    pieces = [text[start:end] for start, end in offsets]
    assert pieces == ["The", "abbot", ",", "i", "n"]  # no special tokens, unknown words in letters
    assert tokens.dtype == np.int32 and tokens.shape == (5,)
    assert none.shape == (0,) and no_offsets.shape == (0, 2)


def test_a_tokenizers_own_truncation_and_padding_are_dropped(word_tokenizer) -> None:
    raw = Tokenizer.from_str(word_tokenizer.to_json())
    raw.enable_truncation(3)
    raw.enable_padding(length=8)
    (tokens, _), = TextTokenizer(raw).encode(["the monks led the abbot"])
    assert len(tokens) == 5


def test_the_tokens_that_words_break_into(word_tokenizer: TextTokenizer) -> None:
    # Unknown words break into letters: 0, 0, and one token beyond the first of two letters.
    texts = ["the abbot in", "the abbot", ""]
    assert word_tokenizer.fragmentation(texts) == pytest.approx([1 / 6, 0.0, 0.0])


def test_json_round_trip(word_tokenizer: TextTokenizer) -> None:
    copy = TextTokenizer.from_json(word_tokenizer.to_json())
    assert copy.to_json() == word_tokenizer.to_json()
    assert (copy.pad_id, copy.cls_id, copy.sep_id) == (0, 2, 3)


def test_a_tokenizer_without_special_tokens_is_refused() -> None:
    raw = Tokenizer(WordPiece({"[PAD]": 0, "[UNK]": 1}, unk_token="[UNK]"))
    with pytest.raises(InputError, match=r"no \[CLS\], \[SEP\]: expected DistilBERT's"):
        TextTokenizer(raw)


def test_no_tokenizer_there(tmp_path) -> None:
    with pytest.raises(InputError, match=r"no tokenizer at .*expected a folder or"):
        TextTokenizer.from_pretrained(str(tmp_path / "missing"))


def test_a_folder_of_weights_alone_has_no_tokenizer(tmp_path) -> None:
    # transformers makes a tokenizer for it, to which every word is unknown.
    (tmp_path / "config.json").write_text('{"model_type": "distilbert", "vocab_size": 50}')
    with pytest.raises(InputError, match=r"\(it knows no word\): expected a folder or hub name"):
        TextTokenizer.from_pretrained(str(tmp_path))


# --- windows ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("num_text", "num_context", "max_length", "stride", "expected"), [
    (3, 10, 16, 4, [0]),             # 16 - 3 special - 3 = 10 tokens of room
    (3, 11, 16, 4, [0, 1]),          # the last window ends with the context
    (3, 20, 16, 4, [0, 6, 10]),      # steps of 10 - 4
    (3, 20, 16, 0, [0, 10]),
    (3, 20, 16, 9, [0, 5, 10]),      # neighbours share at most half of the room
    (50, 14, 16, 0, [0, 7]),         # the text is cut to (16 - 3) // 2 = 6, 7 are left
])
def test_window_starts(num_text, num_context, max_length, stride, expected) -> None:
    assert window_starts(num_text, num_context, max_length, stride) == expected


def test_text_room() -> None:
    assert text_room(0, 16) == 14
    assert text_room(1, 16) == 6


@pytest.mark.parametrize("seed", range(40))
def test_windows_cover_the_context_and_map_back(seed: int) -> None:
    random = np.random.default_rng(seed)
    max_length = int(random.integers(16, 40))
    stride = int(random.integers(0, max_length))
    text = np.arange(1000, 1000 + random.integers(1, 60), dtype=np.int32)
    context = np.arange(random.integers(1, 200), dtype=np.int32)  # the id is the position
    windows = make_windows(text, context, max_length=max_length, stride=stride)
    covered = set()
    for window in windows:
        assert len(window) <= max_length
        assert np.array_equal(window.text_ids, text[: len(window.text_ids)])
        # [CLS] text [SEP] context: what stands at a position, by `offset`, is that token.
        row = [-1, *window.text_ids, -1, *window.context_ids, -1]
        assert len(row) == len(window)
        for at in range(len(window.text_ids) + 2, len(row) - 1):
            assert context[at + window.offset] == row[at]
        covered |= set(window.context_ids.tolist())
    assert covered == set(context.tolist())
    assert len({len(window) for window in windows}) == 1
    room = max_length - 3 - len(windows[0].text_ids)
    assert len(windows) == 1 or len(windows[0].context_ids) == room
    for left, right in pairwise(windows):
        assert left.first < right.first
        assert left.first + room - right.first >= min(stride, room // 2)  # shared tokens


def test_windows_without_a_context() -> None:
    text = np.arange(30, dtype=np.int32)
    for context in (None, ids()):
        window, = make_windows(text, context, max_length=16, stride=4)
        assert window.context_ids is None
        assert window.text_ids.tolist() == list(range(14)) and len(window) == 16


@pytest.mark.parametrize(("span", "expected"), [
    ((20, 24), (6, 10)),             # [CLS] a b c [SEP] is 5 long: 20 - 19 + 5 and so on
    ((19, 19), (5, 5)),              # the first token of the piece
    ((25, 26), (11, 12)),            # and the last
    ((18, 20), (0, 0)),              # begins before it
    ((25, 27), (0, 0)),              # ends after it
    ((40, 41), (0, 0)),
    ((-1, -1), (0, 0)),              # no answer
])
def test_positions_of_an_answer(span: tuple[int, int], expected: tuple[int, int]) -> None:
    window = Window(text_ids=ids(1, 2, 3), context_ids=ids(*range(8)), first=19, span=span)
    assert window.positions == expected


def test_positions_without_a_context() -> None:
    assert Window(text_ids=ids(1), span=(0, 0)).positions == (0, 0)


def test_no_answer_in_a_piece_that_begins_the_context() -> None:
    window = Window(text_ids=ids(1), context_ids=ids(7, 8), first=0, span=(-1, -1))
    assert window.positions == (0, 0)


# --- token budget -----------------------------------------------------------------------------


@pytest.mark.parametrize(("lengths", "max_tokens", "max_padding", "expected"), [
    ([5, 10, 10], 20, 0.9, [[1, 2], [0]]),         # 3 * 10 are more than 20
    ([5, 10, 10], 30, 0.9, [[1, 2, 0]]),
    ([5, 10, 10], 30, 0.15, [[1, 2], [0]]),        # 5 of 30 would be padding
    ([5, 10, 10], 30, 0.17, [[1, 2, 0]]),
    ([5, 5, 4], 100, 0.0, [[0, 1], [2]]),
    ([50, 3], 20, 0.9, [[0], [1]]),                # too long for any group: alone
    ([], 20, 0.5, []),
])
def test_token_budget_by_hand(lengths, max_tokens, max_padding, expected) -> None:
    assert token_budget(lengths, max_tokens, max_padding) == expected


def test_token_budget_counts_rows() -> None:
    # 2 rows of 10 and 1 of 10 are 30 tokens; 3 rows of 8 beside them would make 6 * 10.
    assert token_budget([10, 8, 10], 30, 0.5, counts=[2, 3, 1]) == [[0, 2], [1]]
    assert token_budget([10, 8, 10], 60, 0.5, counts=[2, 3, 1]) == [[0, 2, 1]]
    # Padding 3 * 2 of 60.
    assert token_budget([10, 8, 10], 60, 0.09, counts=[2, 3, 1]) == [[0, 2], [1]]


@pytest.mark.parametrize("seed", range(30))
def test_token_budget_keeps_its_limits_and_wastes_no_room(seed: int) -> None:
    random = np.random.default_rng(seed)
    lengths = random.integers(1, 100, random.integers(1, 80)).tolist()
    counts = random.integers(1, 4, len(lengths)).tolist()
    max_tokens, max_padding = int(random.integers(100, 1000)), float(random.uniform(0, 0.5))
    groups = token_budget(lengths, max_tokens, max_padding, counts)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))

    def fits(group: list[int]) -> bool:
        processed = max(lengths[i] for i in group) * sum(counts[i] for i in group)
        real = sum(lengths[i] * counts[i] for i in group)
        return processed <= max_tokens and processed - real <= max_padding * processed + 1e-9

    assert all(len(group) == 1 or fits(group) for group in groups)
    for group, following in pairwise(groups):
        assert max(lengths[i] for i in following) <= min(lengths[i] for i in group)
        assert not fits([*group, following[0]])
