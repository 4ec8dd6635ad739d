"""Metrics of a checkpoint and of its exported graphs side by side, on the same labelled rows.

Dimensions: B windows, N requests, E experts, T tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moe.checkpoint import Bundle, load_bundle
from moe.data.windows import PaddedWindows
from moe.decision import route
from moe.dispatch import dispatch
from moe.evaluation import evaluate, main_metric
from moe.gate import mean_per_request
from moe.measure import build_test_tables, collect_table
from moe.model import Mixture
from moe.onnx.bundle import FILES, OnnxGraph, load_onnx
from moe.types import Batch, ExpertOutput, InputError, MixtureOutput


class GraphModel:
    """An exported graph in the place of the model that `moe.collect` asks.

    Args:
        model: That it was exported from: what it is asked besides answers.
        graph: The graph.
    """

    def __init__(self, model: Mixture, graph: OnnxGraph) -> None:
        self.graph = graph
        self.tasks, self.task_experts_TE = model.tasks, model.task_experts_TE
        self.gate, self.top_k = model.gate, model.top_k
        self.own_tasks, self.answerable = model.own_tasks, model.answerable

    def __call__(self, batch: Batch, *, tasks_BT: Tensor) -> MixtureOutput:
        """What `Mixture.forward` returns if the tasks are known."""
        encoded = self.graph.encode(
            PaddedWindows(
                input_ids=batch.input_ids.numpy(),
                attention_mask=batch.attention_mask.numpy(),
                context_mask=batch.context_mask.numpy(),
            )
        )
        routing = route(
            mean_per_request(torch.from_numpy(encoded.gate_logits_BE), batch.request_ids),
            self.task_experts_TE,
            tasks_BT=tasks_BT,
            top_k=self.top_k,
            selection_bias_E=self.gate.expert_bias,
        )
        logits = self.graph.run_experts(encoded, routing.chosen_BE.numpy())
        return MixtureOutput(
            pooled_BD=torch.from_numpy(encoded.pooled_BD),
            routing=routing,
            experts=tuple(
                ExpertOutput(
                    expert=own.expert,
                    rows_N=own.rows_N,
                    logits=torch.from_numpy(logits[own.expert])[own.rows_N],
                )
                for own in dispatch(routing.chosen_BE)
            ),
        )


def compare_exports(
    checkpoint: str | Path,
    folder: str | Path,
    *,
    tests: Sequence[str] = (),
    root: str | None = None,
) -> dict[str, Any]:
    """Metrics of `torch` and of every exported precision, and how many rows go the same way.

    Args:
        checkpoint: That was exported; it says which rows there are.
        folder: The export.
        tests: `TASK=SOURCE`; empty measures the checkpoint's validation sources.
        root: Folder of relative sources; None is the training's.

    Raises:
        InputError: One of them cannot be read, or they are of different models.
    """
    bundle = load_bundle(checkpoint)
    bundles = {"torch": bundle, **_exported(bundle, Path(folder))}
    tables = build_test_tables(bundle, tests, root)
    sides: dict[str, Any] = {}
    routes: dict[str, NDArray[np.int64]] = {}
    for name, own in bundles.items():
        answers = [collect_table(own, table, torch.device("cpu")) for table in tables]
        numbers = evaluate(tables, answers, bundle.calibration, bundle.model.tasks)
        routes[name] = np.concatenate([said.first_N for said in answers])
        same = float((routes[name] == routes["torch"]).mean())
        sides[name] = {**asdict(numbers), "same_route": same}
    return {"checkpoint": str(checkpoint), "onnx": str(folder), "sides": sides}


def _exported(bundle: Bundle, folder: Path) -> dict[str, Bundle]:
    """By precision the bundle with the graph in the place of its model."""
    found = {}
    for precision, file in FILES.items():
        if (folder / file).is_file():
            own = load_onnx(folder, precision, torch.get_num_threads())  # type: ignore[arg-type]
            if own.tasks != bundle.model.tasks:
                raise InputError(
                    f"{folder}: an export with the tasks {[task.name for task in own.tasks]}, the "
                    f"checkpoint has {[task.name for task in bundle.model.tasks]}, or other labels "
                    "or experts: give the checkpoint that it was made from"
                )
            model = cast(Mixture, GraphModel(bundle.model, own.graph))
            found[precision] = replace(bundle, model=model)
    if not found:
        raise InputError(f"{folder}: no export, expected {' or '.join(FILES.values())} in it")
    return found


def comparison_table(report: dict[str, Any]) -> str:
    """The report as text: the main metric of each task in percent, and equal routing."""
    sides = report["sides"]
    lines = [f"{'':<32}" + "".join(f"{name:>10}" for name in sides)]
    for task in sides["torch"]["tasks"]:
        found = [main_metric(side["tasks"][task]) for side in sides.values()]
        lines.append(
            f"{task + ' ' + found[0][0]:<32}"
            + "".join(f"{100 * value:10.2f}" for _, value in found)
        )
    same = "".join(f"{100 * side['same_route']:10.2f}" for side in sides.values())
    return "\n".join([*lines, f"{'rows with the route of torch':<32}{same}"])
