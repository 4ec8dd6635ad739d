"""What is collected of routing rows and of task rows, beside the answers themselves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from moe.checkpoint import Bundle
from moe.collect import Answers, collect, embed, join
from moe.data.formats import Example
from moe.data.module import RequestDataset
from moe.data.routing import RoutingRow, RoutingTable
from moe.data.tables import build_table
from moe.encoder import encode, pool

TASKS = ("sentiment", "qa", "intent")
PASSAGE = "an abbot led the monks " * 8  # 40 tokens, where 32 - 3 - 2 fit


def row(text: str, *tasks: str, context: str | None = None) -> RoutingRow:
    return RoutingRow(text=text, context=context, tasks=tasks)


ROWS = [
    row("good film", "sentiment"),
    row("who led", "qa", context=PASSAGE),
    row("very very", context="the film"),
    row("who was bad", "qa", "sentiment", context="the monks"),
    row("the abbot", "intent"),
]


@pytest.fixture
def bundle(word_bundle: Callable[..., Bundle]) -> Bundle:
    """The gate prefers sentiment to qa, and both to intent, whatever it reads."""
    made = word_bundle(kind="linear", temperature=1.0, multi_task_threshold=0.01)
    with torch.no_grad():
        made.model.gate.scores.weight.zero_()
        made.model.gate.scores.bias.copy_(torch.tensor([2.0, 2.0, 1.0, 0.0, 0.0, 0.0, 0.0]))
    return made


def collected(bundle: Bundle, table: Any) -> list[Answers]:
    dataset = RequestDataset(table, bundle.tokenizer, bundle.config.data)
    return [collect(bundle.model, table, dataset[i]) for i in range(len(dataset))]


def routing_table(bundle: Bundle) -> RoutingTable:
    return RoutingTable(ROWS, TASKS, bundle.tokenizer)


def test_routing_rows_reach_the_gate_and_no_expert(bundle: Bundle) -> None:
    ran = []
    for expert in bundle.model.experts.values():
        expert.register_forward_hook(lambda *_: ran.append(1))
    said = join(collected(bundle, routing_table(bundle)))
    assert ran == []
    assert said.said == ()
    assert said.row_N.tolist() == [0, 1, 2, 3, 4]
    # A row with a passage can go anywhere, the others not to qa.
    assert said.allowed_NT.tolist() == [
        [True, False, True], [True] * 3, [True] * 3, [True] * 3, [True, False, True]]
    weights = np.exp([2.0, 2, 1, 0, 0, 0, 0])
    weights /= weights.sum()
    mass = [weights[:2].sum(), weights[2], weights[3:].sum()]
    np.testing.assert_allclose(said.mass_NT, [mass] * 5, atol=1e-6)
    np.testing.assert_allclose(said.probabilities_NE, [weights] * 5, atol=1e-6)


def test_a_routing_row_is_routed_where_the_first_choice_is_one_of_its_tasks(
    bundle: Bundle,
) -> None:
    # The first choice is sentiment; with a threshold of 0.01 all others are chosen too, but
    # second. The row without a task is routed nowhere.
    said = join(collected(bundle, routing_table(bundle)))
    assert said.routed_N.tolist() == [True, False, False, True, False]
    assert said.chosen_NE.sum(1).tolist() == [1] * 5
    assert said.chosen_NE[:, :2].any(1).all()


def test_a_task_is_not_chosen_where_it_cannot_answer(bundle: Bundle) -> None:
    with torch.no_grad():
        bundle.model.gate.scores.bias[2] = 9.0
    said = join(collected(bundle, routing_table(bundle)))
    assert said.routed_N.tolist() == [True, True, False, True, False]  # qa, where it can


def test_embeddings_are_means_over_the_windows(bundle: Bundle) -> None:
    table = routing_table(bundle)
    said = join(collected(bundle, table))
    assert said.pooled_ND.dtype == np.float32
    dataset = RequestDataset(table, bundle.tokenizer, bundle.config.data)
    counted = 0
    for requests in (dataset[i] for i in range(len(dataset))):
        batch = requests.batch
        with torch.no_grad():
            hidden = encode(bundle.model.encoder, batch.input_ids, batch.attention_mask)
        pooled = pool(hidden, batch.attention_mask, batch.context_mask, "both").numpy()
        for number, row_number in enumerate(requests.rows):
            mine = batch.request_ids.numpy() == number
            expected = pooled[mine].mean(0)
            np.testing.assert_allclose(said.pooled_ND[row_number], expected, atol=1e-5)
            counted += int(mine.sum())
    assert counted > len(ROWS)  # one row has several windows


def test_embed_reads_the_same_and_runs_no_expert(bundle: Bundle) -> None:
    table = routing_table(bundle)
    dataset = RequestDataset(table, bundle.tokenizer, bundle.config.data)
    ran = []
    for expert in bundle.model.experts.values():
        expert.register_forward_hook(lambda *_: ran.append(1))
    for number, said in enumerate(collected(bundle, table)):
        assert np.array_equal(embed(bundle.model, dataset[number]), said.pooled_ND)
    assert ran == []


def test_rows_of_a_task(bundle: Bundle, tmp_path: Path) -> None:
    examples = [Example(text="good film", label="good"), Example(text="bad", label="bad")]
    table = build_table(examples, bundle.model.tasks[0], 0, bundle.tokenizer, tmp_path / "cache")
    said = join(collected(bundle, table))
    assert [one.logits[0].shape for one in said.said] == [(2,), (2,)]
    assert said.routed_N.tolist() == [True, True]
    assert said.allowed_NT.tolist() == [[True, False, True]] * 2
    with torch.no_grad():
        bundle.model.gate.scores.bias[3] = 9.0  # first is intent, sentiment only second
    said = join(collected(bundle, table))
    assert said.routed_N.tolist() == [False, False]
    assert said.chosen_NE.nonzero()[1].tolist() == [3, 3]


def answers(row_N: list[int], **changes: Any) -> Answers:
    count = len(row_N)
    values = {
        "row_N": np.array(row_N), "pooled_ND": np.array([[n, -n] for n in row_N], np.float32),
        "allowed_NT": np.array([[n % 2 == 0, True] for n in row_N]),
        "mass_NT": np.full((count, 2), 0.5), "probabilities_NE": np.full((count, 2), 0.5),
        "routed_N": np.ones(count, dtype=bool), "chosen_NE": np.ones((count, 2), dtype=bool),
    }
    return Answers(**{**values, **changes})


def test_join_sorts_what_the_gate_read() -> None:
    said = join([answers([3, 0]), answers([2]), answers([1, 4])])
    assert said.row_N.tolist() == [0, 1, 2, 3, 4]
    assert said.pooled_ND.tolist() == [[n, -n] for n in range(5)]
    assert said.allowed_NT[:, 0].tolist() == [True, False, True, False, True]


@pytest.mark.parametrize(("mass", "allowed", "expected"), [
    ([0.5, 0.2, 0.3], [True, True, True], 0.3),
    ([0.5, 0.2, 0.3], [True, True, False], 0.2),
    ([0.5, 0.2, 0.3], [False, True, True], 0.2),   # the first choice is what can answer
    ([0.5, 0.2, 0.3], [False, True, False], 0.0),  # and nothing is second to the only one
    ([0.4, 0.4, 0.2], [True, True, True], 0.4),
    ([1.0], [True], 0.0),
])
def test_second_mass(mass: list[float], allowed: list[bool], expected: float) -> None:
    said = answers([0], mass_NT=np.array([mass]), allowed_NT=np.array([allowed]))
    assert said.second_N.tolist() == [expected]
