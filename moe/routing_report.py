"""How well requests are routed where it is hard, beside two routers that need no network.

Routing rows (`moe/data/routing.py`) are measured by category: the first choice of the gate and of
both `moe.baseline_routers`. Requests for two answers and texts that fit no task have tables of
their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe.abstain import (
    Reference,
    Vectors,
    nearest_cosines,
    normalise,
    refusal_scores,
    with_threshold,
)
from moe.baseline_routers import by_rule, by_words, fit_rule, share_right
from moe.collect import embed
from moe.data.module import RequestDataset
from moe.data.prepare import build_tables
from moe.data.routing import ANSWER, RoutingRow, RoutingTable, read_routing_rows
from moe.data.tables import TaskTable
from moe.metrics import squad_scores
from moe.predict import MixtureOfExperts

TWO_ANSWERS = "two_answers"  # category of the rows that carry both answers
MAX_TRAINING = 4_000  # rows of each task that the baselines learn from


def task_rows(table: TaskTable, limit: int | None = None, seed: int = 0) -> list[RoutingRow]:
    """Rows of a task as routing rows, at most `limit` of them at random."""
    order = np.random.default_rng(seed).permutation(len(table))[:limit]
    chosen = table.rows.select(order)
    return [
        RoutingRow(text=text, context=context, tasks=(table.spec.name,), category="clean")
        for text, context in zip(chosen["text"], chosen["context"], strict=True)
    ]


def requests_of(rows: Sequence[RoutingRow]) -> list[dict[str, Any]]:
    """The rows as requests that name no task."""
    return [{"text": row.text, "context": row.context} for row in rows]


@dataclass(frozen=True, kw_only=True)
class Routers:
    """First choices of each router for the same rows.

    Attributes:
        rows: The requests.
        gate, rule, words: Task names.
        refused: Whether the gate abstains, although each row belongs to a task.
    """

    rows: Sequence[RoutingRow]
    gate: Sequence[str]
    rule: Sequence[str]
    words: Sequence[str]
    refused: Sequence[bool]

    def table(self) -> dict[str, dict[str, float]]:
        """By category and in total: `n`, the share right of each router, the share `refused`."""
        categories = ["all", *dict.fromkeys(row.category for row in self.rows)]
        return {category: self._line(category) for category in categories}

    def _line(self, category: str) -> dict[str, float]:
        mine = [i for i, row in enumerate(self.rows) if category in ("all", row.category)]
        rows = [self.rows[i] for i in mine]
        routers = {"gate": self.gate, "rule": self.rule, "words": self.words}
        right = {k: share_right(rows, [said[i] for i in mine]) for k, said in routers.items()}
        refused = float(np.mean([self.refused[i] for i in mine]))
        return {"n": float(len(rows)), **right, "refused": refused}


def compare_routers(
    model: MixtureOfExperts, train: Sequence[RoutingRow], rows: Sequence[RoutingRow]
) -> Routers:
    """Routes the rows by the gate and by both baselines, which learn from `train`."""
    said = model.predict(requests_of(rows))
    return Routers(
        rows=rows,
        gate=[answer["routing"][0]["task"] for answer in said],
        rule=by_rule(rows, fit_rule(train)),
        words=by_words(train, rows),
        refused=[answer["abstained"] for answer in said],
    )


def two_answers(model: MixtureOfExperts, rows: Sequence[RoutingRow]) -> dict[str, float]:
    """How often both tasks of a request answer, and how often both are right.

    Args:
        model: The model.
        rows: Each with two tasks and the right answers to both, a label and a span.
    """
    said = model.predict(requests_of(rows))
    answered, label, texts = [], [], []
    for row, answer in zip(rows, said, strict=True):
        answers = answer["answers"]
        label_task = next(name for name in row.answers if name != ANSWER)
        span_task = next(name for name in row.tasks if name != label_task)
        answered.append({label_task, span_task} <= set(answers))
        label.append(answers.get(label_task, {}).get("label") == row.answers[label_task])
        texts.append(answers.get(span_task, {}).get("text", ""))
    exact, f1 = squad_scores(texts, [[row.answers[ANSWER]] for row in rows]).T
    return {
        "n": float(len(rows)),
        "both_answer": float(np.mean(answered)),
        "label_right": float(np.mean(label)),
        "exact_match": float(exact.mean()),
        "f1": float(f1.mean()),
        "both_right": float(np.mean(np.array(answered) & np.array(label) & (f1 >= 50))),
    }


def embed_rows(model: MixtureOfExperts, table: TaskTable | RoutingTable) -> Vectors:
    """What the gate reads of each row of a table (N, D), in the table's order."""
    data = RequestDataset(table, model.bundle.tokenizer, model.bundle.config.data)
    parts = [embed(model.model, data[i].to(model.device)) for i in range(len(data))]
    order = np.argsort(np.concatenate([np.array(rows) for rows in data.groups]))
    embedded: Vectors = np.concatenate(parts)[order]
    return embedded


def refusals(
    model: MixtureOfExperts,
    validation: Sequence[TaskTable],
    fitted: RoutingTable,
    measured: RoutingTable,
    unusual: RoutingTable | None = None,
) -> dict[str, dict[str, float]]:
    """By kind of stranger: `n`, the share `refused`, and that of a fit without the kind.

    The thresholds of tasks that were added to the trained model stay as they are in such a fit.

    Args:
        model: The model; its exemplars are taken as they are.
        validation: Rows of the tasks, for the threshold of such a fit.
        fitted: Strangers that the model was fitted on.
        measured: Strangers to refuse.
        unusual: Routing rows with a task that the threshold was fitted on too.
    """
    reference = model.bundle.calibration.reference
    assert reference is not None
    own = [embed_rows(model, table) for table in validation]
    unusual_ND = None if unusual is None else embed_rows(model, unusual)
    kept_XD, asked_ND = embed_rows(model, fitted), embed_rows(model, measured)
    kept = np.array([row.category for row in fitted.rows])
    asked = np.array([row.category for row in measured.rows])
    kept_first, asked_first = (_first_tasks(model, table) for table in (fitted, measured))
    shares = {}
    for kind in dict.fromkeys(asked.tolist()):
        mine_ND, mine_first = asked_ND[asked == kind], asked_first[asked == kind]
        strangers_XD = normalise(kept_XD[kept != kind], reference.centre_D)
        without = with_threshold(replace(reference, strangers_XD=strangers_XD), own, unusual_ND)
        shares[kind] = {
            "n": float(len(mine_ND)),
            "refused": _refused(mine_ND, reference, mine_first),
            "held_out": _refused(
                np.concatenate([mine_ND, kept_XD[kept == kind]]),
                without,
                np.concatenate([mine_first, kept_first[kept == kind]]),
            ),
        }
    return shares


def _first_tasks(model: MixtureOfExperts, table: RoutingTable) -> NDArray[np.str_]:
    """The gate's first choice for each row: tasks that were added have thresholds of their own."""
    said = model.predict(requests_of(table.rows))
    return np.array([answer["routing"][0]["task"] for answer in said])


def _refused(pooled_ND: Vectors, reference: Reference, first_N: NDArray[np.str_]) -> float:
    cosines = nearest_cosines(pooled_ND, reference)
    scores_N, thresholds_N = refusal_scores(cosines, reference, first_N.tolist())
    return float((scores_N > thresholds_N).mean())


def measure_routing(
    source: str, rows: str, *, root: str | None = None, device: str | None = None
) -> dict[str, Any]:
    """The report of `scripts/routing.py`.

    Args:
        source: Checkpoint, folder or hub id.
        rows: SOURCE of routing rows, of which the part to measure on is read.
        root: Folder of relative sources; None is the training's.
        device: None takes a GPU if there is one.
    """
    model = MixtureOfExperts.from_pretrained(source, device)
    bundle, names = model.bundle, [task.name for task in model.tasks]
    data = bundle.config.data if root is None else replace(bundle.config.data, root=root)
    tables, _ = build_tables(
        bundle.config.selected_tasks, data, bundle.tokenizer, bundle.config.seed_everything
    )
    asked = read_routing_rows(rows, root=Path(data.root), split="test", tasks=names)
    train = [row for table in tables.train for row in task_rows(table, MAX_TRAINING)]
    if tables.routing_train is not None:
        train += tables.routing_train.rows
    clean = [row for table in tables.validation for row in task_rows(table)]
    hard = [row for row in asked if row.tasks and row.category != TWO_ANSWERS]
    report: dict[str, Any] = {
        "checkpoint": source,
        "clean": compare_routers(model, train, clean).table(),
        "hard": compare_routers(model, train, hard).table(),
    }
    if pairs := [r for r in asked if r.category == TWO_ANSWERS and {ANSWER} < {*r.answers}]:
        report["two_answers"] = two_answers(model, pairs)
    strange = [row for row in asked if not row.tasks]
    if strange and bundle.calibration.reference is not None and tables.routing_validation:
        held = tables.routing_validation.rows
        fitted, unusual = ([r for r in held if bool(r.tasks) == has] for has in (False, True))
        report["refused"] = refusals(
            model,
            tables.validation,
            RoutingTable(fitted, names, bundle.tokenizer),
            RoutingTable(strange, names, bundle.tokenizer),
            RoutingTable(unusual, names, bundle.tokenizer) if unusual else None,
        )
    return report


def routing_text(report: Mapping[str, Any]) -> str:
    """The report as tables, shares in percent."""
    lines = []
    for part in ("clean", "hard", "refused"):
        for number, (name, values) in enumerate(report.get(part, {}).items()):
            if number == 0:
                heads = "".join(f"{head:>10}" for head in [*values][1:])
                lines.append(f"{part:<26}{'rows':>6}{heads}")
            shares = "".join(f"{100 * value:>10.1f}" for value in [*values.values()][1:])
            lines.append(f"  {name:<24}{values['n']:>6.0f}{shares}")
    if "two_answers" in report:
        values = "  ".join(f"{name} {value:.4g}" for name, value in report["two_answers"].items())
        lines.append(f"two answers  {values}")
    return "\n".join(lines)
