"""Reads checkpoints from anywhere: first what a file claims, then, if that is right, its weights.

Nothing here runs code or allocates more than the file holds. The order is: the file and its
SHA-256, the archive, the pickle's opcodes, shapes against the model that is described, values.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from moe.build import build_model
from moe.config import config_from_dict
from moe.durable import SUMS, check_digest
from moe.encoder import build_encoder
from moe.model import Mixture
from moe.tensors import first_non_finite, mismatch
from moe.types import InputError, TaskSpec
from moe.untrusted import (
    MAX_JSON,
    check_file,
    check_inside,
    check_torch_archive,
    read_json,
    read_text,
)

FORMAT_VERSION = 3  # since 3 experts may be added, merged and removed; 2 is read as well
READ_VERSIONS = (2, 3)
MODEL_TYPE = "mixture-of-experts"
FILES = ("config.json", "model.safetensors", "tokenizer.json")  # of a model folder, and its card
TRAINED = ("state_dict", "optimizer_states", "average")  # what must be finite
# No weights; so begin their names in model.safetensors. A profile has NaN for what is not there.
KEPT = ("reference", "memory", "profile")
_MIXTURE = {
    "format_version", "config", "tasks", "encoder", "tokenizer", "precision", "calibration",
    "reference", "memory", "profile", "metrics", "history",
}  # fmt: skip
_LIGHTNING = {
    "mixture", "guard", "average", "state_dict", "epoch", "global_step",
    "pytorch-lightning_version", "loops", "callbacks", "optimizer_states", "lr_schedulers",
}  # fmt: skip
_MAX_PARTS = 256  # encoder layers and experts; each takes 6 ms to lay out
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
INCOMPLETE = (KeyError, IndexError, TypeError, AttributeError, RuntimeError, ValueError,
               ArithmeticError, RecursionError)  # fmt: skip


def _check_version(saved: Mapping[str, Any], path: Path) -> None:
    version = saved.get("format_version")
    if version not in READ_VERSIONS:
        known = " and ".join(map(str, READ_VERSIONS))
        raise InputError(
            f"{path}: checkpoint format version {version!r}, this program reads {known}: "
            "use the release that wrote it, or train again"
        )


def _known_only(saved: Mapping[str, Any], known: set[str], path: Path) -> None:
    unknown = sorted(str(name) for name in saved if name not in known)
    if unknown:
        raise InputError(
            f"{path}: unknown entry {unknown[0][:80]!r}, known: {', '.join(sorted(known))}"
        )


def described_model(saved: Mapping[str, Any], state: Mapping[str, Any]) -> Mixture:
    """The model that a checkpoint describes, its weights not filled in.

    Args:
        saved: The entry `mixture`.
        state: Its weights, for the number of rows of the trained gate.
    """
    config = config_from_dict(saved["config"])
    tasks = [TaskSpec.from_dict(task) for task in saved["tasks"]]
    gate_rows = len(state["gate.selection_bias"])
    return build_model(config.model, tasks, build_encoder(saved["encoder"]), gate_rows)


def _check_described(saved: Mapping[str, Any], state: Mapping[str, Any], path: Path) -> None:
    """The weights are those of the model that is described; no weight is allocated for it."""
    _check_version(saved, path)
    _known_only(saved, _MIXTURE, path)
    try:
        parts = saved["encoder"]["n_layers"] + sum(task["num_experts"] for task in saved["tasks"])
        if not 0 < parts <= min(_MAX_PARTS, len(state)):
            raise InputError(
                f"{path}: {parts} encoder layers and experts for {len(state)} tensors, at most "
                f"{_MAX_PARTS} and one for each"
            )
        with torch.device("meta"):
            difference = mismatch(described_model(saved, state).state_dict(), state)
    except INCOMPLETE as error:
        raise incomplete(path, error) from error
    if difference is not None:
        raise InputError(f"{path}: its weights are not those of its model: {difference}")


def incomplete(path: Path, error: BaseException) -> InputError:
    if isinstance(error, InputError):
        said = str(error)
        return InputError(said if said.startswith(str(path)) else f"{path}: {said}")
    reason = " ".join(str(error).splitlines()[:3])[:300]
    return InputError(f"{path}: not a complete checkpoint of this project ({reason})")


def _check_finite(content: Mapping[str, Any], path: Path) -> None:
    found = first_non_finite(content)
    if found is not None:
        raise InputError(f"{path}: {found} holds a NaN or an infinity: train again")


def read_lightning(path: Path) -> dict[str, Any]:
    """The content of a `.ckpt`, read without running code, after looking at all it claims.

    Raises:
        InputError: The file is missing, damaged, not a checkpoint of this project, or made to
            harm.
    """
    if not path.exists():
        raise InputError(f"no checkpoint at {path}: expected a .ckpt file or a folder")
    check_file(path)
    try:
        digest = check_digest(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    if digest == "damaged":
        raise InputError(
            f"{path}: damaged, its SHA-256 is not the one in {SUMS} beside it: use another, or "
            f"take its line out of {SUMS} if you changed the file yourself"
        )
    check_torch_archive(path)
    claimed = _load(path, "meta")
    if not isinstance(claimed, dict) or not isinstance(claimed.get("mixture"), dict):
        raise InputError(f"{path}: a checkpoint, but not of this project (no entry 'mixture')")
    _check_described(claimed["mixture"], weights_of(claimed, path), path)
    _known_only(claimed, _LIGHTNING, path)
    content: dict[str, Any] = _load(path, "cpu")
    numbers = {name: content.get(name, {}) for name in TRAINED}
    numbers |= {name: content["mixture"].get(name, {}) for name in KEPT if name != "profile"}
    _check_finite(numbers, path)
    return content


def _load(path: Path, device: str) -> Any:
    """As torch.load; on the device `meta` tensors have shapes alone and nothing is read."""
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except (
        RuntimeError, EOFError, OSError, ValueError, TypeError, LookupError, AttributeError,
        ArithmeticError, AssertionError, MemoryError, pickle.UnpicklingError,
    ) as error:  # fmt: skip
        raise InputError(
            f"{path}: cannot be read as a checkpoint, it may be truncated or hold more than "
            f"weights ({str(error).splitlines()[0][:120] if str(error) else type(error).__name__})"
        ) from error


def weights_of(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    state = content.get("state_dict")
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise InputError(f"{path}: not a complete checkpoint of this project (no 'state_dict')")
    return {name.removeprefix("model."): tensor for name, tensor in state.items()}


def read_folder(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What a folder of `save_pretrained` holds: as in a checkpoint's `mixture`, and the weights.

    Raises:
        InputError: A file is missing, damaged, not of this project, or made to harm.
    """
    for name in FILES:
        if not (folder / name).is_file():
            raise InputError(f"{folder}: no {name}: expected a folder that save_pretrained wrote")
        check_inside(folder / name, folder)
    config, weights, tokenizer = (folder / name for name in FILES)
    saved = read_json(config)
    saved.pop("model_type", None)
    saved["tokenizer"] = read_text(tokenizer)
    claimed = _claimed_tensors(weights)
    beginnings = tuple(f"{kind}." for kind in KEPT)
    state = {name: tensor for name, tensor in claimed.items() if not name.startswith(beginnings)}
    _check_described(saved, state, folder)
    tensors = load_file(weights)
    numbers = {name: t for name, t in tensors.items() if not name.startswith("profile.")}
    _check_finite(numbers, weights)
    for kind in KEPT:
        saved[kind] = {
            name.removeprefix(f"{kind}."): tensors[name]
            for name in claimed
            if name.startswith(f"{kind}.")
        }
    return saved, {name: tensors[name] for name in state}


def _claimed_tensors(path: Path) -> dict[str, Tensor]:
    """Shapes and types of a safetensors file as tensors without memory."""
    check_file(path)
    try:
        with path.open("rb") as file:
            size = file.read(8)
        header = int.from_bytes(size, "little")
        if len(size) == 8 and header > MAX_JSON:
            raise InputError(f"{path}: claims a header of {header} bytes, more than {MAX_JSON}")
        with safe_open(path, framework="pt") as tensors:
            slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118
            return {
                name: torch.empty(s.get_shape(), dtype=_DTYPES[s.get_dtype()], device="meta")
                for name, s in slices.items()
            }
    except (SafetensorError, OSError, KeyError, RuntimeError) as error:
        raise InputError(f"{path}: cannot be read ({str(error)[:120]})") from error
