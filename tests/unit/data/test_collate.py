"""Windows as the tensors of a micro-batch."""

from __future__ import annotations

import numpy as np
import torch

from moe.data.collate import collate, collate_requests
from moe.data.windows import TextTokenizer, Window, make_windows


def ids(*numbers: int) -> np.ndarray:
    return np.array(numbers, dtype=np.int32)


def test_collate_by_hand(word_tokenizer: TextTokenizer) -> None:
    cls, sep, pad = word_tokenizer.cls_id, word_tokenizer.sep_id, word_tokenizer.pad_id
    windows = [
        Window(text_ids=ids(50, 51), task=0, label=3),
        Window(text_ids=ids(52), context_ids=ids(60, 61, 62), first=4, task=1, span=(5, 6)),
    ]
    batch = collate(windows, [0, 1], word_tokenizer, torch.tensor([7, 8]))
    assert batch.input_ids.tolist() == [
        [cls, 50, 51, sep, pad, pad, pad], [cls, 52, sep, 60, 61, 62, sep]]
    assert batch.attention_mask.int().tolist() == [[1, 1, 1, 1, 0, 0, 0], [1] * 7]
    assert batch.context_mask.int().tolist() == [[0] * 7, [0, 0, 0, 1, 1, 1, 0]]
    assert batch.request_ids.tolist() == [0, 1]
    assert batch.task_ids.tolist() == [0, 1]
    assert batch.labels.tolist() == [3, -1]
    assert batch.spans.tolist() == [[0, 0], [4, 5]]  # context tokens 5 and 6 of 4, 5, 6
    assert batch.step_rows_T.tolist() == [7, 8]
    assert batch.target_BT.tolist() == [[1, 0], [0, 1]]  # each row to its own task
    asked = collate(windows, [0, 1], word_tokenizer)
    assert (asked.step_rows_T, asked.target_BT) == (None, None)


def test_tags_begin_behind_cls(word_tokenizer: TextTokenizer) -> None:
    windows = [Window(text_ids=ids(50, 51, 52), tags=ids(2, -1, 0)),
               Window(text_ids=ids(52), context_ids=ids(60, 61), tags=ids(1)),
               Window(text_ids=ids(52))]
    batch = collate(windows, range(3), word_tokenizer)
    assert batch.tags.tolist() == [[-1, 2, -1, 0, -1, -1], [-1, 1, -1, -1, -1, -1], [-1] * 6]
    assert batch.tags.dtype == torch.int64
    assert batch.select(torch.tensor([1])).tags.tolist() == [[-1, 1, -1, -1, -1, -1]]
    assert batch.to("meta").tags.device.type == "meta"
    without = collate(windows[2:], [0], word_tokenizer)
    assert without.tags is None and without.select(torch.tensor([0])).tags is None


def test_targets_of_routing_rows(word_tokenizer: TextTokenizer) -> None:
    windows = [Window(text_ids=ids(5), task=1), Window(text_ids=ids(5), targets=(2,)),
               Window(text_ids=ids(5), targets=(2, 0)), Window(text_ids=ids(5), targets=(0, 1, 2))]
    batch = collate(windows, range(4), word_tokenizer, torch.tensor([0, 1, 0]))
    assert batch.task_ids.tolist() == [1, -1, -1, -1]
    third = 1 / 3  # equal shares, and no order among them
    expected = torch.tensor([[0, 1, 0], [0, 0, 1], [0.5, 0, 0.5], [third, third, third]])
    torch.testing.assert_close(batch.target_BT, expected)
    rows = batch.select(torch.tensor([2, 0]))
    assert rows.target_BT.tolist() == [[0.5, 0, 0.5], [0, 1, 0]]
    assert batch.to(torch.float64).target_BT.dtype == torch.float64


def test_padding_has_the_tokenizers_id(word_tokenizer: TextTokenizer) -> None:
    word_tokenizer.pad_id = 9
    batch = collate([Window(text_ids=ids(5)), Window(text_ids=ids(5, 6))], [0, 1], word_tokenizer)
    assert batch.input_ids[0, -1] == 9


def test_select_and_to(hand_batch) -> None:
    rows = hand_batch.select(torch.tensor([4, 0]))
    assert rows.input_ids[:, 1].tolist() == [40, 10]
    assert rows.labels.tolist() == [2, 1] and rows.task_ids.tolist() == [2, 0]
    assert rows.step_rows_T.tolist() == [2, 2, 2] and len(rows) == 2
    assert rows.target_BT is None
    assert hand_batch.to(torch.float64).spans.dtype == torch.float64


def test_collate_requests(word_tokenizer: TextTokenizer) -> None:
    long = make_windows(ids(50), np.arange(10, 40, dtype=np.int32), max_length=16, stride=0)
    short = make_windows(ids(51, 52), ids(60), max_length=16, stride=0)
    assert [window.first for window in long] == [0, 12, 18]  # 16 - 3 - 1 tokens of room
    requests = collate_requests([8, 3], [long, short], word_tokenizer)
    assert requests.rows == (8, 3)
    assert requests.batch.request_ids.tolist() == [0, 0, 0, 1]
    # The context begins at position 3 after one token of text, at 4 after two.
    assert requests.offsets == (-3, 12 - 3, 18 - 3, -4)
    assert requests.first_windows() == [0, 3]
    assert requests.to(torch.int32).batch.labels.dtype == torch.int32
