"""What scalars cannot show, for TensorBoard at each validation: who goes where, and as what.

Dimensions: N rows, T tasks, E experts, C classes.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from numpy.typing import NDArray

from moe import plots
from moe.calibration import Calibration
from moe.collect import Answers
from moe.config import ExperimentConfig
from moe.data.tables import TaskTable
from moe.evaluation import joint_score, main_metric, measured_routing
from moe.forms import FORMS
from moe.forms.classifier import ClassifierResult, classify

NUM_SAMPLES = 8
MAX_CHARACTERS = 120
_MARKUP = re.compile(f"[{re.escape(string.punctuation)}]")


class Pictures(Callback):
    """Writes pictures, histograms, curves and sample answers at each validation.

    Without matplotlib the pictures are left out, which is said once; without a TensorBoard logger
    nothing is written.
    """

    def __init__(self) -> None:
        self._said = False

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Shows the answers that this validation collected."""
        writer = _writer(trainer)
        if writer is None or trainer.sanity_checking:
            return
        step, names = trainer.global_step, pl_module.model.expert_names
        tables, answers = pl_module.validation, pl_module.answers
        draws = self._draws()
        if draws:
            share_RE, rows = routing_shares(tables, answers)
            _image(
                writer,
                "pictures_gate/routing_matrix",
                step,
                lambda: plots.routing_matrix(share_RE, rows, names),
            )
        for table, said in zip(tables, answers, strict=True):
            name = table.spec.name
            # Sums of float32 probabilities may pass 1 by a rounding error.
            own_N = np.clip(said.mass_NT[:, table.task], 0.0, 1.0)
            writer.add_histogram(f"gate_mass/{name}", own_N, step, bins=np.linspace(0, 1, 41))
            writer.add_text(
                f"samples/{name}",
                sample_table(table, said, pl_module.calibration, pl_module.model.tasks, names),
                step,
            )
            if table.spec.type == "classifier":  # no other form has pictures of its own
                result = classify(said.of(table, names), pl_module.calibration)
                _classifier(writer, table, result, step, draws)
        writer.flush()

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Writes the main settings and the last validation's numbers for the HParams page."""
        if _writer(trainer) is None or pl_module.evaluation is None:
            return
        tasks = pl_module.evaluation.tasks
        metrics = {f"hp/{task}": main_metric(values)[1] for task, values in tasks.items()}
        metrics["hp/joint_score"] = joint_score(tasks)
        trainer.logger.log_hyperparams(  # type: ignore[union-attr, call-arg]
            main_settings(pl_module.config), metrics, trainer.global_step
        )

    def _draws(self) -> bool:
        draws = find_spec("matplotlib") is not None
        if not draws and not self._said:
            self._said = True
            print(
                "no pictures in TensorBoard: matplotlib is missing (pip install matplotlib, or "
                "this project with its extra [plots])",
                flush=True,
            )
        return draws


def _writer(trainer: L.Trainer) -> Any:
    """The SummaryWriter of the run; None without one, and on all ranks but the first."""
    if not trainer.is_global_zero or not isinstance(trainer.logger, TensorBoardLogger):
        return None
    return trainer.logger.experiment


def _image(writer: Any, tag: str, step: int, draw: Callable[[], Any]) -> None:
    writer.add_image(tag, plots.pixels(draw()), step, dataformats="HWC")


def _classifier(
    writer: Any, table: TaskTable, result: ClassifierResult, step: int, draws: bool
) -> None:
    """Confusions, reliability and, where a task has out-of-scope rows, their curves."""
    spec, name = table.spec, table.spec.name
    inside_N = result.label_N < len(spec.labels)
    if draws:
        answered_N, names = result.predicted_N, list(spec.labels)
        if spec.out_of_scope is not None:
            answered_N = np.where(result.rejected_N, len(spec.labels), answered_N)
            names.append(spec.out_of_scope)
        kept_N = inside_N & ~result.rejected_N  # the rows that `val_<task>/ece` counts
        right_N = (result.predicted_N == result.label_N)[kept_N]
        _image(
            writer,
            f"pictures_{name}/confusion",
            step,
            lambda: plots.confusion_matrix(result.label_N, answered_N, names),
        )
        _image(
            writer,
            f"pictures_{name}/reliability",
            step,
            lambda: plots.reliability_diagram(result.confidence_N[kept_N], right_N),
        )
    if spec.out_of_scope is not None and inside_N.any() and not inside_N.all():
        if draws:
            right_N = result.predicted_N == result.label_N
            _image(
                writer,
                f"pictures_{name}/out_of_scope",
                step,
                lambda: plots.out_of_scope_tradeoff(
                    result.score_N, inside_N, right_N, result.rejected_N
                ),
            )
        # Ranks, as for AUPR: the curve wants [0, 1], and a sigmoid would tie far scores.
        ranks_N = np.unique(result.score_N, return_inverse=True)[1] / len(result.score_N)
        writer.add_pr_curve(f"{name}_out_of_scope/pr_curve", ~inside_N, ranks_N, step)


def routing_shares(
    tables: Sequence[TaskTable], answers: Sequence[Answers]
) -> tuple[NDArray[np.float64], list[str]]:
    """Share of each row group's (row, chosen expert) pairs at each expert, and the group's name.

    A task's in-scope rows are one group named after it; its out-of-scope rows, which belong
    nowhere, are another.
    """
    shares, names = [], []
    for table, said in zip(tables, answers, strict=True):
        spec = table.spec
        # Only a classifier has rows out of scope; those of other forms have the label -1.
        inside_N = table.labels()[said.row_N] < max(len(spec.labels), 1)
        groups = ((spec.name, inside_N), (f"{spec.name}\n{spec.out_of_scope}", ~inside_N))
        for name, rows_N in groups:
            if rows_N.any():
                load_E = said.chosen_NE[rows_N].sum(0)
                shares.append(load_E / load_E.sum())
                names.append(name)
    return np.stack(shares), names


def escape(text: str) -> str:
    """The text on one line, cut, so that Markdown and HTML in it are shown and do nothing."""
    line = " ".join(text.split())
    if len(line) > MAX_CHARACTERS:
        line = line[: MAX_CHARACTERS - 1] + "…"
    return _MARKUP.sub(lambda match: f"&#{ord(match[0])};", line)


def sample_table(
    table: TaskTable,
    said: Answers,
    calibration: Calibration,
    specs: Sequence[Any],
    expert_names: Sequence[str],
) -> str:
    """A Markdown table of the same few rows each time, spread over the validation rows.

    A row is marked as right if its answer is right and the gate would have sent it to its task.

    Args:
        table: The rows.
        said: The answers to them.
        calibration: Temperatures and thresholds to decide with.
        specs: All tasks of the model.
        expert_names: All experts of the model.
    """
    reached_N, _ = measured_routing(said, calibration, "learned")
    picked = np.unique(np.linspace(0, len(said.row_N) - 1, NUM_SAMPLES).round().astype(int))
    # No column of its own for the score: TensorBoard would break narrow columns inside words.
    lines = ["| | text | expected | answered (score) | gate |", "|---|---|---|---|---|"]
    collected = said.of(table, expert_names).select(picked.tolist())
    shown = FORMS[table.spec.type].show(collected, calibration)
    rows = table.read(said.row_N[picked].tolist())
    for at, row, one in zip(picked, rows, shown, strict=True):
        best = np.argsort(-said.mass_NT[at])[:2]
        gate = ", ".join(f"{escape(specs[t].name)} {said.mass_NT[at, t]:.2f}" for t in best)
        cells = [escape(row["text"]), escape(one.expected), escape(one.answered)]
        mark = "✓" if one.right and reached_N[at] else "✗"
        lines.append(f"| {mark} | {' | '.join(cells)} ({one.score:.2f}) | {gate} |")
    return "\n".join(lines)


def main_settings(config: ExperimentConfig) -> dict[str, bool | float | str]:
    """The settings that runs are compared by, named as on the command line."""
    optimizer, data, model = config.optimizer, config.data, config.model
    gate, loss = model.gate, model.loss
    return {
        "model.encoder.name": model.encoder.name,
        "model.expert.trunk": model.expert.trunk,
        "model.gate.kind": gate.kind,
        "model.gate.train_top_k": "all up to 2" if gate.train_top_k is None else gate.train_top_k,
        "model.loss.routing": loss.routing,
        "model.loss.switch": loss.switch,
        "model.loss.prior": loss.prior,
        "model.loss.bias_rate": loss.bias_rate,
        "model.loss.z": loss.z,
        "optimizer.encoder_lr": optimizer.encoder_lr,
        "optimizer.expert_lr": optimizer.expert_lr,
        "optimizer.gate_lr": optimizer.gate_lr,
        "optimizer.average": optimizer.average,
        "data.batch_size": data.batch_size,
        "data.mixing.kind": data.mixing.kind,
        "seed_everything": config.seed_everything,
        **{f"tasks.{name}.experts": task.experts for name, task in config.selected_tasks.items()},
    }
