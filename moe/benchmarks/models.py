"""The models that are compared: ours in the shape of `configs/local.yaml`, and Hugging Face's.

Dimensions: B rows, L tokens.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import (
    DistilBertConfig,
    DistilBertForQuestionAnswering,
    DistilBertForSequenceClassification,
    PreTrainedTokenizerFast,
)

from moe.build import build_model
from moe.calibration import Calibration
from moe.checkpoint import Bundle, load_bundle
from moe.config import DataConfig, ExperimentConfig, TaskConfig
from moe.data.windows import PaddedWindows, TextTokenizer
from moe.encoder import build_encoder
from moe.experts import Trunk
from moe.experts.trunk import LAYER_NAMES
from moe.model import Mixture
from moe.model_config import ExpertConfig, GateConfig, ModelConfig
from moe.onnx.bundle import FILES, OnnxGraph
from moe.onnx.export import write
from moe.pretrained import MINILM, resolve_folder
from moe.types import InputError, TaskSpec

TrunkKind = Literal["none", "ffn", "transformer"]

# Of `DistilBertConfig`. The speed does not depend on the weights, which are random.
SHAPES: dict[str, dict[str, Any]] = {
    MINILM: {"dim": 384, "hidden_dim": 1536, "n_heads": 12, "n_layers": 6},
    "distilbert-base": {"dim": 768, "hidden_dim": 3072, "n_heads": 12, "n_layers": 6},
    "tiny": {"dim": 32, "hidden_dim": 64, "n_heads": 4, "n_layers": 2},
}

# As in configs/local.yaml: SST-2, SQuADShifts, CLINC150.
TASKS = (
    TaskSpec(name="sentiment", type="classifier", num_experts=2, labels=("negative", "positive")),
    TaskSpec(name="qa", type="span", num_experts=1),
    TaskSpec(
        name="intent",
        type="classifier",
        num_experts=1,
        labels=tuple(f"intent {number}" for number in range(150)),
        out_of_scope="oos",
    ),
)


def built_model(
    shape: str,
    *,
    trunk: TrunkKind,
    tasks: tuple[TaskSpec, ...] = TASKS,
    train_top_k: int | None = None,
) -> Mixture:
    """A model with random weights, in evaluation mode.

    Args:
        shape: A key of `SHAPES`.
        trunk: Of every expert.
        tasks: With their experts.
        train_top_k: Experts per task in training.
    """
    torch.manual_seed(0)
    encoder = build_encoder(DistilBertConfig(**SHAPES[shape], attention_dropout=0.0).to_dict())
    config = ModelConfig(gate=GateConfig(train_top_k=train_top_k), expert=ExpertConfig(trunk=trunk))
    return build_model(config, tasks, encoder).eval()


def built_bundle(shape: str, *, trunk: TrunkKind) -> Bundle:
    """`built_model` with the packaged tokenizer and nothing fitted."""
    config = ExperimentConfig(
        tasks={
            task.name: TaskConfig(
                type=task.type,
                train=f"sample:{task.name}",
                experts=task.num_experts,
                out_of_scope=task.out_of_scope,
            )
            for task in TASKS
        },
        model=ModelConfig(expert=ExpertConfig(trunk=trunk)),
        data=DataConfig(max_tokens=4096),
    )
    return Bundle(
        model=built_model(shape, trunk=trunk),
        tokenizer=TextTokenizer.from_pretrained(resolve_folder(MINILM)),
        config=config,
        calibration=Calibration(),
        precision="32-true",
        metrics={},
    )


def bundle_of(checkpoint: str | None, shape: str) -> Bundle:
    """A trained model, or one that is built with the default trunk."""
    return load_bundle(checkpoint) if checkpoint else built_bundle(shape, trunk="transformer")


@dataclass(frozen=True, kw_only=True)
class Graph:
    """A model as an ONNX graph, which computes on as many threads as it was opened with.

    Attributes:
        graph: The graph.
        expert: By task the column of its first expert.
        is_alone_E: The only experts of their task, which need not wait for the gate.
    """

    graph: OnnxGraph
    expert: dict[str, int]
    is_alone_E: NDArray[np.bool_]

    def ask(self, rows: PaddedWindows, *tasks: str) -> None:
        """Encoder, gate, and the first expert of each task on all rows."""
        chosen_BE = np.zeros((len(rows.input_ids), len(self.is_alone_E)), dtype=bool)
        chosen_BE[:, [self.expert[task] for task in tasks]] = True
        encoded = self.graph.encode(rows, chosen_BE & self.is_alone_E)
        left_BE = chosen_BE & ~self.is_alone_E
        if left_BE.any():
            self.graph.run_experts(encoded, left_BE)


def graph_of(bundle: Bundle, threads: int, precision: str = "int8") -> Graph:
    """Exports a model without checking it, and opens the graph.

    Raises:
        InputError: The packages of the export are not installed.
    """
    columns = {task.name: bundle.model.expert_names.index(task.expert_names[0])
               for task in bundle.model.tasks}  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        write(bundle, Path(folder), int8=precision == "int8", checked=False)
        graph = OnnxGraph(Path(folder, FILES[precision]), threads)
    sizes = bundle.model.task_sizes
    return Graph(graph=graph, expert=columns, is_alone_E=np.repeat(np.array(sizes) == 1, sizes))


# --- Hugging Face's models --------------------------------------------------------------------


def plain_classifier(shape: str, num_labels: int) -> DistilBertForSequenceClassification:
    """What a team has for one task: the library's own model, with its defaults and random weights.

    Args:
        shape: A key of `SHAPES`.
        num_labels: Classes.
    """
    torch.manual_seed(0)
    config = DistilBertConfig(**SHAPES[shape])
    config.num_labels = num_labels
    return DistilBertForSequenceClassification(config).eval()


def plain_reader(shape: str) -> DistilBertForQuestionAnswering:
    """The same for question answering."""
    torch.manual_seed(0)
    return DistilBertForQuestionAnswering(DistilBertConfig(**SHAPES[shape])).eval()


def same_classifier(model: Mixture, expert: str) -> DistilBertForSequenceClassification:
    """One classifier of a mixture as Hugging Face's model: the same function of `input_ids`.

    A trunk of kind `transformer` is one more layer of the encoder.

    Args:
        model: The mixture.
        expert: Its name; it reads the first token.

    Raises:
        InputError: It is not a function that a `DistilBertForSequenceClassification` can be.
    """
    module: Any = model.experts[expert]
    if module.pooling != "first" or (module.trunk.attention is None) != (
        module.trunk.feed_forward is None
    ):
        raise InputError(
            f"expert {expert!r}: no Hugging Face model has its form, expected "
            "model.expert.pooling 'first' and model.expert.trunk 'none' or 'transformer'"
        )
    extra = int(module.trunk.attention is not None)
    config = DistilBertConfig.from_dict(model.encoder.config.to_dict())
    config.n_layers += extra
    config.num_labels = module.classifier.out_features
    twin = DistilBertForSequenceClassification(config).eval()
    twin.distilbert.load_state_dict(
        {
            **model.encoder.state_dict(),
            **(_as_layer(module.trunk, config.n_layers) if extra else {}),
        }
    )
    twin.pre_classifier.load_state_dict(module.pre_classifier.state_dict())
    twin.classifier.load_state_dict(module.classifier.state_dict())
    return twin


def _as_layer(trunk: Trunk, number: int) -> dict[str, Tensor]:
    """A trunk's weights under the names of the last layer of `number`."""
    state = {}
    for name, tensor in trunk.state_dict().items():
        module, _, kind = name.rpartition(".")
        state[f"transformer.layer.{number - 1}.{LAYER_NAMES[module]}.{kind}"] = tensor
    return state


def library_tokenizer(tokenizer: TextTokenizer) -> PreTrainedTokenizerFast:
    """A tokenizer as Hugging Face's library wraps it."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "tokenizer.json")
        file.write_text(tokenizer.to_json(), encoding="utf-8")
        return PreTrainedTokenizerFast(
            tokenizer_file=str(file),
            model_max_length=512,
            cls_token="[CLS]",
            sep_token="[SEP]",
            pad_token="[PAD]",
            unk_token="[UNK]",
        )
