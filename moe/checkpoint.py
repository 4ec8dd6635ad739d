"""The checkpoint is the model: one file or folder that loads offline, strictly, without code.

A `.ckpt` is a Lightning checkpoint with the entry `mixture`; a folder has the Hugging Face layout
(`config.json`, `model.safetensors`, `tokenizer.json`, `README.md`). Both hold the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import DistilBertModel

from moe.calibration import Calibration
from moe.checkpoint_reading import (
    FILES,
    FORMAT_VERSION,
    INCOMPLETE,
    MODEL_TYPE,
    REFERENCE,
    described_model,
    incomplete,
    read_folder,
    read_lightning,
    weights_of,
)
from moe.config import ExperimentConfig, config_from_dict
from moe.data.windows import TextTokenizer
from moe.model import Mixture
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
    """

    model: Mixture
    tokenizer: TextTokenizer
    config: ExperimentConfig
    calibration: Calibration
    precision: str
    metrics: dict[str, Any]


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


def _assemble(saved: Mapping[str, Any], state: Mapping[str, Tensor], path: Path) -> Bundle:
    """The bundle of a checkpoint whose weights were found to be those of its model."""
    try:
        model = described_model(saved)
        model.load_state_dict(state, strict=True)
        tokenizer = _tokenizer(saved["tokenizer"], path)
        calibration = Calibration.from_saved(
            saved["calibration"],
            {name: kept.float().numpy() for name, kept in saved.get("reference", {}).items()},
        )
        if model.multi_task_threshold is None:
            model.multi_task_threshold = calibration.second_task
        return Bundle(
            model=model.eval(),
            tokenizer=tokenizer,
            config=config_from_dict(saved["config"]),
            calibration=calibration,
            precision=saved["precision"],
            metrics=saved["metrics"],
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
    state |= {REFERENCE + k: v for k, v in reference_tensors(bundle.calibration).items()}
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
    lines += [
        "",
        "```python",
        "from moe import MixtureOfExperts",
        'model = MixtureOfExperts.from_pretrained("PATH")',
        'model.predict("...")',
        "```",
        "",
    ]
    return "\n".join(lines)
