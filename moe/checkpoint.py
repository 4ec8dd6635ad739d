"""The checkpoint is the model: one file or folder that loads offline, strictly, without code.

A `.ckpt` is a Lightning checkpoint with the entry `mixture`; a folder has the Hugging Face layout
(`config.json`, `model.safetensors`, `tokenizer.json`, `README.md`). Both hold the same.
"""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import DistilBertModel

from moe.calibration import Calibration
from moe.config import ExperimentConfig, config_from_dict
from moe.data.windows import TextTokenizer
from moe.encoder import build_encoder
from moe.model import Mixture, build_model
from moe.profile import Profile
from moe.types import InputError, TaskSpec

FORMAT_VERSION = 2
MODEL_TYPE = "mixture-of-experts"
_REFERENCE, _PROFILE = "reference.", "profile."  # of names in model.safetensors: no weights


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
        profile: The rows of that validation as numbers, None in older checkpoints.
    """

    model: Mixture
    tokenizer: TextTokenizer
    config: ExperimentConfig
    calibration: Calibration
    precision: str
    metrics: dict[str, Any]
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


def profile_tensors(profile: Profile | None) -> dict[str, Tensor]:
    """The arrays of a profile, for a checkpoint."""
    return {} if profile is None else {k: torch.from_numpy(v) for k, v in profile.arrays().items()}


def load_profile(saved: Mapping[str, Tensor] | None) -> Profile | None:
    """What `profile_tensors` gave; None of a checkpoint without."""
    return Profile.from_arrays({k: v.numpy() for k, v in saved.items()}) if saved else None


def _check_version(saved: dict[str, Any], path: Path) -> None:
    version = saved.get("format_version")
    if version != FORMAT_VERSION:
        raise InputError(
            f"{path}: checkpoint format version {version!r}, this program reads {FORMAT_VERSION}: "
            "use the release that wrote it, or train again"
        )


def _assemble(saved: dict[str, Any], state: dict[str, Tensor], path: Path) -> Bundle:
    _check_version(saved, path)
    try:
        config = config_from_dict(saved["config"])
        tasks = [TaskSpec(**{**t, "labels": tuple(t["labels"])}) for t in saved["tasks"]]
        model = build_model(config.model, tasks, build_encoder(saved["encoder"]))
        model.load_state_dict(state, strict=True)
        tokenizer = TextTokenizer.from_json(saved["tokenizer"])
        calibration = Calibration.from_saved(
            saved["calibration"],
            {name: kept.float().numpy() for name, kept in saved.get("reference", {}).items()},
        )
        profile = load_profile(saved.get("profile"))
        if model.multi_task_threshold is None:
            model.multi_task_threshold = calibration.second_task
    except (KeyError, TypeError, RuntimeError) as error:
        reason = str(error).splitlines()
        raise InputError(
            f"{path}: not a complete checkpoint of this project ({' '.join(reason[:3])})"
        ) from error
    return Bundle(
        model=model.eval(),
        tokenizer=tokenizer,
        config=config,
        calibration=calibration,
        precision=saved["precision"],
        metrics=saved["metrics"],
        profile=profile,
    )


def read_lightning(path: Path) -> dict[str, Any]:
    """The content of a `.ckpt`, read without running code.

    Raises:
        InputError: The file is missing, truncated, or not a checkpoint of this project.
    """
    if not path.is_file():
        raise InputError(f"no checkpoint at {path}: expected a .ckpt file or a folder")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (
        RuntimeError,
        EOFError,
        OSError,
        ValueError,
        pickle.UnpicklingError,
        zipfile.BadZipFile,
    ) as error:
        raise InputError(
            f"{path}: cannot be read as a checkpoint, it may be truncated or hold more than "
            f"weights ({str(error).splitlines()[0][:120] if str(error) else type(error).__name__})"
        ) from error
    if not isinstance(content, dict) or "mixture" not in content:
        raise InputError(f"{path}: a checkpoint, but not of this project (no entry 'mixture')")
    return content


def _load_folder(folder: Path) -> Bundle:
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        if not (folder / name).is_file():
            raise InputError(f"{folder}: no {name}: expected a folder that save_pretrained wrote")
    try:
        saved = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        state = load_file(folder / "model.safetensors")
    except (json.JSONDecodeError, SafetensorError) as error:
        raise InputError(f"{folder}: cannot be read ({error})") from error
    for key, prefix in (("reference", _REFERENCE), ("profile", _PROFILE)):
        names = [name for name in state if name.startswith(prefix)]
        saved[key] = {name.removeprefix(prefix): state.pop(name) for name in names}
    saved["tokenizer"] = (folder / "tokenizer.json").read_text(encoding="utf-8")
    return _assemble(saved, state, folder)


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(name))
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
        return _load_folder(path)
    if path.exists() or path.suffix == ".ckpt":
        content = read_lightning(path)
        state = {
            name.removeprefix("model."): tensor for name, tensor in content["state_dict"].items()
        }
        return _assemble(content["mixture"], state, path)
    return _load_folder(_download(str(source)))


def save_bundle(bundle: Bundle, folder: str | Path) -> None:
    """Writes the Hugging Face layout; an existing folder is filled, other files stay."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    model = bundle.model
    saved = identity(bundle.config, model.tasks, model.encoder, bundle.tokenizer, bundle.precision)
    tokenizer = saved.pop("tokenizer")
    content = {
        "model_type": MODEL_TYPE,
        **saved,
        "calibration": bundle.calibration.to_dict(),
        "metrics": bundle.metrics,
    }
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    state |= {_REFERENCE + k: v for k, v in reference_tensors(bundle.calibration).items()}
    state |= {_PROFILE + k: v for k, v in profile_tensors(bundle.profile).items()}
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
