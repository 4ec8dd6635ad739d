"""A tiny random DistilBERT and data of three tasks, so that a training takes seconds."""

from __future__ import annotations

import json
import string
from collections.abc import Iterable
from pathlib import Path
from typing import Any

GOOD = ["good film", "a great day", "great food here", "i love it", "love this good bus"]
BAD = ["bad film", "an awful day", "awful food here", "i hate it", "hate this bad bus"]
TIME = ["what time is it", "tell me the time", "time please", "give the time now"]
MUSIC = ["play a song", "play music now", "put on a song", "music please"]


def make_project(folder: Path, **changes: Any) -> Path:
    """Writes encoder, data and a config into a folder.

    Args:
        folder: Made if it is not there.
        changes: Of the config's sections `data`, `optimizer`, `trainer`, or its plain fields.

    Returns:
        The config file, for `train.py --config`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_encoder(folder / "encoder", _words())
    _write_data(folder)
    config = _config(folder)
    for name, value in changes.items():
        config[name] = {**config[name], **value} if isinstance(value, dict) else value
    file = folder / "tiny.yaml"
    file.write_text(json.dumps(config, indent=1), encoding="utf-8")  # which is YAML too
    return file


def _config(folder: Path) -> dict[str, Any]:
    data = {"train": "train.csv", "validation": "val.csv"}
    intents = {"train": "intent.json", "validation": "intent.json", "out_of_scope": "oos"}
    questions = {"train": "qa.train.json", "validation": "qa.val.json"}
    return {
        "tasks": {
            "mood": {"type": "classifier", "experts": 2, **data},
            "qa": {"type": "span", **questions},
            "intent": {"type": "classifier", "experts": 2, **intents},
        },
        "model": {"encoder": {"name": str(folder / "encoder")}, "gate": {"width": 16}},
        "data": {
            "root": str(folder),
            "cache": str(folder / "cache"),
            "batch_size": 24,
            "max_length": 48,
            "stride": 8,
            "max_tokens": 512,
        },
        "optimizer": {"encoder_lr": 1e-3, "expert_lr": 3e-3, "gate_lr": 1e-2},
        "checkpoint_every": 3,
        "trainer": {
            "max_epochs": -1,
            "max_steps": 20,
            "val_check_interval": 7,
            "check_val_every_n_epoch": None,
            "log_every_n_steps": 2,
            "accelerator": "cpu",
            "precision": "32-true",
            "default_root_dir": str(folder / "runs"),
        },
    }


def _words() -> list[str]:
    characters = string.ascii_lowercase + string.digits
    words = sorted({word for text in GOOD + BAD + TIME + MUSIC for word in text.split()})
    return [*characters, *(f"##{c}" for c in characters), *".?,", *words]


def write_encoder(folder: Path, names: Iterable[str]) -> None:
    """A DistilBERT of two narrow layers with random weights, and its tokenizer.

    Args:
        folder: As `save_pretrained` fills it.
        names: The words of its vocabulary, beside the special tokens.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import DistilBertConfig, DistilBertModel, PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {name: number for number, name in enumerate(dict.fromkeys([*special, *names]))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    kinds = {f"{name.strip('[]').lower()}_token": name for name in special}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **kinds).save_pretrained(folder)
    shape = DistilBertConfig(
        vocab_size=len(vocabulary),
        dim=32,
        n_layers=2,
        n_heads=4,
        hidden_dim=64,
        max_position_embeddings=64,
    )
    DistilBertModel(shape).save_pretrained(folder)


def _write_data(folder: Path) -> None:
    rows = [f"{text} {k},good" for k in range(6) for text in GOOD]
    rows += [f"{text} {k},bad" for k in range(6) for text in BAD]
    (folder / "train.csv").write_text("\n".join(["text,label", *rows]), encoding="utf-8")
    (folder / "val.csv").write_text("text,label\ngood bus,good\nbad bus,bad\n", encoding="utf-8")
    intents = {
        "train": [[f"{t} {k}", "time"] for t in TIME for k in range(5)]
        + [[f"{t} {k}", "music"] for t in MUSIC for k in range(5)],
        "val": [["the time now", "time"], ["a song now", "music"]],
        "oos_train": [[f"bus food {k}", "oos"] for k in range(6)],
        "oos_val": [["food day", "oos"], ["the bus", "oos"]],
    }
    (folder / "intent.json").write_text(json.dumps(intents), encoding="utf-8")
    for name, numbers in (("train", range(12)), ("val", range(20, 23))):
        content = json.dumps({"version": "v2.0", "data": [_article(numbers)]})
        (folder / f"qa.{name}.json").write_text(content, encoding="utf-8")


def _article(numbers: range) -> dict[str, Any]:
    paragraphs = []
    for k in numbers:
        name = string.ascii_lowercase[k] * 3
        context = f"the mill was built in 17{k:02d} by {name}, it was good."
        answer = {"text": name, "answer_start": context.index(f"by {name}") + 3}
        questions = [
            {"id": f"a{k}", "question": "who built the mill?", "answers": [answer]},
            {"id": f"b{k}", "question": "who hate it?", "answers": [], "is_impossible": True},
        ]
        paragraphs.append({"context": context, "qas": questions})
    return {"title": "mills", "paragraphs": paragraphs}
