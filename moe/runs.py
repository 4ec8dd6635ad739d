"""Run folders `runs/NAME/version_N`: where a run goes, how it is taken up again, how it ended."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from moe.types import InputError

RESULT = "result.json"
_MAY_CHANGE = {f"--trainer.{name}" for name in ("max_steps", "max_epochs", "max_time", "devices",
                                                "num_nodes")}  # fmt: skip


def config_stem(arguments: list[str]) -> str:
    """Stem of the last `--config` of a command line."""
    stem = ""
    for at, argument in enumerate(arguments):
        if argument == "--config" and at + 1 < len(arguments):
            stem = Path(arguments[at + 1]).stem
        elif argument.startswith("--config="):
            stem = Path(argument.partition("=")[2]).stem
    return stem


def new_folder(root: str | None, name: str) -> Path:
    """Creates and returns the next `ROOT/NAME/version_N`; `runs` if there is no root."""
    parent = Path(root or "runs") / name
    taken = [int(p.name[8:]) for p in parent.glob("version_*") if p.name[8:].isdecimal()]
    while True:
        folder = parent / f"version_{max(taken, default=-1) + 1}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:  # another run was first
            taken.append(int(folder.name[8:]))
        except OSError as error:
            raise InputError(
                f"cannot create the run folder {folder} ({error.strerror}): choose another with "
                "--trainer.default_root_dir"
            ) from error
        else:
            return folder


def resumed_arguments(arguments: list[str]) -> tuple[list[str], Path | None]:
    """The command line of a `--resume RUN_DIR`, with the run's own config in front.

    Returns:
        The arguments to parse, and the run folder; unchanged and None without `--resume`.

    Raises:
        InputError: The folder is no run, or something beside `--trainer.*` was changed.
    """
    run, kept = None, []
    rest = iter(arguments)
    for argument in rest:
        if argument.split("=")[0] == "--resume":
            run = argument.partition("=")[2] or next(rest, "")
        else:
            kept.append(argument)
    if run is None:
        return arguments, None
    for argument in kept:
        name = argument.split("=")[0]
        if name.startswith("--") and name not in _MAY_CHANGE:
            raise InputError(
                f"{name} cannot change when a run is resumed, only {', '.join(sorted(_MAY_CHANGE))}"
            )
    folder = Path(run)
    if not (folder / "config.yaml").is_file():
        raise InputError(f"--resume {run}: no config.yaml there, expected the folder of a run")
    return ["--config", str(folder / "config.yaml"), *kept], folder


def write_result(folder: Path, result: dict[str, Any]) -> None:
    """Leaves the outcome of a finished run beside its checkpoints, for programs to read."""
    (folder / RESULT).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def read_result(folder: Path) -> dict[str, Any]:
    """What `write_result` left: `minutes`, `steps`, and the metrics of the best checkpoint.

    Raises:
        InputError: The run is not finished, or it is no run.
    """
    try:
        result: dict[str, Any] = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise InputError(f"{folder}: no {RESULT} there, expected a finished run") from error
    return result


def finished_run(root: Path) -> Path | None:
    """The finished run `ROOT/NAME/version_N` that was written last, None without one."""
    results = sorted(root.glob(f"*/version_*/{RESULT}"), key=lambda path: path.stat().st_mtime)
    return results[-1].parent if results else None
