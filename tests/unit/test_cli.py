"""Arguments that programs share."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from moe.cli import output_file


def test_a_file_to_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "out.json"
    assert output_file(str(target)) == str(target)
    assert not target.exists()  # asking writes nothing
    target.write_text("old")
    assert output_file(str(target)) == str(target)
    monkeypatch.chdir(tmp_path)
    assert output_file("out.json") == "out.json"


@pytest.mark.parametrize("name", ["none/out.json", "", "file/out.json"])
def test_where_no_file_can_be(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(argparse.ArgumentTypeError, match="expected a file in a folder"):
        output_file(str(tmp_path / name))
