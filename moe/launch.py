"""Where a training runs: in this process, or in one process per device that work as one.

The processes are started here for the devices of one machine, or were started by torchrun or SLURM.
They are connected before the training begins, so that all agree on its folder and its checkpoint.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

import lightning as L
import torch.distributed as dist
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from moe.interrupt import SIGNALS
from moe.ranks import num_ranks
from moe.types import InputError, NonFiniteError

_PLACES = ("accelerator", "devices", "num_nodes")
_STRATEGIES = ("auto", "ddp")


def quiet() -> None:
    """Silences what Lightning says at every start and no user can act on."""
    for name in (
        "lightning.pytorch.utilities.rank_zero",
        "lightning.fabric.utilities.rank_zero",
        "lightning.fabric.utilities.distributed",
        "transformers.distributed.tensor_parallel",  # warns of layers that are not split
    ):
        logging.getLogger(name).setLevel(logging.ERROR)
    for message in (
        "LeafSpec",
        "does not have many workers",
        "exists and is not empty",
        "dataloader is not resumable",  # the plan of steps is: it starts at the global step
        "Total length of .* across ranks is zero",
        "sync_dist=True",  # what is logged is the same on every rank
    ):
        warnings.filterwarnings("ignore", message=f".*{message}.*")


def build_trainer(**arguments: Any) -> L.Trainer:
    """A Lightning Trainer; what it refuses is the user's mistake."""
    try:
        return L.Trainer(**arguments)
    except (MisconfigurationException, TypeError, ValueError) as error:
        raise InputError(f"trainer: {' '.join(str(error).split())}") from error


def exchange() -> DDPStrategy:
    """How ranks exchange gradients.

    A rank without a row for an expert finds its parameters unused; those that no rank used keep
    `grad` None, so that they do not move.
    """
    return DDPStrategy(find_unused_parameters=True, gradient_as_bucket_view=True)


def launch(trainer: dict[str, Any], work: Callable[[], None]) -> None:
    """Runs `work` once on each device, in processes that are connected; returns when all are done.

    The first process alone writes to stdout, and reports what is foreseen: errors of the user,
    numbers that are not finite.

    Args:
        trainer: Arguments of the Trainer, of which `accelerator`, `devices`, `num_nodes` and
            `strategy` say where.
        work: The whole program, from making the run folder to the final table.

    Raises:
        InputError: The devices are not there, or other processes were started than asked for.
    """
    quiet()
    probe = _several(trainer)
    if probe is None:
        return work()
    strategy, launcher = probe.strategy, probe.strategy.launcher
    if not isinstance(strategy, DDPStrategy) or not isinstance(launcher, _SubprocessScriptLauncher):
        raise InputError(f"{probe.world_size} devices: run `python train.py`, not a notebook")

    def connected() -> None:
        strategy.setup_environment()
        own = isinstance(strategy.cluster_environment, LightningEnvironment)
        _run(work, reports=probe.is_global_zero, is_child=own and probe.local_rank > 0)

    launcher.launch(connected, trainer=probe)
    for process in launcher.procs:
        process.wait()


def _several(trainer: dict[str, Any]) -> L.Trainer | None:
    """A Trainer that knows its processes; None if this one trains alone."""
    started = int(os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_STEP_NUM_TASKS") or 1)
    if started == 1 and str(trainer["devices"]) == "1" and trainer["num_nodes"] == 1:
        return None
    probe = build_trainer(
        **{name: trainer[name] for name in _PLACES}, logger=False, enable_checkpointing=False
    )
    if started > 1 and started != probe.world_size:
        raise InputError(
            f"{started} processes were started for {probe.num_devices} devices on "
            f"{probe.num_nodes} machines: set --trainer.devices to the processes of a machine and "
            "--trainer.num_nodes to the machines"
        )
    if probe.world_size == 1:
        return None
    if trainer["strategy"] not in _STRATEGIES:
        raise InputError(
            f"trainer.strategy {trainer['strategy']}: {probe.world_size} devices train with "
            f"{' or '.join(_STRATEGIES)} (docs/scale.md)"
        )
    return probe


def _run(work: Callable[[], None], *, reports: bool, is_child: bool) -> None:
    """Runs `work` as one of several.

    Args:
        work: The program.
        reports: Whether this process speaks for all.
        is_child: Whether the first process started this one. It watches its children and kills
            all if one fails; where all end alike, its own exit code says so.
    """
    try:
        if not reports:
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # until this process ends
        work()
    except SystemExit as error:
        if not is_child or error.code not in [128 + number for number in SIGNALS]:
            raise
    except (InputError, NonFiniteError) as error:
        if reports:
            raise
        if not is_child:
            sys.exit(2 if isinstance(error, InputError) else 3)
    finally:
        if num_ranks() > 1:
            dist.destroy_process_group()
