"""What was done to a checkpoint since it was trained: the entries, and how they are made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from moe.bricks.proof import Difference, difference, digests
from moe.bricks.tasks import with_counted_experts
from moe.checkpoint import Bundle


@dataclass(frozen=True, kw_only=True)
class Changed:
    """A new bundle, and what makes it another one.

    Attributes:
        bundle: With its history longer by one entry.
        difference: Of its tensors and fitted numbers from those of the old one.
        notes: What else is worth a line.
    """

    bundle: Bundle
    difference: Difference
    notes: tuple[str, ...] = ()


def record(
    before: Bundle,
    after: Bundle,
    *,
    operation: str,
    about: Mapping[str, Any],
    data: Mapping[str, Any] | None = None,
    notes: tuple[str, ...] = (),
) -> Changed:
    """The bundle with its new entry in the history.

    Args:
        before: What the operation started from.
        after: What it made.
        operation: Its name.
        about: Its arguments, plain values.
        data: Where its rows came from.
        notes: What else is worth a line.
    """
    after = with_counted_experts(after)
    found = difference(digests(before), digests(after))
    entry = {
        "operation": operation,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "about": dict(about),
        "data": None if data is None else dict(data),
        "metrics_before": before.metrics.get("tasks", {}),
        "metrics_after": after.metrics.get("tasks", {}),
        "tensors": found.counts(),
        "notes": list(notes),
    }
    # Kept as the operation found it: an operation may not shorten the past.
    after = replace(after, history=(*before.history, entry))
    return Changed(bundle=after, difference=found, notes=notes)
