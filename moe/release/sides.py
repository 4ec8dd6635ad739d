"""The two models of a comparison, in any form in which one can be served.

`best.ckpt`, a folder of `save_pretrained`, an export, `EXPORT@int8`, `models/NAME` for what is
current there, or `models/NAME/v2`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe.predictor import Predictor
from moe.release.hashing import model_files, model_hash
from moe.release.registry import CURRENT, MANIFEST, Registry, verify
from moe.types import InputError

_PRECISIONS = ("fp32", "int8")


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a model lies and what computes it.

    Attributes:
        path: A checkpoint or a folder.
        backend: `torch` or `onnx`.
        precision: Asked of an export; None lets it choose.
    """

    path: Path
    backend: str
    precision: str | None = None


@dataclass(frozen=True, kw_only=True)
class Side:
    """A loaded model.

    Attributes:
        source: As it was named.
        model: What answers.
        backend: `torch` or `onnx`.
        precision: Of an export.
        hash: SHA-256 of its files.
        size: Of its files, in bytes.
    """

    source: str
    model: Predictor
    backend: str
    precision: str | None
    hash: str
    size: int

    @property
    def bundle(self) -> Any:
        """Tokenizer, fitted numbers and, of an export, the graph."""
        return self.model.bundle  # type: ignore[attr-defined]

    @property
    def experts(self) -> tuple[str, ...]:
        """Names of the experts that the model says it has."""
        return tuple(name for task in self.model.tasks for name in task.expert_names)

    def describe(self) -> dict[str, Any]:
        """What a report says of it."""
        names = ("source", "backend", "precision", "hash", "size")
        return {name: getattr(self, name) for name in names}


def locate(source: str) -> Place:
    """Where a side lies.

    Raises:
        InputError: There is nothing at that path, or a registry has no current version.
    """
    name, _, precision = source.rpartition("@")
    if name and precision in _PRECISIONS and not Path(source).exists():
        return _located(Path(name), precision)
    return _located(Path(source), None)


def _located(path: Path, precision: str | None) -> Place:
    if (path / CURRENT).is_symlink():
        current = Registry(path).current()
        assert current is not None
        path = current
    if (path / MANIFEST).is_file():
        manifest = verify(path)
        precision = precision or manifest.precision
        return Place(path=path / manifest.model, backend=manifest.backend, precision=precision)
    if not path.exists():
        raise InputError(
            f"{path}: no model there: expected a .ckpt, a folder, an export of scripts/export.py, "
            "or a registry's models/NAME"
        )
    is_export = path.is_dir() and any(path.glob("*.onnx"))
    if precision is not None and not is_export:
        raise InputError(f"{path}@{precision}: only an export of scripts/export.py has a precision")
    return Place(path=path, backend="onnx" if is_export else "torch", precision=precision)


def load_side(source: str, device: str | None = None) -> Side:
    """Loads a side.

    Args:
        source: See the module.
        device: Of a torch model; None takes a GPU if there is one.

    Raises:
        InputError: It is missing, damaged, or of another format version.
    """
    place = locate(source)
    return load_place(place, source, device)


def load_place(place: Place, source: str, device: str | None = None) -> Side:
    """Loads the model of a place that was found."""
    from moe import MixtureOfExperts

    model: Any
    if place.backend == "onnx":
        precision: Any = place.precision
        model = MixtureOfExperts.from_pretrained(place.path, backend="onnx", precision=precision)
    else:
        model = MixtureOfExperts.from_pretrained(place.path, device)
    files = model_files(place.path).values()
    return Side(
        source=source,
        model=model,
        backend=place.backend,
        precision=model.bundle.precision if place.backend == "onnx" else None,
        hash=model_hash(place.path),
        size=sum(file.stat().st_size for file in files),
    )
