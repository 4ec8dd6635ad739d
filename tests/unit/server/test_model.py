"""What the server calls a model."""

from __future__ import annotations

import pytest

from moe.server.model import _name


@pytest.mark.parametrize(("source", "name"), [
    ("/a/runs/local/version_0/checkpoints/best.ckpt", "local"),
    ("runs/local/version_0/checkpoints/best.ckpt", "local"),
    ("checkpoints/best.ckpt", "best.ckpt"),
    ("my-model/", "my-model"),
    ("someone/model", "model"),
])
def test_a_run_is_named_after_its_config(source: str, name: str) -> None:
    assert _name(source) == name
