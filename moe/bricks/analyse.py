"""Looking inside a trained model: neurons, emergent bricks, and the gate; figures and numbers."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe.bricks import figures
from moe.bricks.gate_view import moving_words, prototype_similarity, routing_shares
from moe.bricks.measuring import collect_here
from moe.bricks.neurons import (
    Activations,
    activations,
    best_bricks,
    best_neurons,
    emergent_bricks,
    score_with,
    served_tasks,
)
from moe.checkpoint import Bundle
from moe.collect import Answers
from moe.data.tables import TaskTable
from moe.measure import build_test_tables
from moe.plots import pixels, routing_matrix

SHARES = (0.05, 0.1, 0.2, 0.4, 0.7)


def analyse(
    bundle: Bundle, out: str | Path, *, rows: int = 200, root: str | None = None, seed: int = 0
) -> dict[str, Any]:
    """Writes `analysis.json`, a PNG of each figure, and the figures as TensorBoard images.

    Args:
        bundle: A trained model.
        out: The folder.
        rows: Validation rows of each task, drawn at random.
        root: Folder of relative sources; None is the training's.
        seed: Of the draw.
    """
    start = time.monotonic()
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    tables = [_some(table, rows, seed) for table in build_test_tables(bundle, (), root)]
    seen = activations(bundle, tables, seed)
    owner_NF = np.stack([emergent_bricks(sample_SF, seed=seed) for sample_SF in seen.sample_NSF])
    answers = [collect_here(bundle, table) for table in tables]
    report: dict[str, Any] = {
        "rows": {table.spec.name: len(table) for table in tables},
        "neurons": _neuron_report(tables, seen, owner_NF),
        "kept": {
            table.spec.name: _kept(bundle, table, seen.weight_TNF[i], owner_NF, seed)
            for i, table in enumerate(tables)
        },
        "gate": _gate_report(bundle, tables, answers),
    }
    _draw(folder, bundle, tables, seen, owner_NF, report)
    report["seconds"] = round(time.monotonic() - start, 1)
    (folder / "analysis.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return report


def _some(table: TaskTable, count: int, seed: int) -> TaskTable:
    order = np.random.default_rng(seed).permutation(len(table))[:count]
    return replace(table, rows=table.rows.select(np.sort(order)))


def _neuron_report(
    tables: Sequence[TaskTable], seen: Activations, owner_NF: NDArray[np.int64]
) -> dict[str, Any]:
    served_NF = served_tasks(seen.rate_TNF)
    bricks = [_brick_rates(seen.rate_TNF[:, n], owner_NF[n]) for n in range(len(owner_NF))]
    alone = [served_tasks(rate_TK[:, None, :])[0] for rate_TK in bricks]
    return {
        "serve_one_task": float((served_NF >= 0).mean()),
        "by_task": {
            table.spec.name: [float(v) for v in (served_NF == i).mean(1)]
            for i, table in enumerate(tables)
        },
        "active": {
            table.spec.name: [float(v) for v in seen.rate_TNF[i].mean(1)]
            for i, table in enumerate(tables)
        },
        "bricks_serve_one_task": [float((served_K >= 0).mean()) for served_K in alone],
    }


def _brick_rates(rate_TF: Any, owner_F: NDArray[np.int64]) -> NDArray[np.float64]:
    """(T, K) mean activation rate of the neurons of each brick."""
    return np.stack([rate_TF[:, owner_F == k].mean(1) for k in range(owner_F.max() + 1)], axis=1)


def _kept(
    bundle: Bundle, table: TaskTable, weight_NF: Any, owner_NF: NDArray[np.int64], seed: int
) -> dict[str, dict[float, float]]:
    """Main metric by how neurons are chosen and by the share that is kept."""
    drawn_NF = np.random.default_rng(seed).random(weight_NF.shape)
    choose = {
        "best neurons": lambda share: best_neurons(weight_NF, share),
        "best bricks": lambda share: best_bricks(weight_NF, owner_NF, share),
        "random neurons": lambda share: best_neurons(drawn_NF, share),
    }
    whole = score_with(bundle, table, np.ones_like(weight_NF, dtype=bool))
    return {
        name: {**{s: score_with(bundle, table, masks(s)) for s in SHARES}, 1.0: whole}
        for name, masks in choose.items()
    }


def _gate_report(
    bundle: Bundle, tables: Sequence[TaskTable], answers: Sequence[Answers]
) -> dict[str, Any]:
    names, cosine_RR = prototype_similarity(bundle)
    return {
        "prototypes": {
            name: dict(zip(names, map(float, row), strict=True))
            for name, row in zip(names, cosine_RR, strict=True)
        },
        "routing": {
            table.spec.name: dict(zip(bundle.model.expert_names, map(float, shares), strict=True))
            for table, shares in zip(tables, routing_shares(answers), strict=True)
        },
        "words": {
            table.spec.name: moving_words(bundle, table, said)
            for table, said in zip(tables, answers, strict=True)
        },
    }


def _draw(
    folder: Path,
    bundle: Bundle,
    tables: Sequence[TaskTable],
    seen: Activations,
    owner_NF: NDArray[np.int64],
    report: dict[str, Any],
) -> None:
    from torch.utils.tensorboard import SummaryWriter

    tasks = [table.spec.name for table in tables]
    last = len(owner_NF) - 1
    names, cosine_RR = prototype_similarity(bundle)
    shares = [list(report["gate"]["routing"][task].values()) for task in tasks]
    drawn = {
        "neurons-specialised": figures.specialised(served_tasks(seen.rate_TNF), tasks),
        "bricks-last-layer": figures.brick_rates(
            _brick_rates(seen.rate_TNF[:, last], owner_NF[last]), tasks, last + 1
        ),
        "gate-prototypes": figures.similarity(cosine_RR, names),
        "gate-routing": routing_matrix(np.array(shares), tasks, bundle.model.expert_names),
    }
    for task in tasks:
        drawn[f"kept-{task}"] = figures.kept_scores(report["kept"][task], task)
        if report["gate"]["words"][task]:
            drawn[f"words-{task}"] = figures.words(report["gate"]["words"][task][0], task)
    with SummaryWriter(folder) as writer:  # type: ignore[no-untyped-call]
        for name, figure in drawn.items():
            figure.savefig(folder / f"{name}.png")
            writer.add_image(f"analysis/{name}", pixels(figure), 0, dataformats="HWC")  # type: ignore[no-untyped-call]


def analysis_text(report: dict[str, Any], out: str | Path) -> str:
    """The numbers that matter, as text."""
    neurons = report["neurons"]
    lines = [
        f"{neurons['serve_one_task']:.1%} of the neurons serve one task; by layer "
        + "; ".join(
            f"{task} " + " ".join(f"{v:.0%}" for v in by_layer)
            for task, by_layer in neurons["by_task"].items()
        ),
        "emergent bricks that serve one task, by layer: "
        + " ".join(f"{v:.0%}" for v in neurons["bricks_serve_one_task"]),
        "",
        f"{'main metric (%) with':<32}" + "".join(f"{s:>7.0%}" for s in (*SHARES, 1.0)),
    ]
    for task, curves in report["kept"].items():
        for name, curve in curves.items():
            values = "".join(f"{100 * curve[share]:>7.1f}" for share in sorted(curve))
            lines.append(f"{task + ', ' + name:<32}{values}")
    for task, found in report["gate"]["words"].items():
        for entry in found[:1]:
            word, change = max(entry["without"].items(), key=lambda item: abs(item[1]))
            lines.append(
                f"{task}: {entry['text'][:70]!r} has mass {entry['mass']:.2f}; without "
                f"{word.partition(':')[2]!r} {change:+.2f}"
            )
    return "\n".join([*lines, f"{report['seconds']:.0f} s, figures in {out}"])
