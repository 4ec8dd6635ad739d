"""What the server needs of a model, and the two predictors that give it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe.requests import Request, parse_request
from moe.server.settings import Settings
from moe.types import TaskSpec


@dataclass(frozen=True, kw_only=True)
class Served:
    """A loaded model.

    Attributes:
        name: For people: the last part of its path.
        backend: `torch` or `onnx`, for people.
        tasks: What it can answer.
        answer: Answers checked requests, in order.
        count_tokens: What each of some requests costs: tokens of all its windows.
    """

    name: str
    backend: str
    tasks: tuple[TaskSpec, ...]
    answer: Callable[[Sequence[Request]], Sequence[dict[str, Any]]]
    count_tokens: Callable[[Sequence[Request]], list[int]]

    def warm_up(self) -> None:
        """Answers once, so that the first client does not wait for lazy initialisation."""
        requests: list[dict[str, Any]] = [{"text": "warm up", "context": "A short passage."}]
        if not all(task.needs_context for task in self.tasks):
            requests.append({"text": "warm up"})
        self.answer([parse_request(request, self.tasks) for request in requests])


def load(settings: Settings) -> Served:
    """Loads the model that the settings name; torch is not imported for an ONNX export.

    Raises:
        InputError: There is none, or it is damaged.
    """
    from moe import MixtureOfExperts

    model: Any
    if settings.onnx is not None:
        source, backend = settings.onnx, "onnx"
        model = MixtureOfExperts.from_pretrained(
            source, backend="onnx", precision=settings.precision, threads=settings.threads
        )
    else:
        import torch

        assert settings.checkpoint is not None
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        source, backend = settings.checkpoint, "torch"
        model = MixtureOfExperts.from_pretrained(source, settings.device)
    return Served(
        name=_name(source),
        backend=backend,
        tasks=model.tasks,
        answer=model.answer,
        count_tokens=model.count_tokens,
    )


def _name(source: str) -> str:
    """`local` for `.../runs/local/version_0/checkpoints/best.ckpt`, else the last part."""
    path = Path(source)
    if path.parent.name == "checkpoints" and len(path.parents) > 3:
        return path.parents[2].name
    return path.name
