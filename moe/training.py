"""One training run: data, model, Lightning, the final table."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger

from moe.allocator import keep_freed_memory
from moe.build import build_model
from moe.callbacks import training_callbacks
from moe.checkpoint import identity
from moe.checkpoint_io import DurableIO
from moe.checkpoint_reading import read_lightning
from moe.config import ExperimentConfig
from moe.data.mixing import StepPlanner
from moe.data.module import MixtureData, build_planner
from moe.data.prepare import Tables, build_tables
from moe.data.windows import TextTokenizer
from moe.encoder import compile_blocks, freeze, set_dropout
from moe.evaluation import Evaluation, baseline, main_metric
from moe.interrupt import StopSignals
from moe.launch import build_trainer, exchange, quiet
from moe.lit import LitMixture
from moe.model import Mixture
from moe.precision import pick_precision
from moe.pretrained import load_encoder, resolve_folder
from moe.ranks import first_before_others, from_first, num_ranks
from moe.resume import last_state
from moe.runs import RESULT, write_result
from moe.types import InputError, NonFiniteError


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """What a run ends with.

    Attributes:
        folder: Of the run.
        best: The best checkpoint, or None if nothing was validated.
        evaluation: Of that checkpoint.
        baselines: Main metric of a trivial answer by task, as a fraction.
    """

    folder: Path
    best: Path | None
    evaluation: Evaluation | None
    baselines: dict[str, float]


def _own_accumulation(
    config: ExperimentConfig, trainer: dict[str, Any]
) -> tuple[ExperimentConfig, dict[str, Any]]:
    """Takes over the two Trainer arguments that manual optimization leaves without effect."""
    factor = trainer.pop("accumulate_grad_batches", None) or 1
    clip = trainer.pop("gradient_clip_val", None)
    if factor != 1:
        data = replace(config.data, batch_size=config.data.batch_size * factor)
        config = replace(config, data=data)
    if clip is not None:
        config = replace(config, optimizer=replace(config.optimizer, gradient_clip=float(clip)))
    return config, trainer


def _total_steps(trainer: dict[str, Any], steps_per_epoch: int) -> int:
    limits = []
    if trainer.get("max_steps", -1) > 0:
        limits.append(trainer["max_steps"])
    if (trainer.get("max_epochs") or -1) > 0:
        limits.append(trainer["max_epochs"] * steps_per_epoch)
    if not limits:
        raise InputError("training has no end: set trainer.max_epochs or trainer.max_steps")
    return int(min(limits))


def steps_per_epoch(tables: Tables, batch_size: int) -> int:
    """Optimizer steps in which as many rows pass as there are, whatever the mix."""
    return math.ceil(sum(len(table) for table in tables.train) / batch_size)


def _trainer(
    config: ExperimentConfig, folder: Path, arguments: dict[str, Any], stop: StopSignals
) -> L.Trainer:
    logger = TensorBoardLogger(
        folder.parent.parent, folder.parent.name, folder.name, default_hp_metric=False
    )
    engine = build_trainer(
        **arguments if num_ranks() == 1 else {**arguments, "strategy": exchange()},
        logger=logger,
        callbacks=training_callbacks(config, folder, arguments, stop),
        plugins=[DurableIO()],
        use_distributed_sampler=False,
    )
    if engine.world_size != num_ranks():
        raise InputError(
            f"{engine.world_size} devices and {num_ranks()} connected processes: begin with "
            "moe.launch.launch, as train.py does, or use one device"
        )
    return engine


def _build(
    config: ExperimentConfig,
    tables: Tables,
    tokenizer: TextTokenizer,
    total_steps: int,
    precision: str,
    stop: StopSignals,
) -> LitMixture:
    encoder_config = config.model.encoder
    encoder = load_encoder(encoder_config.name)
    set_dropout(
        encoder,
        dropout=encoder_config.dropout,
        attention_dropout=encoder_config.attention_dropout,
    )
    freeze(encoder, encoder_config.freeze)
    if encoder_config.compile:
        compile_blocks(encoder)
    if config.data.max_length > encoder.config.max_position_embeddings:
        raise InputError(
            f"data.max_length {config.data.max_length} is more than the encoder's "
            f"{encoder.config.max_position_embeddings} positions"
        )
    model = build_model(config.model, tables.specs, encoder)
    return LitMixture(
        model=model,
        config=config,
        validation=tables.validation,
        total_steps=total_steps,
        identity=identity(config, tables.specs, encoder, tokenizer, precision),
        routing=tables.routing_validation,
        exemplars=tables.exemplars,
        stop=stop,
    )


def train(
    config: ExperimentConfig, trainer: dict[str, Any], folder: Path, resume: bool = False
) -> TrainingResult:
    """Trains, validates and saves; returns the paths and numbers of the best checkpoint.

    On several devices every process that `moe.launch.launch` connected calls this alike.

    Args:
        config: Of the run.
        trainer: Arguments of the Lightning Trainer.
        folder: Of the run; `checkpoints/` and the TensorBoard events go there.
        resume: Whether to go on from the newest whole checkpoint of that folder.

    Raises:
        SystemExit: SIGTERM or SIGINT came; the state is saved.
        NonFiniteError: Too many steps in a row had no finite loss and gradient.
    """
    with StopSignals() as stop:
        return _train(config, trainer, folder, resume, stop)


def _train(
    config: ExperimentConfig,
    trainer: dict[str, Any],
    folder: Path,
    resume: bool,
    stop: StopSignals,
) -> TrainingResult:
    trainer = dict(trainer)
    trainer["precision"] = pick_precision(trainer)
    quiet()
    torch.set_float32_matmul_precision("high")
    keep_freed_memory()
    L.seed_everything(config.seed_everything, workers=True, verbose=False)
    config, trainer = _own_accumulation(config, trainer)
    name, seed = config.model.encoder.name, config.seed_everything
    tokenizer = first_before_others(lambda: TextTokenizer.from_pretrained(resolve_folder(name)))
    tables, counts = first_before_others(
        lambda: build_tables(config.selected_tasks, config.data, tokenizer, seed)
    )
    per_epoch = steps_per_epoch(tables, config.data.batch_size)
    total_steps = _total_steps(trainer, per_epoch)
    planner = build_planner(tables, config.data, total_steps=total_steps, seed=seed)
    if planner.smallest_step < num_ranks():
        raise InputError(
            f"data.batch_size {config.data.batch_size} is over all processes: too few rows for "
            f"{num_ranks()} of them"
        )
    lit = _build(config, tables, tokenizer, total_steps, trainer["precision"], stop)
    data = MixtureData(
        tables=tables,
        planner=planner,
        tokenizer=tokenizer,
        config=config.data,
        steps_per_epoch=per_epoch,
    )
    _announce(counts, planner, lit.model, trainer["precision"])
    tasks = lit.identity["tasks"]
    last = from_first(lambda: last_state(folder, tasks, total_steps) if resume else None)
    if isinstance(last, int):
        print(f"{folder} is finished: nothing to do")
        minutes, steps = None, last
    else:
        minutes, steps = _fit(_trainer(config, folder, trainer, stop), lit, data, folder, last)
        print(f"training took {minutes:.1f} minutes")
    return from_first(lambda: _end(folder, lit, tables, minutes, steps))


def _end(
    folder: Path, lit: LitMixture, tables: Tables, minutes: float | None, steps: int
) -> TrainingResult:
    """The result of a run; left in its folder unless that has one already.

    Args:
        folder: Of the run.
        lit: Its last state.
        tables: Its rows.
        minutes: Of this process; None if it had nothing to do, perhaps because the run was killed
            after its last step.
        steps: Optimizer steps that the run has made.
    """
    result = _result(folder, lit, tables)
    if minutes is not None or not (folder / RESULT).is_file():
        metrics = None if result.evaluation is None else asdict(result.evaluation)
        spent = None if minutes is None else round(minutes, 2)
        write_result(folder, {"minutes": spent, "steps": steps, "metrics": metrics})
    return result


def _fit(
    engine: L.Trainer, lit: LitMixture, data: MixtureData, folder: Path, last: Path | None
) -> tuple[float, int]:
    """Minutes of this process, and the optimizer steps that the run has made."""
    start = time.monotonic()
    try:
        engine.fit(lit, data, ckpt_path=None if last is None else str(last), weights_only=True)
    except (SystemExit, NonFiniteError):
        if engine.checkpoint_callbacks:
            print(f"stopped; go on with: python train.py --resume {folder}", flush=True)
        raise
    if lit.config.optimizer.average > 0 and engine.global_step < lit.total_steps:
        print("training ended before its last step: the model is no mean of weights", flush=True)
    return (time.monotonic() - start) / 60, engine.global_step


def _announce(counts: list[str], planner: StepPlanner, model: Mixture, precision: str) -> None:
    for line in counts:
        print(line)
    streams = [*(task.name for task in model.tasks), "routing"]
    mix = ", ".join(
        f"{name} {rows:.1f}" for name, rows in zip(streams, planner.rows_ST.mean(0), strict=False)
    )
    million = sum(p.numel() for p in model.parameters()) / 1e6
    print(f"{len(planner)} optimizer steps; rows per step: {mix}")
    print(
        f"{million:.1f} M parameters, experts: {len(model.experts)}; precision {precision}",
        flush=True,
    )


def _result(folder: Path, lit: LitMixture, tables: Tables) -> TrainingResult:
    best = folder / "checkpoints" / "best.ckpt"
    evaluation = lit.evaluation
    if best.is_file():
        evaluation = Evaluation(**read_lightning(best)["mixture"]["metrics"])
    return TrainingResult(
        folder=folder,
        best=best if best.is_file() else None,
        evaluation=evaluation,
        baselines={
            validation.spec.name: baseline(train, validation)
            for train, validation in zip(tables.train, tables.validation, strict=True)
        },
    )


def result_table(result: TrainingResult) -> str:
    """The final table: every task's main metric beside a trivial baseline, in percent."""
    if result.evaluation is None:
        return "nothing was validated"
    lines = [f"{'task':<14}{'metric':<20}{'model':>8}{'trivial':>9}{'routing':>9}"]
    for task, metrics in result.evaluation.tasks.items():
        name, value = main_metric(metrics)
        trivial = result.baselines[task] / (100 if name == "f1" else 1)
        lines.append(
            f"{task:<14}{name:<20}{100 * value:>8.2f}{100 * trivial:>9.2f}"
            f"{100 * metrics['routing_accuracy']:>9.2f}"
        )
    return "\n".join(lines)
