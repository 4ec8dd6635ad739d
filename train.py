"""Trains one model for all tasks: `python train.py [--config FILE]... [--model.X v] ...`."""

from __future__ import annotations

import sys
from pathlib import Path

from moe.cli import parse_training, run, save_arguments
from moe.runs import config_stem, new_folder, resumed_arguments

DEFAULT_CONFIG = Path(__file__).parent / "configs" / "default.yaml"


def main() -> None:
    """Parses the command line, trains, prints the final table."""
    arguments, resumed = resumed_arguments(sys.argv[1:])
    if not config_stem(arguments):
        arguments = ["--config", str(DEFAULT_CONFIG), *arguments]
    config, values = parse_training(arguments)

    from moe.launch import launch
    from moe.ranks import from_first
    from moe.training import result_table, train

    def begun() -> Path:
        folder = new_folder(values.trainer.default_root_dir, config_stem(arguments))
        save_arguments(values, folder / "config.yaml")
        return folder

    def work() -> None:
        folder = resumed or from_first(begun)
        print(f"run folder: {folder}", flush=True)
        result = train(config, trainer, folder, resume=resumed is not None)
        print(result_table(result))
        print(f"best checkpoint: {result.best}")

    trainer = values.trainer.as_dict()
    launch(trainer, work)


if __name__ == "__main__":
    run(main)
