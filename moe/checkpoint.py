"""The checkpoint is the model: one file or folder that loads offline, strictly, without code.

A `.ckpt` is a Lightning checkpoint with the entry `mixture`; a folder has the Hugging Face layout
(`config.json`, `model.safetensors`, `tokenizer.json`, `README.md`). Both hold the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, cast

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import DistilBertModel

from moe.abstain import Vectors
from moe.calibration import Calibration
from moe.checkpoint_reading import (
    FILES,
    FORMAT_VERSION,
    INCOMPLETE,
    KEPT,
    MODEL_TYPE,
    described_model,
    incomplete,
    read_folder,
    read_lightning,
    weights_of,
)
from moe.config import ExperimentConfig, config_from_dict
from moe.data.windows import TextTokenizer
from moe.durable import save
from moe.model import Mixture
from moe.profile import Profile
from moe.types import InputError, TaskSpec


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A model with everything that it needs to answer.

    Attributes:
        model: In evaluation mode, on the CPU.
        tokenizer: The encoder's.
        config: Of the run that trained it.
        calibration: Fitted temperatures and thresholds.
        precision: The Trainer's precision in training, such as `32-true` or `bf16-mixed`.
        metrics: Validation at which it was saved, in the shape of `eval.py --json`.
        memory: By task, and of the routing rows and of texts that fit no task: (X, P) embeddings of
            training rows, what the gate reads and then what its bricks read; empty without any.
        history: What was changed since training (`moe.bricks.history`).
        profile: The rows of that validation as numbers, None in older checkpoints.
    """

    model: Mixture
    tokenizer: TextTokenizer
    config: ExperimentConfig
    calibration: Calibration
    precision: str
    metrics: dict[str, Any]
    memory: Mapping[str, Vectors] = field(default_factory=dict)
    history: tuple[dict[str, Any], ...] = ()
    profile: Profile | None = None


def identity(
    config: ExperimentConfig,
    tasks: Sequence[TaskSpec],
    encoder: DistilBertModel,
    tokenizer: TextTokenizer,
    precision: str,
) -> dict[str, Any]:
    """What stays the same during training and makes a checkpoint complete; plain values only."""
    return {
        "format_version": FORMAT_VERSION,
        "config": json.loads(json.dumps(asdict(config))),
        "tasks": json.loads(json.dumps([asdict(task) for task in tasks])),
        "encoder": json.loads(encoder.config.to_json_string(use_diff=False)),
        "tokenizer": tokenizer.to_json(),
        "precision": precision,
    }


def reference_tensors(calibration: Calibration) -> dict[str, Tensor]:
    """The kept examples of the gate's abstaining, in half precision, in which they were fitted."""
    return {name: torch.from_numpy(v).half() for name, v in calibration.arrays().items()}


def memory_tensors(memory: Mapping[str, Vectors]) -> dict[str, Tensor]:
    """The remembered rows in half precision."""
    return {name: torch.from_numpy(rows_XP).half() for name, rows_XP in memory.items()}


def profile_tensors(profile: Profile | None) -> dict[str, Tensor]:
    """The arrays of a profile, for a checkpoint."""
    return {} if profile is None else {k: torch.from_numpy(v) for k, v in profile.arrays().items()}


def load_profile(saved: Mapping[str, Tensor] | None) -> Profile | None:
    """What `profile_tensors` gave; None of a checkpoint without, or with one of other numbers."""
    if not saved or "spelling_N" in saved:  # until 22 November 2026, tokens a character
        return None
    return Profile.from_arrays({k: v.numpy() for k, v in saved.items()})


def kept_tensors(bundle: Bundle) -> dict[str, Tensor]:
    """By name, the tensors that a checkpoint holds beside its weights."""
    kept = _kept(bundle)
    return {f"{kind}.{name}": tensor for kind in KEPT for name, tensor in kept[kind].items()}


def _kept(bundle: Bundle) -> dict[str, dict[str, Tensor]]:
    return {
        "reference": reference_tensors(bundle.calibration),
        "memory": memory_tensors(bundle.memory),
        "profile": profile_tensors(bundle.profile),
    }


def arrays(tensors: Mapping[str, Tensor]) -> dict[str, Vectors]:
    """What was kept in half precision, as numpy computes with it."""
    return {name: kept.float().numpy() for name, kept in tensors.items()}


def _assemble(saved: Mapping[str, Any], state: Mapping[str, Tensor], path: Path) -> Bundle:
    """The bundle of a checkpoint whose weights were found to be those of its model."""
    try:
        model = described_model(saved, state)
        model.load_state_dict(state, strict=True)
        tokenizer = _tokenizer(saved["tokenizer"], path)
        reference = arrays(saved.get("reference", {}))
        calibration = Calibration.from_saved(saved["calibration"], reference)
        if model.multi_task_threshold is None:
            model.multi_task_threshold = calibration.second_task
        return Bundle(
            model=model.eval(),
            tokenizer=tokenizer,
            config=config_from_dict(saved["config"]),
            calibration=calibration,
            precision=saved["precision"],
            metrics=saved["metrics"],
            memory=arrays(saved.get("memory", {})),
            history=tuple(saved.get("history", ())),
            profile=load_profile(saved.get("profile")),
        )
    except INCOMPLETE as error:
        raise incomplete(path, error) from error


def _tokenizer(text: str, path: Path) -> TextTokenizer:
    try:
        return TextTokenizer.from_json(text)
    except Exception as error:  # tokenizers raises nothing more specific
        raise InputError(f"{path}: its tokenizer cannot be read ({str(error)[:120]})") from error


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(name, allow_patterns=list(FILES)))
    except (OSError, HFValidationError, ValueError) as error:
        raise InputError(
            f"{name}: neither a checkpoint, nor a folder, nor to be had from the hub "
            f"({str(error).splitlines()[0]})"
        ) from error


def load_bundle(source: str | Path) -> Bundle:
    """Loads a `.ckpt`, a folder of `save_bundle`, or a hub id; strictly, on the CPU.

    Raises:
        InputError: It is missing, damaged, of another format version or not of this project.
    """
    path = Path(source)
    if path.is_dir():
        return _assemble(*read_folder(path), path)
    if path.exists() or path.suffix == ".ckpt":
        content = read_lightning(path)
        return _assemble(content["mixture"], weights_of(content, path), path)
    folder = _download(str(source))
    return _assemble(*read_folder(folder), folder)


def _content(bundle: Bundle) -> dict[str, Any]:
    """All but the weights, as the entry `mixture` of a `.ckpt` holds it."""
    model = bundle.model
    return {
        **identity(bundle.config, model.tasks, model.encoder, bundle.tokenizer, bundle.precision),
        "calibration": bundle.calibration.to_dict(),
        **_kept(bundle),
        "metrics": bundle.metrics,
        "history": list(bundle.history),
    }


def save_checkpoint(bundle: Bundle, path: str | Path) -> None:
    """Writes a `.ckpt` without optimizer state; it appears complete or not at all.

    Raises:
        InputError: It cannot be written.
    """
    path = Path(path)
    state = {f"model.{name}": tensor for name, tensor in bundle.model.state_dict().items()}
    content = {"state_dict": state, "mixture": _content(bundle)}
    try:
        save(path, lambda file: torch.save(content, cast(IO[bytes], file)))
    except OSError as error:
        raise InputError(f"--out {path}: cannot be written ({error.strerror})") from error


def save_bundle(bundle: Bundle, folder: str | Path) -> None:
    """Writes the Hugging Face layout; an existing folder is filled, other files stay."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    content = _content(bundle)
    tokenizer = content.pop("tokenizer")
    state = {name: tensor.contiguous() for name, tensor in bundle.model.state_dict().items()}
    for kind in KEPT:
        del content[kind]
    state |= kept_tensors(bundle)
    content["model_type"] = MODEL_TYPE
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(content, indent=2), encoding="utf-8")
    (folder / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
    (folder / "README.md").write_text(_model_card(bundle), encoding="utf-8")


def _model_card(bundle: Bundle) -> str:
    lines = [
        "---",
        "library_name: moe-nlp",
        f"tags: [{MODEL_TYPE}, distilbert]",
        "---",
        "",
        "# Mixture of experts over one DistilBERT",
        "",
        "| task | experts | metric | validation |",
        "| --- | --- | --- | --- |",
    ]
    for task in bundle.model.tasks:
        for name, value in bundle.metrics.get("tasks", {}).get(task.name, {}).items():
            lines.append(f"| {task.name} | {task.num_experts} | {name} | {value:.4g} |")
    for name, value in bundle.metrics.get("gate", {}).items():
        lines.append(f"| gate | | {name} | {value:.4g} |")
    lines += [
        "",
        "Measured by the validation of the training, every row through the learned gate;",
        "thresholds and temperatures were fitted on the same rows. `eval.py` measures again.",
        "",
        "```python",
        "from moe import MixtureOfExperts",
        'model = MixtureOfExperts.from_pretrained("PATH")',
        'model.predict("...")',
        "```",
        "",
    ]
    return "\n".join(lines)
