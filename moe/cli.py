"""The command line of training: one typed config plus `--trainer.*`; mistakes become one line."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe.config import ExperimentConfig
from moe.types import InputError, NonFiniteError

if TYPE_CHECKING:  # `run` is for programs, too, that answer without torch
    from jsonargparse import ArgumentParser, Namespace

# What the program sets itself: its own logger, callbacks and sampler.
_OWN = {"logger", "callbacks", "plugins", "use_distributed_sampler", "model_registry", "profiler"}


def training_parser() -> ArgumentParser:
    """The command line of `train.py`: the config's fields, `--trainer.*`, `--resume`."""
    import lightning as L
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(
        prog="train.py",
        description="Trains one model for all tasks of the config. Later arguments win.",
        exit_on_error=False,
    )
    parser.add_argument("--config", action="config", help="YAML file; may be given several times")
    parser.add_argument("--resume", type=str | None, default=None, help="run folder to go on with")
    parser.add_class_arguments(ExperimentConfig)
    parser.add_class_arguments(L.Trainer, "trainer", skip=_OWN, instantiate=False)
    parser.set_defaults(
        {
            "trainer.max_epochs": 3,
            # Thresholds fitted on a few rows mean nothing.
            "trainer.num_sanity_val_steps": 0,
            "trainer.enable_model_summary": False,
            "trainer.log_every_n_steps": 10,
            "trainer.devices": 1,
        }
    )
    return parser


def parse_training(arguments: list[str]) -> tuple[ExperimentConfig, Namespace]:
    """The typed config, and all values with their defaults.

    Raises:
        InputError: An unknown key, a value of the wrong type or outside its range.
    """
    from jsonargparse import ArgumentError

    parser = training_parser()
    try:
        values = parser.parse_args(arguments)
        parsed = parser.instantiate(values)
    except ArgumentError as error:
        raise InputError(" ".join(str(error).split())) from error
    names = (
        "tasks",
        "model",
        "data",
        "optimizer",
        "seed_everything",
        "checkpoint_every",
        "patience",
    )
    return ExperimentConfig(**{name: parsed[name] for name in names}), values


def output_file(path: str) -> str:
    """Argument type: a file in a folder that is there, asked before hours of work and not after."""
    folder = Path(path).absolute().parent
    if not os.access(folder, os.W_OK | os.X_OK) or Path(path).is_dir():
        raise argparse.ArgumentTypeError(f"{path!r} cannot be written: expected a file in a folder")
    return path


def series_parser(description: str | None, config: Path) -> argparse.ArgumentParser:
    """What programs share that train from one config several times.

    Args:
        description: Of the program.
        config: The default of `--config`.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default=str(config))
    parser.add_argument("--data.root", dest="root", help="folder of relative sources")
    parser.add_argument("--out", required=True, type=Path, help="folder of runs and report.json")
    return parser


def series_arguments(values: argparse.Namespace) -> list[str]:
    """Arguments of `train.py` that all trainings of such a series have."""
    root = ["--data.root", values.root] if values.root else []
    return ["--config", values.config, *root]


def save_arguments(values: Namespace, path: Path) -> None:
    """Writes the resolved values as YAML that `--config` reads back."""
    kept = values.clone()
    for name in ("config", "resume"):
        kept.pop(name, None)
    # Without its nulls a file would fall back to defaults that are none.
    text = training_parser().dump(kept, skip_unset=False)
    path.write_text(text, encoding="utf-8")


def run(main: Callable[[], Any]) -> None:
    """Runs an entry point; a foreseen error becomes one line on stderr and its exit code.

    2 is the user's mistake, 3 a training that met non-finite numbers, 130 Ctrl-C.
    """
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except (InputError, NonFiniteError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, InputError) else 3)
