"""Files that lie about what they are; whole checkpoints made to harm are in test_hostile.py."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest
import torch

from moe import untrusted
from moe.types import InputError
from moe.untrusted import (
    check_archive,
    check_file,
    check_inside,
    check_torch_archive,
    read_json,
    read_text,
)


def test_what_torch_saves_passes(tmp_path: Path) -> None:
    kinds = (torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool, torch.uint8)
    content = {"t": [torch.ones(3, dtype=kind) for kind in kinds], "n": [1, -2, 2**40, 1.5, None],
               "p": torch.nn.Parameter(torch.ones(2)), "s": torch.Size([1]), "o": (True, "ä", {})}
    torch.save(content, tmp_path / "a.pt")
    check_torch_archive(tmp_path / "a.pt")


def test_a_file_over_the_limit(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    check_file(tmp_path / "a", 5)
    with pytest.raises(InputError, match="5 bytes, more than the 4 that are read"):
        check_file(tmp_path / "a", 4)
    with pytest.raises(InputError, match="not a file"):
        check_file(tmp_path)
    with pytest.raises(InputError, match=r"cannot be read \(No such file"):
        check_file(tmp_path / "b")


def test_links_may_stay_inside_or_in_the_hubs_cache(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--a" / "snapshots" / "1"
    blobs = tmp_path / "models--a" / "blobs"
    for folder in (snapshot, blobs):
        folder.mkdir(parents=True)
    (blobs / "x").write_text("{}")
    (tmp_path / "other").write_text("{}")
    (snapshot / "plain").write_text("{}")
    (snapshot / "blob").symlink_to("../../blobs/x")
    (snapshot / "own").symlink_to("plain")
    (snapshot / "out").symlink_to("../../../other")
    for name in ("plain", "blob", "own"):
        check_inside(snapshot / name, snapshot)
    with pytest.raises(InputError, match="a link that leads out of its folder"):
        check_inside(snapshot / "out", snapshot)


def test_json_is_an_object_of_limited_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.json"
    file.write_text('{"a": 1}')
    assert read_json(file) == {"a": 1} and read_text(file) == '{"a": 1}'
    for text, message in (("[1]", "a list, expected a JSON object"), ("{", "not JSON"),
                          ("[" * 100_000, "not JSON")):
        file.write_text(text)
        with pytest.raises(InputError, match=message):
            read_json(file)
    monkeypatch.setattr(untrusted, "MAX_JSON", 4)
    with pytest.raises(InputError, match="more than the 4 that are read"):
        read_json(file)


def test_a_directory_longer_than_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(tmp_path / "a", "w") as archive:
        archive.writestr("x/data.pkl", b"")
    assert [entry.filename for entry in check_archive(tmp_path / "a")] == ["x/data.pkl"]
    monkeypatch.setattr(untrusted, "MAX_DIRECTORY", 55)
    with pytest.raises(InputError, match="56 bytes list its content, more than the 55"):
        check_archive(tmp_path / "a")  # 46 bytes and the 10 of the name


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a")
    with pytest.raises(InputError, match="not a file"):
        read_text(tmp_path / "a")
