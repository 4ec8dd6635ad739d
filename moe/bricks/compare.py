"""Two checkpoints side by side: metrics, and which tensors are the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from moe.bricks.proof import difference, digests, proof_text
from moe.checkpoint import load_bundle
from moe.measure import measure

Metrics = Mapping[str, Mapping[str, float]]


def compare(
    one: str,
    two: str,
    *,
    measured: bool = False,
    tests: Sequence[str] = (),
    root: str | None = None,
) -> str:
    """A table of metrics and one of tensors.

    Args:
        one, two: Checkpoints, folders or hub ids.
        measured: Whether to measure both now; otherwise the numbers they were saved with count.
        tests: `TASK=SOURCE` to measure on; empty takes each one's validation sources.
        root: Folder of relative sources; None is the training's.
    """
    bundles = [load_bundle(source) for source in (one, two)]
    reports: list[dict[str, Any]] = [bundle.metrics for bundle in bundles]
    if measured:
        reports = [measure(source, tests=tests, root=root) for source in (one, two)]
    found = difference(*(digests(bundle) for bundle in bundles))
    tables = [metrics_text(*(report.get("tasks", {}) for report in reports)), proof_text(found)]
    changed = [name for name in (*found.changed, *found.added, *found.removed)]
    tables.append(f"{len(found.same)} of {len(found.same) + len(changed)} are SHA-256-equal")
    return "\n\n".join(tables)


def metrics_text(before: Metrics, after: Metrics) -> str:
    """Every metric of both, with the difference."""
    lines = [f"{'task':<14}{'metric':<22}{'first':>10}{'second':>10}{'change':>10}"]
    for task in dict.fromkeys([*before, *after]):
        old, new = before.get(task, {}), after.get(task, {})
        for name in dict.fromkeys([*old, *new]):
            values = [f"{m[name]:.4f}" if name in m else "-" for m in (old, new)]
            change = f"{new[name] - old[name]:+.4f}" if name in old and name in new else ""
            lines.append(f"{task:<14}{name:<22}{values[0]:>10}{values[1]:>10}{change:>10}")
    return "\n".join(lines)
