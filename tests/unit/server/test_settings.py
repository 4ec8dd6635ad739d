"""What the command line of the server may set."""

from __future__ import annotations

from pathlib import Path

import pytest

from moe.server.settings import Limits, Settings, read_keys
from moe.types import InputError


def test_keys_are_lines_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# the old one\nfirst\n\n second \n")
    assert read_keys(file) == (b"first", b"second")
    assert read_keys(None) == ()
    file.write_text("# none\n")
    with pytest.raises(InputError, match="no key in it"):
        read_keys(file)
    with pytest.raises(InputError, match="nowhere"):
        read_keys(tmp_path / "nowhere")


def test_settings_check_themselves() -> None:
    for values, part in [
        ({"threads": 0}, "--threads must be at least 1, got 0"),
        ({"port": 70_000}, "70000"),
        ({"onnx": "b"}, r"one of --ckpt PATH, --onnx DIR and --registry DIR, got \['a', 'b'\]"),
        ({"registry_seconds": 0}, "at least 0.05, got 0"),
        ({"precision": "int8"}, "--precision int8 goes with --onnx"),
        ({"checkpoint": None, "onnx": "b", "device": "cuda"}, "--device cuda goes with --ckpt"),
    ]:
        with pytest.raises(InputError, match=part):
            Settings(**{"checkpoint": "a", **values})
    with pytest.raises(InputError, match="batch_tokens must be at least 1, got 0"):
        Limits(batch_tokens=0)
    with pytest.raises(InputError, match="queue of 8"):
        Limits(items=9, queue_items=8)
    assert "secret" not in repr(Settings(checkpoint="a", api_keys=(b"secret",)))
