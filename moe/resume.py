"""Where a run that was stopped goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from moe.checkpoint_io import take_up
from moe.types import InputError


def last_state(folder: Path, tasks: list[dict[str, Any]], total_steps: int) -> Path | int | None:
    """The checkpoint to go on from; the steps of a finished run; None to begin again.

    Args:
        folder: Of the run.
        tasks: As its checkpoints hold them.
        total_steps: Optimizer steps of the whole run.

    Raises:
        InputError: The run was of other tasks, or has damaged checkpoints alone.
    """
    found = take_up(folder / "checkpoints")
    if found is None:
        print(f"{folder} has no checkpoint yet: beginning")
        return None
    path, saved = found
    # The optimizer's state is kept by number: other tasks would get each other's moments.
    if saved["mixture"]["tasks"] != tasks:
        raise InputError(
            f"--resume: the tasks of config.yaml and its data are not those that {path} was "
            "trained on: restore them, or start a new run"
        )
    return int(saved["global_step"]) if _is_finished(saved, total_steps) else path


def _is_finished(saved: dict[str, Any], total_steps: int) -> bool:
    """Whether a run has all its steps, or ran out of patience."""
    states = saved["callbacks"].items()
    early = [state for name, state in states if name.startswith("EarlyStopping")]
    ran_out = any(state["wait_count"] >= state["patience"] for state in early)
    return ran_out or int(saved["global_step"]) >= total_steps
