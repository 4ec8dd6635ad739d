"""What a checkpoint is made of, and what was done to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moe.bricks.proof import part_of
from moe.checkpoint import Bundle


def parameter_counts(bundle: Bundle) -> dict[str, int]:
    """Numbers in the weights of each part."""
    counts: dict[str, int] = {}
    for name, tensor in bundle.model.state_dict().items():
        counts[part_of(name)] = counts.get(part_of(name), 0) + tensor.numel()
    return counts


def show_text(bundle: Bundle) -> str:
    """Tasks with their experts, parameters by part, remembered rows, and the history."""
    lines = [f"{'task':<14}{'type':<12}{'labels':>7}  experts"]
    for task in bundle.model.tasks:
        names = ", ".join(task.expert_names)
        lines.append(f"{task.name:<14}{task.type:<12}{len(task.labels):>7}  {names}")
    counts = parameter_counts(bundle)
    total = sum(counts.values())
    lines += ["", f"{'part':<24}{'parameters':>12}{'share':>8}"]
    lines += [f"{part:<24}{n:>12,}{n / total:>8.1%}" for part, n in sorted(counts.items())]
    lines += [f"{'together':<24}{total:>12,}", ""]
    rows = ", ".join(f"{name} {len(kept)}" for name, kept in bundle.memory.items())
    lines += [f"remembered rows: {rows or 'none'}", "", _history(bundle.history)]
    return "\n".join(lines)


def _history(history: tuple[dict[str, Any], ...]) -> str:
    if not history:
        return "history: as trained"
    lines = [f"{'when':<27}{'operation':<10}what"]
    for entry in history:
        about = ", ".join(f"{k} {_short(v)}" for k, v in entry["about"].items() if v is not None)
        lines.append(f"{entry['when']:<27}{entry['operation']:<10}{about}")
        if entry["data"] is not None:
            hashes = [(h or "hub")[:12] for h in entry["data"]["sha256"].values()]
            lines.append(f"{'':<37}{entry['data']['rows']} rows, SHA-256 {' '.join(hashes)}")
        kept = entry["tensors"]
        lines.append(f"{'':<37}tensors: {', '.join(f'{n} {k}' for k, n in kept.items())}")
        lines += [f"{'':<37}{line}" for line in _moved(entry)]
    return "\n".join(lines)


def _short(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _moved(entry: Mapping[str, Any]) -> list[str]:
    """The metrics that an operation changed, one line for each task."""
    lines = []
    before, after = entry["metrics_before"], entry["metrics_after"]
    for task in [*before, *(name for name in after if name not in before)]:
        old, new = before.get(task, {}), after.get(task, {})
        changed = [k for k in {**old, **new} if old.get(k) != new.get(k)]
        values = ", ".join(f"{k} {_number(old, k)} -> {_number(new, k)}" for k in changed)
        if values:
            lines.append(f"{task}: {values}")
    return lines


def _number(metrics: Mapping[str, float], name: str) -> str:
    return f"{metrics[name]:.4g}" if name in metrics else "none"
