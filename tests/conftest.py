"""Tiny models, batches and a tokenizer, made by hand. No test needs a network."""

from __future__ import annotations

import os
import string
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports the hub's client
if "PYTEST_XDIST_WORKER" in os.environ:  # one of several processes: one core each
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
import yaml
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from transformers import DistilBertConfig, DistilBertModel

from moe.build import build_model
from moe.calibration import Calibration
from moe.checkpoint import Bundle
from moe.config import DataConfig, ExperimentConfig, TaskConfig
from moe.data.windows import TextTokenizer
from moe.model import Mixture
from moe.model_config import ExpertConfig, GateConfig, ModelConfig
from moe.types import Batch, TaskSpec

WORDS = ("the", "an", "abbot", "led", "monks", "who", "good", "bad", "film", "was", "very")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A file is run by one process, and so are all files that read one export to ONNX."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.split("::", 1)[0]
            return "onnx" if "unit/onnx/" in file else file

    return Scheduling(config, log)


@pytest.fixture(autouse=True)
def one_thread(request: pytest.FixtureRequest) -> Iterator[None]:
    """Unit tests compute on one thread: on a busy machine two wait for each other."""
    before = torch.get_num_threads()
    if "unit" in request.path.parts:
        torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def tiny_encoder() -> Callable[..., DistilBertModel]:
    """Builds a random DistilBERT: 100 words, width 32, two layers of four heads, no dropout."""

    def build(seed: int = 0, **changes: Any) -> DistilBertModel:
        torch.manual_seed(seed)
        shape = {
            "vocab_size": 100, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64,
            "max_position_embeddings": 64, "dropout": 0.0, "attention_dropout": 0.0,
            # Ten times the usual: states that hardly differ would hide mistakes.
            "initializer_range": 0.2,
        }
        return DistilBertModel(DistilBertConfig(**{**shape, **changes}))

    return build


@pytest.fixture
def tiny_tasks() -> tuple[TaskSpec, ...]:
    """Experts 0 and 1 answer sentiment, 2 answers qa, 3 to 6 answer intent."""
    return (
        TaskSpec(name="sentiment", type="classifier", num_experts=2, labels=("bad", "good")),
        TaskSpec(name="qa", type="span", num_experts=1),
        TaskSpec(name="intent", type="classifier", num_experts=4, labels=("pay", "ask", "go"),
                 out_of_scope="oos"),
    )


@pytest.fixture
def tiny_model(
    tiny_encoder: Callable[..., DistilBertModel], tiny_tasks: tuple[TaskSpec, ...]
) -> Callable[..., Mixture]:
    """Builds the mixture of `tiny_tasks`; `gate`, `expert` and the rest go to the configs."""

    def build(seed: int = 0, gate: Any = None, expert: Any = None, tasks: Sequence[TaskSpec] = (),
              vocab_size: int = 100, **model: Any) -> Mixture:
        encoder = tiny_encoder(seed, vocab_size=vocab_size)
        config = ModelConfig(
            gate=GateConfig(**{"width": 16, **(gate or {})}),
            expert=ExpertConfig(**{"dropout": 0.0, **(expert or {})}),
            **model,
        )
        mixture = build_model(config, tasks or tiny_tasks, encoder)
        with torch.no_grad():  # so that experts disagree by more than rounding
            for parameter in mixture.experts.parameters():
                parameter.mul_(10 if parameter.ndim > 1 else 1)
        return mixture

    return build


@pytest.fixture
def word_bundle(
    tiny_model: Callable[..., Mixture], tiny_tasks: tuple[TaskSpec, ...],
    word_tokenizer: TextTokenizer,
) -> Callable[..., Bundle]:
    """Builds an untrained mixture that reads the tokens of `word_tokenizer`, 120 at most."""

    def build(calibration: Calibration | None = None, **gate: Any) -> Bundle:
        config = ExperimentConfig(
            tasks={t.name: TaskConfig(type=t.type, train=f"{t.name}.csv", experts=t.num_experts,
                                      out_of_scope=t.out_of_scope) for t in tiny_tasks},
            model=ModelConfig(gate=GateConfig(width=16, **gate), expert=ExpertConfig(dropout=0.0)),
            data=DataConfig(max_length=32, stride=4, max_tokens=512, max_padding=0.5),
        )
        return Bundle(
            model=tiny_model(gate=gate, vocab_size=120).eval(), tokenizer=word_tokenizer,
            config=config, calibration=calibration or Calibration(), precision="32-true",
            metrics={},
        )

    return build


@pytest.fixture
def intent_expert(word_bundle: Callable[..., Bundle]) -> Callable[..., Bundle]:
    """Trains `intent-0` of `word_bundle` on a folder's `train.csv`, with `val.csv` beside it."""

    def train(folder: Path, fit: Any) -> Bundle:
        from moe.bricks.update import update

        task = TaskConfig(type="classifier", train="train.csv", validation="val.csv",
                          out_of_scope="oos")
        bundle = word_bundle()
        data = replace(bundle.config.data, root=str(folder), cache=str(folder / "cache"))
        bundle = replace(bundle, config=replace(bundle.config, tasks={"intent": task}, data=data))
        return update(bundle, expert="intent-0", config=task, root=str(folder), fit=fit).bundle

    return train


@pytest.fixture
def intent_suite() -> Callable[..., None]:
    """Writes `suite.yaml`, a suite of the gate for one task `intent`."""

    def write(folder: Path, source: str, **more: Any) -> None:
        judged = {"type": "classifier", "rows": source, "out_of_scope": "oos"}
        suite = {
            "tasks": {"intent": judged}, "root": str(folder), "draws": 200, "latency": None, **more,
            "rules": {"*/ece*": {"max_rise": 20, "when_unsure": "pass"},
                      "size/bytes": {"max_ratio": 1.1},
                      "*": {"max_drop": 8, "when_unsure": "pass"}},
        }
        (folder / "suite.yaml").write_text(yaml.safe_dump(suite, sort_keys=False))

    return write


@pytest.fixture
def hand_batch() -> Batch:
    """Six windows: two of sentiment, two of one question, an intent, an out-of-scope text.

    With 1 for [CLS] and 2 for [SEP]; a row's answer is a class or a span, never both.
    """
    rows = [
        # tokens                         context    request task label span
        ([1, 10, 11, 12, 2], None, 0, 0, 1, (0, 0)),
        ([1, 13, 2], None, 1, 0, 0, (0, 0)),
        ([1, 20, 21, 2, 30, 31, 32, 33, 2], (4, 8), 2, 1, -1, (5, 6)),
        ([1, 20, 21, 2, 34, 35, 2], (4, 6), 2, 1, -1, (0, 0)),  # its second window, no answer
        ([1, 40, 41, 42, 43, 44, 2], None, 3, 2, 2, (0, 0)),
        ([1, 45, 46, 2], None, 4, 2, 3, (0, 0)),
    ]
    length = 9
    columns = list(zip(*rows, strict=True))
    positions = torch.arange(length)
    sizes = torch.tensor([len(tokens) for tokens in columns[0]])
    context = torch.tensor([span or (0, 0) for span in columns[1]])
    return Batch(
        input_ids=torch.tensor([ids + [0] * (length - len(ids)) for ids in columns[0]]),
        attention_mask=positions < sizes[:, None],
        context_mask=(positions >= context[:, :1]) & (positions < context[:, 1:]),
        request_ids=torch.tensor(columns[2]),
        task_ids=torch.tensor(columns[3]),
        labels=torch.tensor(columns[4]),
        spans=torch.tensor(columns[5]),
        step_rows_T=torch.tensor([2, 2, 2]),
    )


@pytest.fixture
def word_tokenizer() -> TextTokenizer:
    """Lower-casing WordPiece: a few whole words, every other one letter by letter."""
    letters = string.ascii_lowercase + string.digits
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *(f"##{c}" for c in letters),
              *string.punctuation, *WORDS]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    return TextTokenizer(tokenizer)
