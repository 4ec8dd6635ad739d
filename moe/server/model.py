"""What the server needs of a model, and the two predictors that give it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from moe.release.expect import failures
from moe.release.hashing import model_hash
from moe.release.registry import Registry, verify
from moe.requests import Request, parse_request
from moe.server.settings import Settings
from moe.types import InputError, TaskSpec


@dataclass(frozen=True, kw_only=True)
class Served:
    """A loaded model.

    Attributes:
        name: For people: the last part of its path.
        backend: `torch` or `onnx`, for people.
        tasks: What it can answer.
        answer: Answers checked requests, in order.
        count_tokens: What each of some requests costs: tokens of all its windows.
        hash: SHA-256 of its files, None of a model by hub name.
    """

    name: str
    backend: str
    tasks: tuple[TaskSpec, ...]
    answer: Callable[[Sequence[Request]], Sequence[dict[str, Any]]]
    count_tokens: Callable[[Sequence[Request]], list[int]]
    hash: str | None = None

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
    if settings.registry is not None:
        current = Registry(settings.registry).current()
        if current is None:
            raise InputError(
                f"--registry {settings.registry}: no version is current: promote one with "
                "scripts/gate.py promote"
            )
        return load_version(current, settings)
    source = settings.onnx or settings.checkpoint
    assert source is not None
    backend = "torch" if settings.onnx is None else "onnx"
    served = _load(source, backend, settings.precision, settings)
    served.warm_up()
    return served


def load_version(folder: Path, settings: Settings) -> Served:
    """Loads a version of a registry, and asks it the canaries that it was promoted with.

    Raises:
        InputError: A file is not the one that was promoted, or a canary is not answered as it was
            then.
    """
    manifest = verify(folder)
    if manifest.backend == "onnx" and settings.device is not None:
        raise InputError(f"{folder}: an export computes on the CPU, got --device {settings.device}")
    source = str(folder / manifest.model)
    served = _load(source, manifest.backend, manifest.precision, settings)
    served = replace(served, name=f"{folder.parent.name}/{folder.name}", hash=manifest.hash)
    served.warm_up()
    for canary in manifest.canaries:
        request = parse_request(dict(canary["request"]), served.tasks)
        wrong = failures(canary["expect"], served.answer([request])[0])
        if wrong:
            raise InputError(f"{folder}: canary {request.text[:60]!r}: {'; '.join(wrong)}")
    return served


def _load(source: str, backend: str, precision: Any, settings: Settings) -> Served:
    from moe import MixtureOfExperts

    model: Any
    if backend == "onnx":
        model = MixtureOfExperts.from_pretrained(
            source, backend="onnx", precision=precision, threads=settings.threads
        )
    else:
        import torch

        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        model = MixtureOfExperts.from_pretrained(source, settings.device)
    return Served(
        name=_name(source),
        backend=backend,
        tasks=model.tasks,
        answer=_answering(model, settings),
        count_tokens=model.count_tokens,
        hash=model_hash(Path(source)) if Path(source).exists() else None,
    )


def _answering(model: Any, settings: Settings) -> Callable[..., Sequence[dict[str, Any]]]:
    """With telemetry each answer holds what the gate saw; the service takes it out again."""
    if settings.telemetry is None:
        answer: Callable[..., Sequence[dict[str, Any]]] = model.answer
        return answer
    return partial(model.answer, explain="embedding" if settings.telemetry_embeddings else True)


def _name(source: str) -> str:
    """`local` for `.../runs/local/version_0/checkpoints/best.ckpt`, else the last part."""
    path = Path(source)
    if path.parent.name == "checkpoints" and len(path.parents) > 3:
        return path.parents[2].name
    return path.name
