"""One task as a stand-alone model of Hugging Face's own class, without this project.

A `transformer` trunk has the form of a DistilBERT layer and becomes one more of it; of an expert
that reads an earlier layer the encoder ends there. The head is DistilBERT's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    DistilBertConfig,
    DistilBertForQuestionAnswering,
    DistilBertForSequenceClassification,
    DistilBertForTokenClassification,
    PreTrainedTokenizerFast,
)
from transformers.utils.logging import disable_progress_bar

from moe.bricks.tasks import find_task
from moe.checkpoint import Bundle
from moe.data.collate import collate
from moe.data.windows import make_windows
from moe.encoder import encode_layers
from moe.experts import Expert
from moe.experts.trunk import LAYER_NAMES
from moe.types import InputError, TaskSpec

LARGEST = 1e-4  # difference of a logit between the two; more is refused
PROBES = (
    ("A short text.", "A passage about a mill that was built in 1790 by Ada Brook."),
    ("what is the weather like in the mountains, and how do I get there?", "It rains. Often."),
)
_CLASSES: dict[str, Any] = {
    "classifier": DistilBertForSequenceClassification,
    "span": DistilBertForQuestionAnswering,
    "tagger": DistilBertForTokenClassification,
}


@dataclass(frozen=True, kw_only=True)
class Extracted:
    """What was written.

    Attributes:
        architecture: Hugging Face's class.
        expert: The expert that it is.
        layers: Of its encoder.
        largest: Largest difference of a logit from the mixture's, on a few texts.
    """

    architecture: str
    expert: str
    layers: int
    largest: float


def extract(bundle: Bundle, *, task: str, out: str | Path, expert: str | None = None) -> Extracted:
    """Writes `config.json`, `model.safetensors` and a tokenizer that plain `transformers` loads.

    Args:
        bundle: A trained model.
        task: The task.
        out: A folder that is not there yet, or empty.
        expert: One of the task's experts; needed if there are several.

    Raises:
        InputError: No class of Hugging Face computes the same.
    """
    spec = find_task(bundle, task)
    name = _one_expert(spec, expert)
    folder = Path(out)
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"--out {folder}: is not empty: remove it, or name another folder")
    module: Any = bundle.model.experts[name]
    _check_form(bundle, spec, module)
    model = _assembled(bundle, spec, module)
    largest = _difference(bundle, spec, module, model)
    if not largest <= LARGEST:
        raise InputError(
            f"extract {task!r}: logits differ by {largest:.2g} from the mixture's, more than "
            f"{LARGEST:g}: nothing was written"
        )
    disable_progress_bar()  # of a file that is written in a second
    model.save_pretrained(folder)
    _tokenizer(bundle).save_pretrained(folder)
    layers: int = model.config.n_layers
    return Extracted(architecture=type(model).__name__, expert=name, layers=layers, largest=largest)


def _one_expert(task: TaskSpec, expert: str | None) -> str:
    if expert is None and task.num_experts == 1:
        return task.expert_names[0]
    if expert not in task.expert_names:
        raise InputError(
            f"--expert {expert!r}: the task {task.name!r} has {list(task.expert_names)}; name one "
            "of them, or merge them into one first"
        )
    return expert


def _check_form(bundle: Bundle, task: TaskSpec, expert: Any) -> None:
    trunk = expert.trunk
    if trunk.feed_forward is not None and trunk.attention is None:
        raise InputError(
            f"extract {task.name!r}: its trunk is 'ffn', and no class of Hugging Face has a layer "
            "without attention; only trunks 'none' and 'transformer' can be extracted"
        )
    if getattr(expert, "pooling", "first") != "first":
        raise InputError(
            f"extract {task.name!r}: its head reads the {expert.pooling} of the token states, "
            "DistilBertForSequenceClassification the first token: train with "
            "model.expert.pooling first"
        )
    if bundle.model.encoder.config.activation != "gelu" and trunk.feed_forward is not None:
        raise InputError(
            f"extract {task.name!r}: the encoder's activation is "
            f"{bundle.model.encoder.config.activation!r} and the trunk's 'gelu'; a DistilBERT has "
            "one for all layers"
        )


def _assembled(bundle: Bundle, task: TaskSpec, expert: Expert) -> Any:
    """The model of Hugging Face's class with copied weights."""
    encoder = bundle.model.encoder
    extra = int(expert.trunk.attention is not None)  # type: ignore[union-attr]
    own = task.layer or encoder.config.n_layers
    shape = {**encoder.config.to_dict(), "n_layers": own + extra}
    names = [*task.labels, *([task.out_of_scope] if task.out_of_scope else [])]
    if names:
        shape |= {
            "id2label": dict(enumerate(names)),
            "label2id": {n: i for i, n in enumerate(names)},
        }
    config = DistilBertConfig.from_dict(shape)
    model = _CLASSES[task.type](config).eval()
    beyond = tuple(f"transformer.layer.{n}." for n in range(own, encoder.config.n_layers))
    state = {
        f"distilbert.{name}": tensor
        for name, tensor in encoder.state_dict().items()
        if not name.startswith(beyond)
    }
    layer = f"distilbert.transformer.layer.{own}."
    for key, tensor in expert.state_dict().items():
        module, _, kind_of = key.rpartition(".")
        if (name := module.removeprefix("trunk.")) in LAYER_NAMES:
            state[f"{layer}{LAYER_NAMES[name]}.{kind_of}"] = tensor
        else:
            state[key] = tensor
    if extra:
        _widen(state, layer, encoder.config.hidden_dim)
    model.load_state_dict(state, strict=True)
    return model


def _widen(state: dict[str, Tensor], layer: str, width: int) -> None:
    """Fills a narrower feed-forward block up with neurons that say nothing: GELU of 0 is 0."""
    missing = width - state[f"{layer}ffn.lin1.weight"].shape[0]
    for name, pad in (
        ("lin1.weight", (0, 0, 0, missing)),
        ("lin1.bias", (0, missing)),
        ("lin2.weight", (0, missing)),
    ):
        state[f"{layer}ffn.{name}"] = F.pad(state[f"{layer}ffn.{name}"], pad)


def _tokenizer(bundle: Bundle) -> PreTrainedTokenizerFast:
    """With [CLS] text [SEP] context [SEP], which the mixture adds itself."""
    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing

    inner = Tokenizer.from_str(bundle.tokenizer.to_json())
    special = [("[CLS]", bundle.tokenizer.cls_id), ("[SEP]", bundle.tokenizer.sep_id)]
    inner.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=special
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        unk_token="[UNK]",
        model_max_length=bundle.config.data.max_length,
        model_input_names=["input_ids", "attention_mask"],
    )


@torch.no_grad()
def _difference(bundle: Bundle, task: TaskSpec, expert: Expert, model: Any) -> float:
    """Largest difference of a logit on `PROBES`, where both are finite."""
    tokenizer, data = bundle.tokenizer, bundle.config.data
    shape: Mapping[str, int] = {"max_length": data.max_length, "stride": data.stride}
    texts = tokenizer.encode([text for text, _ in PROBES])
    contexts = tokenizer.encode([context for _, context in PROBES])
    windows = [
        make_windows(text, context, **shape)[0]
        for (text, _), (context, _) in zip(texts, contexts, strict=True)
    ]
    batch = collate(windows, range(len(windows)), tokenizer)
    blocks = [(batch.input_ids, batch.attention_mask)]
    encoder = bundle.model.encoder
    layer = task.layer or encoder.config.n_layers
    hidden_BLD = encode_layers(encoder, blocks, [layer])[0][layer]
    ours = expert(hidden_BLD, batch.attention_mask, batch.context_mask)
    said = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask.long())
    theirs = (
        said.logits
        if hasattr(said, "logits")
        else torch.stack([said.start_logits, said.end_logits], -1)
    )
    finite = torch.isfinite(ours)
    return float((ours[finite] - theirs[finite]).abs().max())
