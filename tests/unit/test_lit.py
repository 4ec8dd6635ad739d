"""Routing rows in training: gradients, what they count for, and what validation fits on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from moe.abstain import fit_reference
from moe.calibration import fit_second_task
from moe.checkpoint import Bundle
from moe.config import DataConfig, ExperimentConfig, TaskConfig
from moe.data.formats import Answer, Example
from moe.data.module import RequestDataset, Step
from moe.data.routing import RoutingRow, RoutingTable
from moe.data.tables import TaskTable, build_table
from moe.lit import LitMixture
from moe.losses import GateSums, routing_loss, z_loss
from moe.model_config import LossConfig, ModelConfig
from moe.types import Batch

TASKS = ("sentiment", "qa", "intent")
CONTEXT = "an abbot led the monks"


def lit_of(
    model: Any, loss: LossConfig | None = None, data: DataConfig | None = None, **options: Any
) -> LitMixture:
    """The last task weighs three times as much: a row with the number -1 must not."""
    tasks = {t.name: TaskConfig(type=t.type, train="t", experts=t.num_experts,
                                out_of_scope=t.out_of_scope, weight=1.0 + 2 * (t.name == "intent"))
             for t in model.tasks}
    config = ExperimentConfig(tasks=tasks, model=ModelConfig(loss=loss or LossConfig()),
                              data=data or DataConfig())
    return LitMixture(model=model, config=config, total_steps=1, identity={},
                      **{"validation": (), **options})


def with_routing_rows(batch: Batch) -> Batch:
    """The six rows of `hand_batch`, then two that say where they belong: both of two, and one."""
    rows = batch.select(torch.tensor([0, 1, 2, 3, 4, 5, 0, 4]))
    unknown = torch.tensor([-1, -1])
    own_BT = torch.nn.functional.one_hot(batch.task_ids, 3).float()
    return replace(
        rows, request_ids=torch.tensor([0, 1, 2, 2, 3, 4, 5, 6]),
        task_ids=torch.cat([batch.task_ids, unknown]), labels=torch.cat([batch.labels, unknown]),
        spans=torch.cat([batch.spans, torch.zeros(2, 2, dtype=torch.long)]),
        target_BT=torch.cat([own_BT, torch.tensor([[0.5, 0.0, 0.5], [0.0, 1.0, 0.0]])]),
    )


def part(batch: Batch, rows: slice) -> Batch:
    """Rows as a micro-batch of its own, its requests numbered from 0."""
    picked = batch.select(torch.arange(len(batch))[rows])
    return replace(picked, request_ids=picked.request_ids - picked.request_ids.min())


def micro_batch(lit: LitMixture, batch: Batch) -> tuple:
    """Loss, sums and terms of a micro-batch that is encoded alone."""
    return lit.step_loss.micro_batch(lit.model, batch, lit.model.forward_together([batch])[0])


def gradients(lit: LitMixture, *groups: list[Batch]) -> dict[str, Tensor]:
    """Of a step of these groups of micro-batches, each encoded together."""
    lit.model.zero_grad(set_to_none=True)
    sums: GateSums | None = None
    with torch.autograd.set_detect_anomaly(True):
        for group in groups:
            loss = lit.step_loss(lit.model, group, group[0].step_rows_T, sums, [])
            sums = loss.sums
            (loss.rows + loss.balance).backward()
    return {n: p.grad.clone() for n, p in lit.model.named_parameters() if p.grad is not None}


def close(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    assert set(one) == set(other)
    return all(torch.allclose(one[n], other[n], atol=1e-5, rtol=1e-4) for n in one)


# --- training ---------------------------------------------------------------------------------


@pytest.mark.parametrize("max_tokens", [16, 40, 10_000])
def test_a_step_is_the_same_however_its_micro_batches_are_grouped(
    tiny_model, hand_batch: Batch, monkeypatch: pytest.MonkeyPatch, max_tokens: int
) -> None:
    data = DataConfig(max_length=16, stride=2, max_tokens=max_tokens)
    lit = lit_of(tiny_model().train(), LossConfig(switch=0.0, prior=0.0), data=data)
    batch = with_routing_rows(hand_batch)
    parts = [part(batch, slice(0, 2)), part(batch, slice(2, 4)), part(batch, slice(4, 8))]
    expected = gradients(lit, *([one] for one in parts))
    optimizer = torch.optim.SGD(lit.model.parameters(), lr=0.0)
    monkeypatch.setattr(lit, "optimizers", lambda: optimizer)
    monkeypatch.setattr(lit, "lr_schedulers", lambda: SimpleNamespace(step=lambda: None))
    monkeypatch.setattr(lit, "manual_backward", lambda loss: loss.backward())
    monkeypatch.setattr(lit, "_trainer", SimpleNamespace(global_step=1, log_every_n_steps=10))
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_: torch.tensor(1.0))
    lit.training_step(Step(position=0, micro_batches=tuple(parts)), 0)
    found = {n: p.grad for n, p in lit.model.named_parameters() if p.grad is not None}
    assert close(found, expected)


def test_a_step_that_is_encoded_at_once_is_balanced_as_a_whole(
    tiny_model, hand_batch: Batch
) -> None:
    lit = lit_of(tiny_model().train(), LossConfig(switch=2.0, prior=1.0))
    batch = with_routing_rows(hand_batch)
    parts = [part(batch, slice(0, 2)), part(batch, slice(2, 4)), part(batch, slice(4, 8))]
    whole = gradients(lit, [batch])
    assert close(gradients(lit, parts), whole)
    # Group by group the first knows nothing of the others.
    assert not close(gradients(lit, *([one] for one in parts)), whole)


def test_routing_rows_add_their_routing_loss_and_nothing_else(
    tiny_model, hand_batch: Batch
) -> None:
    weights = LossConfig(routing=0.7, z=0.01, switch=0.05, prior=0.02)
    lit = lit_of(tiny_model().train(), weights)
    batch = with_routing_rows(hand_batch)
    loss, sums, logged = micro_batch(lit, batch)
    plain, plain_sums, plain_logged = micro_batch(lit, part(batch, slice(6)))
    assert sums.rows_T.tolist() == plain_sums.rows_T.tolist() == [2.0, 2.0, 2.0]
    for name in ("chosen_E", "shares_E", "mass_T"):
        torch.testing.assert_close(getattr(sums, name), getattr(plain_sums, name))
    routed = part(batch, slice(6, 8))
    logits = lit.model(routed, tasks_BT=lit.model.own_tasks(routed)).routing.logits_BE
    matrix = lit.model.task_experts_TE
    routing, z = routing_loss(logits, routed.target_BT, matrix).sum(), z_loss(logits).sum()
    # Over the 2 + 2 + 2 rows of the step's tasks.
    torch.testing.assert_close(loss, plain + (0.7 * routing + 0.01 * z) / 6)
    for name in ("answer_T", "routing_T", "z"):
        torch.testing.assert_close(logged[name], plain_logged[name])
    torch.testing.assert_close(logged["routing_rows"], routing.detach())
    assert (logged["num_routing_rows"], plain_logged["num_routing_rows"]) == (2, 0)


def test_a_step_with_routing_rows_has_finite_gradients(tiny_model, hand_batch: Batch) -> None:
    lit = lit_of(tiny_model().train(), LossConfig(z=0.01, prior=0.02))
    batch = with_routing_rows(hand_batch)
    together = gradients(lit, [batch])
    assert all(gradient.isfinite().all() for gradient in together.values())
    assert together["gate.scores.prototypes"].abs().max() > 0
    # However the step is cut: also where a micro-batch, the first one too, has no row of a task.
    known, routed = part(batch, slice(6)), part(batch, slice(6, 8))
    assert close(gradients(lit, [known], [routed]), together)
    assert close(gradients(lit, [routed], [known]), together)


def test_routing_rows_move_the_gate_and_the_encoder_and_no_expert(
    tiny_model, hand_batch: Batch
) -> None:
    lit = lit_of(tiny_model().train())
    found = gradients(lit, [part(with_routing_rows(hand_batch), slice(6, 8))])
    moved = {name for name, gradient in found.items() if gradient.abs().max() > 0}
    assert "gate.scores.prototypes" in moved
    assert "encoder.embeddings.word_embeddings.weight" in moved
    assert not any(name.startswith("experts.") for name in moved)


def test_a_routing_row_with_an_answer_counts_as_one_of_its_task_in_the_loss_alone(
    tiny_model, hand_batch: Batch
) -> None:
    """Of the two routing rows the first is of tasks 0 and 2, and its label of task 0 is known."""
    lit = lit_of(tiny_model().train(), LossConfig(routing=0.7, z=0.01))
    batch = with_routing_rows(hand_batch)
    loss, sums, logged = micro_batch(lit, batch)
    answered_BT = torch.zeros(8, 3, dtype=torch.bool)
    answered_BT[6, 0] = True
    labels = batch.labels.clone()
    labels[6] = 1
    known = replace(batch, answered_BT=answered_BT, labels=labels)
    more, more_sums, more_logged = micro_batch(lit, known)
    own = replace(part(known, slice(6, 7)), task_ids=torch.tensor([0]), answered_BT=None)
    output, = lit.model.forward_together([own])
    answer = lit.model.answer_loss(output, own)[0, 0]
    assert answer > 0.01
    torch.testing.assert_close(more, loss + lit.step_loss.task_weight_T[0] * answer / 6)
    for name in ("chosen_E", "shares_E", "mass_T", "rows_T"):
        torch.testing.assert_close(getattr(more_sums, name), getattr(sums, name))
    for name in ("answer_T", "routing_T", "routing_rows", "num_routing_rows", "z"):
        torch.testing.assert_close(more_logged[name], logged[name])


def test_the_gradient_at_the_gate_is_mass_minus_target(tiny_model, hand_batch: Batch) -> None:
    model = tiny_model(gate={"kind": "linear", "temperature": 1.0}).train()
    with torch.no_grad():
        model.gate.scores.weight.zero_()
        model.gate.scores.bias.zero_()
    lit = lit_of(model, LossConfig(routing=1.0, z=0.0, switch=0.0, prior=0.0))
    gradients(lit, [part(with_routing_rows(hand_batch), slice(6, 8))])
    # g is 1/7 everywhere. The targets (1/2, 0, 1/2) and (0, 1, 0) are spread over the 2, 1 and 4
    # experts of a task as g is: 1/4 and 1/8 to each. Two rows of the step's 6.
    expected = [2 / 7 - 1 / 4] * 2 + [2 / 7 - 1] + [2 / 7 - 1 / 8] * 4
    torch.testing.assert_close(model.gate.scores.bias.grad, torch.tensor(expected) / 6)


# --- validation -------------------------------------------------------------------------------


def examples(task: str) -> list[Example]:
    if task == "qa":
        return [Example(text=text, context=CONTEXT, answers=(Answer(text="abbot", start=3),))
                for text in ("who led", "who was led", "who was very good")]
    labels = {"sentiment": ("good", "bad"), "intent": ("pay", "ask", "go", "oos")}[task]
    words = {"sentiment": "film was very", "intent": "led the monks"}[task]
    return [Example(text=f"{words} {label}", label=label) for label in labels]


ROUTING = [
    RoutingRow(text="good film who led", context=CONTEXT, tasks=("sentiment", "qa")),
    RoutingRow(text="zz 77", context=None, tasks=()),
    RoutingRow(text="very bad", context=None, tasks=("sentiment",)),
    RoutingRow(text="123 456", context=CONTEXT, tasks=()),
]


@pytest.fixture
def tables(word_bundle: Callable[..., Bundle], tmp_path: Path) -> tuple[Bundle, list[TaskTable]]:
    bundle = word_bundle()
    return bundle, [build_table(examples(t.name), t, i, bundle.tokenizer, tmp_path / "cache")
                    for i, t in enumerate(bundle.model.tasks)]


def validate(lit: LitMixture, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> dict:
    """Runs validation as Lightning does, and returns what is logged."""
    logged: dict[str, float] = {}
    monkeypatch.setattr(lit, "_trainer", SimpleNamespace(global_step=3))
    monkeypatch.setattr(lit, "log_dict", lambda values, **_: logged.update(values))
    asked = [*lit.validation, *([] if lit.routing is None else [lit.routing]),
             *lit.exemplars.values()]
    lit.on_validation_epoch_start()
    for number, table in enumerate(asked):
        dataset = RequestDataset(table, bundle.tokenizer, bundle.config.data)
        for index in range(len(dataset)):
            lit.validation_step(dataset[index], index, number)
    lit.on_validation_epoch_end()
    return logged


def test_validation_fits_on_routing_rows(tables, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, task_tables = tables
    routing = RoutingTable(ROUTING, TASKS, bundle.tokenizer)
    lit = lit_of(bundle.model, validation=task_tables, routing=routing,
                 exemplars={table.spec.name: table for table in task_tables})
    logged = validate(lit, bundle, monkeypatch)
    assert [len(said.row_N) for said in lit.answers] == [2, 3, 4]  # not of the routing rows
    reference = lit.calibration.reference
    assert reference is not None
    assert {k: len(v) for k, v in reference.exemplars.items()} == {
        "sentiment": 2, "qa": 3, "intent": 4}
    assert reference.strangers_XD.shape == (2, 2 * 32)
    # Here the exemplars are the validation rows, so both are known.
    embedded = {t.spec.name: said.pooled_ND for t, said in zip(task_tables, lit.answers,
                                                               strict=True)}
    expected = fit_reference(embedded, reference.strangers_XD, list(embedded.values()))
    assert expected is not None
    np.testing.assert_allclose(reference.centre_D, expected.centre_D, atol=1e-3)
    for name, rows in expected.exemplars.items():  # batches come longest first
        got = reference.exemplars[name]
        np.testing.assert_allclose(sorted(got[:, 0]), sorted(rows[:, 0]), atol=1e-3)
    # Remembered for gate bricks: the same embeddings and those of the first layers behind them.
    assert {k: v.shape for k, v in lit.memory.items()} == {
        "sentiment": (2, 3 * 32), "qa": (3, 3 * 32), "intent": (4, 3 * 32)}
    read = np.sort(lit.memory["qa"][:, : 2 * 32], axis=0)
    np.testing.assert_allclose(read, np.sort(embedded["qa"], axis=0), atol=1e-2, rtol=1e-3)
    saved: dict = {}
    lit.on_save_checkpoint(saved)
    kept = saved["mixture"]["memory"]
    assert {k: v.dtype for k, v in kept.items()} == dict.fromkeys(lit.memory, torch.float16)
    lit.memory = {}
    lit.on_load_checkpoint(saved)
    assert np.array_equal(lit.memory["qa"], kept["qa"].float().numpy())
    assert lit.calibration.second_task is not None
    assert 0 < lit.calibration.second_task < 1
    for task in TASKS:
        assert logged[f"val_{task}/abstain_rate"] == 0.0  # of so few rows none may be refused
        assert f"val_{task}/second_answer_rate" in logged


def test_the_second_task_is_fitted_on_the_gates_masses(
    tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, task_tables = tables
    routing = RoutingTable(ROUTING, TASKS, bundle.tokenizer)
    lit = lit_of(bundle.model, validation=task_tables, routing=routing,
                 exemplars={table.spec.name: table for table in task_tables})
    validate(lit, bundle, monkeypatch)
    single = np.concatenate([said.second_N for said in lit.answers])
    assert lit.calibration.second_task == pytest.approx(fit_second_task(single), abs=1e-6)


@pytest.mark.parametrize("rows", [None, ROUTING[2:3]])
def test_validation_without_strangers_refuses_nothing(
    tables, monkeypatch: pytest.MonkeyPatch, rows: list[RoutingRow] | None
) -> None:
    bundle, task_tables = tables
    routing = None if rows is None else RoutingTable(rows, TASKS, bundle.tokenizer)
    lit = lit_of(bundle.model, validation=task_tables, routing=routing)
    logged = validate(lit, bundle, monkeypatch)
    assert lit.calibration.reference is None and lit.calibration.second_task is None
    assert logged["val_qa/abstain_rate"] == logged["val_qa/second_answer_rate"] == 0.0
