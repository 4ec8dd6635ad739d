"""Every checkpoint made to harm is refused with a message, and nothing happens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from moe.chaos.hostile import makers
from moe.checkpoint import Bundle, identity, load_bundle, save_bundle
from moe.encoder import build_encoder
from moe.types import InputError


@pytest.fixture
def whole(word_bundle: Callable[..., Bundle], tmp_path: Path) -> tuple[Path, Path]:
    """A checkpoint and a folder of one model, both of which load."""
    bundle = word_bundle()
    known = identity(bundle.config, bundle.model.tasks, bundle.model.encoder, bundle.tokenizer,
                     bundle.precision)
    state = {f"model.{name}": tensor for name, tensor in bundle.model.state_dict().items()}
    mixture = {**known, "calibration": bundle.calibration.to_dict(), "metrics": {}}
    torch.save({"mixture": mixture, "state_dict": state}, tmp_path / "whole.ckpt")
    save_bundle(bundle, tmp_path / "whole")
    load_bundle(tmp_path / "whole.ckpt")
    load_bundle(tmp_path / "whole")
    return tmp_path / "whole.ckpt", tmp_path / "whole"


@pytest.mark.parametrize(
    "kind", ["file", pytest.param("content", marks=pytest.mark.slow), "folder"])  # fmt: skip
def test_all_are_refused_without_an_effect(
    whole: tuple[Path, Path], tmp_path: Path, kind: str
) -> None:
    chosen = {name: make for name, make in makers().items() if name.startswith(kind)}
    assert len(chosen) >= 20
    for number, (name, make) in enumerate(chosen.items()):
        place = tmp_path / f"case-{number}"
        place.mkdir()
        path = make(*whole, place)
        with pytest.raises(InputError) as refused:
            load_bundle(path)
            pytest.fail(f"{name} was loaded")
        assert str(path) in str(refused.value), name
    assert not list(tmp_path.rglob("HARM"))


def test_only_the_shape_of_an_encoder_is_read() -> None:
    shape = {"vocab_size": 50, "dim": 8, "n_heads": 2, "n_layers": 1, "hidden_dim": 8}
    harm = {"_attn_implementation": "evil/kernel", "auto_map": {"AutoModel": "evil"}}
    encoder = build_encoder({**shape, **harm, "quantization_config": {"load_in_4bit": True}})
    assert encoder.config.dim == 8
    assert encoder.config._attn_implementation != "evil/kernel"
    assert not hasattr(encoder.config, "auto_map")
