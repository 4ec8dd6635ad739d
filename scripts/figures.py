"""Saves a run's pictures as files: `python scripts/figures.py RUN_DIR OUT_DIR`.

Each picture of the last validation as TensorBoard has it, and `load.png`: how the gate spread the
rows over the experts during training. Nothing is computed again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from moe.cli import run
from moe.types import InputError

SMOOTHED = 10  # logged steps in a moving average: a step has few rows of each expert


def load_over_training(events: EventAccumulator, path: Path) -> None:
    """Draws the share of (row, expert) pairs of each expert over the optimizer steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.0, 4.5), dpi=100, layout="constrained")
    axes = figure.subplots()
    for tag in events.Tags()["scalars"]:
        if tag.startswith("gate_load/"):
            steps, load = np.array([(e.step, e.value) for e in events.Scalars(tag)]).T
            width = min(SMOOTHED, len(load))
            smooth = np.convolve(load, np.full(width, 1 / width), mode="valid")
            axes.plot(steps[width - 1 :], 100 * smooth, label=tag.removeprefix("gate_load/"))
    axes.set(xlabel="optimizer step", ylabel="share of the chosen experts (%)", ylim=(0, None))
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.legend()
    figure.savefig(path)


def save_figures(run_folder: Path, out: Path) -> list[Path]:
    """The files written from the event file of `run_folder`.

    Raises:
        InputError: The run has no pictures.
    """
    events = EventAccumulator(str(run_folder), size_guidance={"images": 0, "scalars": 0})
    events.Reload()
    tags = events.Tags()["images"]
    if not tags:
        raise InputError(
            f"{run_folder} has no pictures: give the folder of a run that was validated, and "
            "train with matplotlib (extra [plots])"
        )
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for tag in tags:
        path = out / f"{tag.removeprefix('pictures_').replace('/', '-')}.png"
        path.write_bytes(events.Images(tag)[-1].encoded_image_string)
        written.append(path)
    load_over_training(events, out / "load.png")
    return [*written, out / "load.png"]


def main() -> None:
    """Parses the command line, writes the files, prints their names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_folder", type=Path, help="a folder of train.py")
    parser.add_argument("out", type=Path, help="folder of the pictures")
    arguments = parser.parse_args()
    for path in save_figures(arguments.run_folder, arguments.out):
        print(path)


if __name__ == "__main__":
    run(main)
