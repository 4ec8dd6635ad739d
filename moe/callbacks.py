"""What accompanies a training: its checkpoints, and progress where no terminal shows a bar."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import (
    Callback,
    Checkpoint,
    EarlyStopping,
    ModelCheckpoint,
    ProgressBar,
    TQDMProgressBar,
)

from moe.checkpoint_io import LAST
from moe.config import ExperimentConfig
from moe.evaluation import main_metric
from moe.interrupt import StopSignals
from moe.pictures import Pictures
from moe.ranks import num_ranks, on_all, rank, summed


class LastCheckpoint(Checkpoint):
    """Writes everything needed to go on to one file, and stops when a signal has asked for it.

    It writes every few optimizer steps, after each validation, at the end, and before a stop; never
    between a step and the validation that follows it, because a resumed run would leave that out.
    Random states of every rank go with it: without them a resumed run would drop out other units.
    Rank 0 writes while the others wait.

    Args:
        path: The file, replaced by each write.
        every: Optimizer steps between two writes.
        stop: Signals to heed; its handlers replace those of the Trainer, which would stop only
            after a validation and would broadcast inside a handler.
    """

    # The base class makes Lightning run it after all others: what it saves holds their states.

    def __init__(self, path: Path, *, every: int, stop: StopSignals) -> None:
        self.path = path
        self.every = every
        self.stop = stop
        self._random: dict[str, Any] = {}
        self._common: list[float] = []

    def state_dict(self) -> dict[str, Any]:
        """Random states of each rank: of the CPU and, where it has one, of its GPU."""
        used = torch.cuda.is_available() and torch.cuda.is_initialized()
        cuda = [torch.cuda.get_rng_state()] if used else []
        return {"ranks": on_all({"cpu": torch.get_rng_state(), "cuda": cuda})}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps the states until the first step, since building the loader draws numbers too.

        A rank that the saved run had not goes on with the state that it begins with.
        """
        saved = state_dict.get("ranks", [state_dict])  # as it was before there were several
        self._random = saved[rank()] if rank() < len(saved) else {}

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Takes up the one number that Lightning saves of the best checkpoint and does not load."""
        best = trainer.checkpoint_callback
        if isinstance(best, ModelCheckpoint):
            saved = checkpoint["callbacks"].get(best.state_key, {})
            best.current_score = saved.get("current_score")

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """From here on a signal waits for the end of its step."""
        loop, epochs = trainer.fit_loop, trainer.fit_loop.epoch_progress.current
        if loop.restarted_mid_epoch and epochs.completed == epochs.ready:
            # Written after the last step of an epoch: Lightning completes the epoch, but would not
            # count the next one as begun.
            loop.reset_restart_stage()
        self.stop.install()
        self.stop.deferred, self.stop.several = True, num_ranks() > 1
        self._heed()

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Takes up the random states of the checkpoint, once."""
        if self._random:
            torch.set_rng_state(self._random["cpu"])
            for state in self._random["cuda"]:
                torch.cuda.set_rng_state(state)
            self._random = {}

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Writes when it is time or a signal came, unless a validation comes next.

        The step has told all ranks of a signal to one.
        """
        asked = trainer.global_step % self.every == 0 or self.stop.asked is not None
        if asked and not _validation_follows(trainer):
            self._save(trainer)
        self.stop.check()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Learns how many batches all ranks have of each loader."""
        self._common = [
            min(counts) for counts in zip(*on_all(trainer.num_val_batches), strict=True)
        ]

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Stops inside a validation without writing: the last write is of a step before it."""
        if batch_idx < self._common[dataloader_idx]:  # else another rank has none at this time
            self._heed()

    def on_validation_epoch_end(self, *_: Any) -> None:
        """Stops before the fitting, too, for which the other ranks wait."""
        self._heed()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Writes what the validation found."""
        if not trainer.sanity_checking:
            self._save(trainer)
        self._heed()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Writes the last state."""
        self._save(trainer)
        self._heed()
        self.stop.deferred = False

    def _heed(self) -> None:
        """Stops if a signal came to any rank; all ranks come here together."""
        if self.stop.several:
            self.stop.agree(summed(self.stop.heard))
        self.stop.check()

    def _save(self, trainer: L.Trainer) -> None:
        trainer.save_checkpoint(self.path, weights_only=False)


def _validation_follows(trainer: L.Trainer) -> bool:
    """Whether Lightning validates before the next step, as its loop decides a moment later."""
    loop = trainer.fit_loop
    assert loop._data_fetcher is not None
    return loop.epoch_loop._should_check_val_fx(loop._data_fetcher)


class PlainProgress(ProgressBar):
    """One line about every half minute, and one per validation."""

    def __init__(self, seconds: float = 30.0) -> None:
        super().__init__()
        self.seconds = seconds
        self._start = self._last = time.monotonic()

    def disable(self) -> None:
        """Nothing to do: lines are never redrawn."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._start = self._last = time.monotonic()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        """Prints the step, the loss and the speed."""
        now = time.monotonic()
        if now - self._last < self.seconds:
            return
        self._last = now
        line = f"step {trainer.global_step}/{pl_module.total_steps}"
        line += f"  {(now - self._start) / 60:.1f} min"
        values = trainer.logged_metrics
        if "train_loss/total" in values:
            line += f"  loss {float(values['train_loss/total']):.3f}"
            line += f"  {float(values['speed/tokens_per_second']):.0f} tokens/s"
        print(line, flush=True)

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Prints every task's main metric."""
        if pl_module.evaluation is None:
            return
        parts = [
            f"{task} {name} {100 * value:.2f}"
            for task, (name, value) in (
                (t, main_metric(m)) for t, m in pl_module.evaluation.tasks.items()
            )
        ]
        routing = pl_module.evaluation.gate["routing_accuracy"]
        print(
            f"validation at step {trainer.global_step}: {', '.join(parts)}, "
            f"routing {100 * routing:.2f}",
            flush=True,
        )


def training_callbacks(
    config: ExperimentConfig, folder: Path, trainer: dict[str, Any], stop: StopSignals
) -> list[Callback]:
    """What a run needs beside its model: pictures, progress, checkpoints, patience.

    Args:
        config: Of the run.
        folder: Of the run.
        trainer: Arguments of the Trainer.
        stop: Signals that end the run after a step.
    """
    checkpoints = folder / "checkpoints"
    callbacks: list[Callback] = [Pictures()]
    if trainer.get("enable_progress_bar") is not False:
        callbacks.append(TQDMProgressBar() if sys.stderr.isatty() else PlainProgress())
    if trainer.get("enable_checkpointing") is not False:
        best = ModelCheckpoint(
            dirpath=checkpoints,
            filename="best",
            monitor="val/joint_score",
            mode="max",
            save_weights_only=True,
            enable_version_counter=False,
            # Else at the end of an epoch, after `last.ckpt` was written without what it found.
            save_on_train_epoch_end=False,
        )
        callbacks += [
            best,
            LastCheckpoint(checkpoints / LAST, every=config.checkpoint_every, stop=stop),
        ]
    if config.patience is not None:
        callbacks.append(
            EarlyStopping(
                monitor="val/joint_score",
                mode="max",
                patience=config.patience,
                check_on_train_epoch_end=False,
            )
        )
    return callbacks
