"""Answers a file that may be larger than memory through Lightning's `predict`."""

from __future__ import annotations

import logging
import sys
import time
import warnings
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import BasePredictionWriter, Callback
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from tqdm import tqdm

from moe import MixtureOfExperts
from moe.batch_files import (
    FileWindow,
    FileWindows,
    Job,
    Summary,
    count_lines,
    join,
    json_line,
    prepare,
)
from moe.precision import pick_device
from moe.predict import MixtureOfExperts as TorchPredictor
from moe.predictor import Predictor
from moe.request_files import count_rows, read_rows
from moe.requests import Request
from moe.streams import WINDOW
from moe.types import InputError


class FilePredictor(L.LightningModule):
    """The predictor as Lightning wants it.

    Args:
        predictor: Answers the windows.
        job: The file.
        done: Windows that each device has finished already.
    """

    def __init__(self, predictor: Predictor, job: Job, done: Sequence[int]) -> None:
        super().__init__()
        if isinstance(predictor, TorchPredictor):
            self.mixture = predictor.model  # registered, so that it is moved to the device
        self.predictor = predictor
        self.job = job
        self.done = tuple(done)

    def predict_dataloader(self) -> FileWindows:
        """The windows of this process."""
        rank = self.trainer.global_rank
        return FileWindows(self.job, self._parse, device=rank, done=self.done[rank])

    def _parse(self, value: Any) -> Request:
        return self.predictor.parse(value, self.job.tasks)

    def transfer_batch_to_device(self, batch: FileWindow, *_: Any) -> FileWindow:
        """Nothing to move: a window holds text."""
        return batch

    def on_predict_start(self) -> None:
        """Tells the predictor where its model went."""
        if isinstance(self.predictor, TorchPredictor):
            self.predictor.device = self.device

    def predict_step(self, batch: FileWindow, *_: Any) -> list[dict[str, Any]]:
        """The answers of a window."""
        return self.predictor.answer(batch.requests, explain=self.job.explain)


class AnswerWriter(BasePredictionWriter):
    """Appends the answers of a window to the part file of its device, whole lines only."""

    def __init__(self, parts: Sequence[Path]) -> None:
        super().__init__("batch")
        self.parts = tuple(parts)

    def write_on_batch_end(
        self, trainer: L.Trainer, pl_module: Any, prediction: Any, *_: Any
    ) -> None:
        """Writes and closes, so that a killed process leaves what it has answered."""
        with self.parts[trainer.global_rank].open("ab") as file:
            file.write(b"".join(map(json_line, prediction)))

    def on_exception(self, trainer: L.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Ctrl-C ends with its own exit code."""
        if isinstance(exception, KeyboardInterrupt):
            print("stopped; --resume goes on", file=sys.stderr)
            raise SystemExit(130) from exception


class RowProgress(Callback):
    """A bar on a terminal, a line now and then elsewhere; both on stderr.

    Args:
        total: About how many rows there are.
        seconds: Between two lines.
    """

    def __init__(self, total: int, seconds: float = 10.0) -> None:
        self.total = total
        self.seconds = seconds
        self._bar: Any = None
        self._initial = 0
        self._start = self._last = 0.0

    def on_predict_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Begins where an earlier run was stopped."""
        self._start = self._last = time.monotonic()
        self._initial = sum(pl_module.done) * WINDOW
        if trainer.is_global_zero and sys.stderr.isatty():
            self._bar = tqdm(total=self.total, initial=self._initial, unit="row")

    def on_predict_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: FileWindow, *_: Any
    ) -> None:
        """Shows how far the file has been read."""
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(batch.rows - self._bar.n)
        elif trainer.is_global_zero and now - self._last >= self.seconds:
            self._last = now
            rate = (batch.rows - self._initial) / (now - self._start)
            print(f"{batch.rows} of {self.total} rows, {rate:.1f} rows/s", file=sys.stderr)

    def on_predict_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Ends the bar."""
        if self._bar is not None:
            self._bar.close()


def job_from(arguments: Namespace) -> Job:
    """The job of a command line of `scripts/predict.py`."""
    return Job(
        ckpt=arguments.ckpt,
        input=Path(arguments.input),
        output=Path(arguments.output),
        error_file=Path(arguments.error_file) if arguments.error_file else None,
        tasks=tuple(arguments.tasks) if arguments.tasks else None,
        explain=arguments.explain,
        backend=arguments.backend,
        device=arguments.device,
        devices=arguments.devices,
        resume=arguments.resume,
    )


def predict_file(job: Job) -> Summary:
    """Answers all good rows of a file; the output appears when all are done.

    Raises:
        InputError: A file cannot be read or written, a stopped run is in the way, or the run to
            go on with was another one.
    """
    if job.resume and job.output.exists() and not job.state.exists():
        return Summary(
            answered=count_lines(job.output), bad=count_lines(job.errors), computed=0, seconds=0.0
        )
    total = count_rows(job.input)
    next(read_rows(job.input), None)  # a wrong header is found before a run begins
    predictor = _load(job)
    with warnings.catch_warnings():
        _quiet()
        trainer = _trainer(job, [AnswerWriter(job.parts), RowProgress(total)])
        done = prepare(job)
        start = time.monotonic()
        trainer.predict(FilePredictor(predictor, job, done), return_predictions=False)
    seconds = time.monotonic() - start
    answered = join(job)
    return Summary(
        answered=answered,
        bad=count_lines(job.errors),
        computed=answered - sum(done) * WINDOW,
        seconds=seconds,
    )


def _load(job: Job) -> Predictor:
    predictor: Predictor
    if job.backend == "torch":
        # On the CPU: Lightning moves it to the device of each process.
        predictor = MixtureOfExperts.from_pretrained(job.ckpt, "cpu")
    elif job.devices > 1 or job.device is not None:
        raise InputError("--device, --devices: --backend onnx computes on the CPU alone")
    else:
        predictor = MixtureOfExperts.from_pretrained(job.ckpt, backend="onnx")
    known = sorted(task.name for task in predictor.tasks)
    for name in job.tasks or ():
        if name not in known:
            raise InputError(f"--tasks: no task {name!r}; the model has {known}")
    return predictor


def _trainer(job: Job, callbacks: list[Callback]) -> L.Trainer:
    try:
        device = pick_device(job.device)
        numbered = device.type != "cpu" and device.index is not None
        if numbered and job.devices > 1:
            raise ValueError(f"{job.device} is one device, not {job.devices}")
        return L.Trainer(
            accelerator=device.type,
            devices=[device.index] if numbered else job.devices,
            # Spawned processes begin in this module and not with the caller's program.
            strategy="auto" if job.devices == 1 else "ddp_spawn",
            callbacks=callbacks,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
    except (MisconfigurationException, ValueError, RuntimeError) as error:
        raise InputError(f"--device {job.device}: {' '.join(str(error).split())}") from error


def _quiet() -> None:
    """Silences what Lightning says at every start and no user can act on."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    for message in ("LeafSpec", "Couldn't infer the batch indices"):
        warnings.filterwarnings("ignore", message=f".*{message}.*")
