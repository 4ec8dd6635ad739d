"""What `scripts/monitor.py` does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from moe.checkpoint import Bundle, load_bundle
from moe.measure import build_test_tables, collect_table, write_json
from moe.monitor.drift import DriftConfig, watch_traffic
from moe.monitor.pictures import write_tensorboard
from moe.monitor.reading import read_traffic
from moe.monitor.report import summary, to_json, write_html
from moe.profile import Profile, validation_profile
from moe.types import InputError


def fit(ckpt: str, out: str, root: str | None = None) -> None:
    """Writes the profile of a checkpoint's validation rows, for one that was saved without.

    Args:
        ckpt: Checkpoint, folder or hub id.
        out: File to write, `.npz`.
        root: Folder of relative sources; None is that of the training.
    """
    bundle = load_bundle(ckpt)
    tables = build_test_tables(bundle, (), root)
    answers = [collect_table(bundle, table, torch.device("cpu")) for table in tables]
    profile = validation_profile(tables, answers, bundle.calibration, bundle.model.tasks)
    with Path(out).open("wb") as file:
        np.savez(file, **profile.arrays())  # type: ignore[arg-type]
    print(f"{len(profile)} validation rows in {out}")


def read_profile(path: str) -> Profile:
    """What `fit` wrote.

    Raises:
        InputError: It cannot be read.
    """
    try:
        with np.load(path) as saved:
            return Profile.from_arrays(saved)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"--reference {path}: cannot be read ({' '.join(str(error).split())[:120]}): write one "
            "with --fit, or name a folder of telemetry"
        ) from error


def find_reference(bundle: Bundle, ckpt: str, reference: str | None, model: str | None) -> Profile:
    """What traffic is compared with: given, or the validation in the checkpoint."""
    if reference is not None and Path(reference).is_dir():
        return read_traffic(reference, bundle.model.tasks, model).profile
    if reference is not None:
        return read_profile(reference)
    if bundle.profile is None:
        raise InputError(
            f"{ckpt}: saved without a profile of its validation: write one with --fit FILE.npz and "
            "give it as --reference, or name a folder of telemetry from a good time"
        )
    return bundle.profile


def watch(
    ckpt: str,
    telemetry: str,
    *,
    reference: str | None = None,
    model: str | None = None,
    window: int = 500,
    alpha: float = 0.01,
    horizon: int = 20,
    html: str | None = None,
    json: str | None = None,
    tensorboard: str | None = None,
) -> int:
    """Compares traffic with the reference, prints the alerts; 1 if there is one.

    Args:
        ckpt: The checkpoint that was served.
        telemetry: Folder of `TelemetryWriter`.
        reference: A file of `fit`, or a folder of telemetry; None is the checkpoint's own.
        model: Hash of the model to watch; None takes the one that answered last.
        window, alpha, horizon: Of `DriftConfig`.
        html, json, tensorboard: Where reports go.
    """
    is_sample = reference is not None and Path(reference).is_dir()
    config = DriftConfig(window=window, alpha=alpha, horizon=horizon, known_mix=not is_sample)
    bundle = load_bundle(ckpt)
    specs = bundle.model.tasks
    expected_rows = find_reference(bundle, ckpt, reference, model)
    traffic = read_traffic(telemetry, specs, model)
    windows = watch_traffic(expected_rows, traffic, specs, config)
    kept = expected_rows.task_N[~expected_rows.abstained_N]
    counts = np.bincount(kept, minlength=len(specs)) / max(len(kept), 1)
    expected = {spec.name: float(share) for spec, share in zip(specs, counts, strict=True)}
    if html is not None:
        write_html(windows, traffic, config, expected, Path(html))
    if json is not None:
        write_json(to_json(windows, traffic, config), json)
    if tensorboard is not None:
        write_tensorboard(windows, expected, Path(tensorboard))
    print(summary(windows, traffic))
    return int(any(found.alerts for found in windows))
