"""Versions, the link to the current one, and what may not be promoted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moe.release import commands
from moe.release.hashing import model_hash
from moe.release.registry import Refused, Registry, read_manifest, verify
from moe.release.sides import locate
from moe.types import InputError

Candidate = Callable[..., tuple[Path, Path]]


@pytest.fixture
def candidate(tmp_path: Path) -> Candidate:
    """Writes a model of one file and the report of its check: `candidate("a", baseline=HASH)`."""

    def build(name: str, baseline: str | None = None, passed: bool = True) -> tuple[Path, Path]:
        model, report = tmp_path / f"{name}.ckpt", tmp_path / f"{name}-gate" / "report.json"
        model.write_text(f"weights of {name}")
        report.parent.mkdir(exist_ok=True)
        report.write_text(json.dumps({
            "passed": passed,
            "candidate": {"hash": model_hash(model), "backend": "torch", "precision": None},
            "baseline": None if baseline is None else {"hash": baseline},
            "canaries": [{"request": {"text": "hello"}, "expect": {"task": "intent"}}],
        }))
        report.with_suffix(".md").write_text("# passed")
        return model, report

    return build


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "models" / "assistant")


def test_versions_follow_each_other_and_go_back(registry: Registry, candidate: Candidate) -> None:
    assert registry.current() is None
    first, report = candidate("a")
    assert registry.promote(first, report) == "v1"
    second, report = candidate("b", baseline=model_hash(first))
    assert registry.promote(second, report) == "v2"
    assert registry.current() == registry.folder / "v2"
    manifest = verify(registry.folder / "v2")
    assert manifest.hash == model_hash(second) and manifest.replaces == "v1"
    assert set(manifest.files) == {"model.ckpt", "report.json", "report.md"}
    assert manifest.canaries[0]["expect"] == {"task": "intent"}
    assert registry.rollback() == ("v2", "v1")
    third, report = candidate("c", baseline=model_hash(first))
    assert registry.promote(third, report) == "v3"
    assert registry.rollback() == ("v3", "v1")  # what v3 replaced, not what was promoted before
    assert registry.rollback("v2") == ("v1", "v2")
    assert registry.versions() == ["v1", "v2", "v3"]
    assert registry.rollback() == ("v2", "v1")
    with pytest.raises(InputError, match="v1: the first version, there is none before it"):
        registry.rollback()
    with pytest.raises(InputError, match=r"no version 'v9', the versions are \['v1', 'v2', 'v3'\]"):
        registry.rollback("v9")


def test_a_folder_keeps_its_hash(registry: Registry, tmp_path: Path, candidate: Candidate) -> None:
    folder = tmp_path / "my-model"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "weights").write_text("w")
    (folder / "config.json").write_text("{}")
    report = candidate("a")[1]
    judged = json.loads(report.read_text())
    judged["candidate"]["hash"] = model_hash(folder)
    report.write_text(json.dumps(judged))
    registry.promote(folder, report)
    manifest = verify(registry.folder / "v1")
    assert (manifest.model, manifest.hash) == ("model", model_hash(folder))
    assert locate(str(registry.folder)).path == registry.folder / "v1" / "model"
    assert locate(str(registry.folder / "v1")).backend == "torch"


def test_only_what_was_judged_and_passed_is_promoted(
    registry: Registry, candidate: Candidate
) -> None:
    first, report = candidate("a")
    with pytest.raises(Refused, match="the gate refused this model"):
        registry.promote(*candidate("bad", passed=False))
    other = candidate("b")[0]
    with pytest.raises(Refused, match="is not the one that was judged"):
        registry.promote(other, report)
    assert registry.versions() == [] and registry.current() is None
    assert not list(registry.folder.glob(".v*")), "nothing half-written stays"
    registry.promote(first, report)
    with pytest.raises(Refused, match=r"compares with the model None, but .*v1 is"):
        registry.promote(*candidate("b"))
    with pytest.raises(Refused, match="compares with the model abc, but"):
        registry.promote(*candidate("b", baseline="abc"))
    with pytest.raises(InputError, match=r"nothing\.json: cannot be read"):
        registry.promote(first, report.with_name("nothing.json"))


def damage_model(folder: Path) -> None:
    (folder / "model.ckpt").write_text("other weights")


def damage_report(folder: Path) -> None:
    (folder / "report.json").write_text("{}")


def remove(folder: Path) -> None:
    (folder / "model.ckpt").unlink()


def add(folder: Path) -> None:
    (folder / "extra.py").write_text("")


def damage_hash(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "hash": "abc"}))


@pytest.mark.parametrize(("damage", "part"), [
    (damage_model, r"model\.ckpt is not the file that was promoted"),
    (damage_report, r"report\.json is not the file that was promoted"),
    (remove, r"model\.ckpt is missing"),
    (add, r"extra\.py is not in the manifest"),
    (damage_hash, "the hash in manifest.json is not that of the model's files"),
])  # fmt: skip
def test_a_changed_version_is_seen_and_never_current_again(
    registry: Registry, candidate: Candidate, damage: Callable[[Path], None], part: str
) -> None:
    first, report = candidate("a")
    registry.promote(first, report)
    registry.promote(*candidate("b", baseline=model_hash(first)))
    damage(registry.folder / "v1")
    with pytest.raises(InputError, match=part):
        verify(registry.folder / "v1")
    with pytest.raises(InputError, match=part):
        registry.rollback()
    assert registry.current() == registry.folder / "v2"


def test_the_commands_say_what_they_did(
    registry: Registry, candidate: Candidate, capsys: Any
) -> None:
    first, report = candidate("a")
    folder = str(registry.folder)
    assert commands.promote(folder, str(first), str(report)) == 0
    second, report = candidate("b", baseline=model_hash(first))
    assert commands.promote(folder, str(second), str(report.with_suffix(""))) == 0
    assert commands.rollback(folder, None) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{folder}: v1 is current", f"{folder}: v2 is current",
        f"{folder}: v1 is current, it was v2",
    ]
    with pytest.raises(InputError, match="elsewhere: no such folder"):
        commands.rollback("elsewhere", None)


def test_what_is_no_version(tmp_path: Path, registry: Registry) -> None:
    (tmp_path / "manifest.json").write_text('{"version": "v1"}')
    with pytest.raises(InputError, match=r"no readable manifest\.json"):
        read_manifest(tmp_path)
    (tmp_path / "plain").mkdir()
    with pytest.raises(InputError, match="plain@int8: only an export"):
        locate(f"{tmp_path / 'plain'}@int8")
    with pytest.raises(InputError, match="no version is current"):
        registry.rollback()
