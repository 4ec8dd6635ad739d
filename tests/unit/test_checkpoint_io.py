"""What Lightning writes through, and where a run goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from moe.chaos.corruption import DAMAGE, full_after
from moe.checkpoint import Bundle, identity
from moe.checkpoint_io import DurableIO, last_files, take_up
from moe.resume import last_state
from moe.types import InputError, NonFiniteError

Content = Callable[[int], dict[str, Any]]


@pytest.fixture
def content(word_bundle: Callable[..., Bundle]) -> Content:
    """What Lightning would save of a run after some steps."""
    bundle = word_bundle()
    known = identity(bundle.config, bundle.model.tasks, bundle.model.encoder, bundle.tokenizer,
                     bundle.precision)
    state = {f"model.{name}": tensor for name, tensor in bundle.model.state_dict().items()}
    mixture = {**known, "calibration": bundle.calibration.to_dict(), "metrics": {}}

    def build(step: int) -> dict[str, Any]:
        return {"mixture": mixture, "state_dict": state, "global_step": step, "callbacks": {},
                "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(2)}}}]}

    return build


@pytest.fixture
def folder(content: Content, tmp_path: Path) -> Path:
    """With `last.ckpt` of step 3 and `last-1.ckpt` of step 2."""
    for step in (1, 2, 3):
        DurableIO().save_checkpoint(content(step), tmp_path / "last.ckpt")
    return tmp_path


def steps(folder: Path) -> list[int]:
    return [DurableIO().load_checkpoint(path)["global_step"] for path in last_files(folder)]


def test_the_last_two_are_kept_and_nothing_else(folder: Path) -> None:
    assert steps(folder) == [3, 2]
    assert {path.name for path in folder.iterdir()} == {"last.ckpt", "last-1.ckpt", "SHA256SUMS"}


def test_of_the_best_there_is_one(content: Content, tmp_path: Path) -> None:
    for step in (1, 2):
        DurableIO().save_checkpoint(content(step), tmp_path / "best.ckpt")
    assert {path.name for path in tmp_path.iterdir()} == {"best.ckpt", "SHA256SUMS"}
    DurableIO().remove_checkpoint(tmp_path / "best.ckpt")
    DurableIO().remove_checkpoint(tmp_path / "best.ckpt")
    assert not (tmp_path / "best.ckpt").exists()


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_last_checkpoint_is_put_aside(folder: Path, kind: str) -> None:
    import random

    DAMAGE[kind](folder / "last.ckpt", random.Random(0))
    said: list[str] = []
    found = take_up(folder, said.append)
    assert found is not None and found[0].name == "last-1.ckpt"
    assert found[1]["global_step"] == 2
    assert "last.ckpt: damaged, its SHA-256 is not the one in SHA256SUMS" in said[0]
    assert said[1] == f"going on from {found[0]}, of optimizer step 2"
    assert (folder / "last.ckpt.damaged").exists() and not (folder / "last.ckpt").exists()


def test_the_next_write_leaves_the_whole_one(folder: Path, content: Content) -> None:
    (folder / "last.ckpt").write_bytes(b"")
    take_up(folder, lambda line: None)
    DurableIO().save_checkpoint(content(4), folder / "last.ckpt")
    assert steps(folder) == [4, 2]


def test_all_damaged(folder: Path) -> None:
    for path in last_files(folder):
        path.write_bytes(b"")
    with pytest.raises(InputError, match=r"no whole checkpoint to go on from: remove .*last-1"):
        take_up(folder, lambda line: None)


def test_nothing_yet_but_what_a_killed_process_left(tmp_path: Path) -> None:
    (tmp_path / ".last.ckpt.77.tmp").write_bytes(b"half")
    assert take_up(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [0, 1000, 100_000])
def test_a_full_disk_leaves_what_was_there(folder: Path, content: Content, size: int) -> None:
    with full_after(size), pytest.raises(InputError, match=r"No space left.*--resume"):
        DurableIO().save_checkpoint(content(4), folder / "last.ckpt")
    assert steps(folder) == [3, 2]
    assert {path.name for path in folder.iterdir()} == {"last.ckpt", "last-1.ckpt", "SHA256SUMS"}


@pytest.mark.parametrize("place", ["state_dict", "optimizer_states", "average"])
def test_non_finite_numbers_are_not_written(folder: Path, content: Content, place: str) -> None:
    bad = {**content(4), place: {"w": torch.tensor([float("nan")])}}
    with pytest.raises(NonFiniteError, match=rf"{place}.w is not finite after optimizer step 4"):
        DurableIO().save_checkpoint(bad, folder / "last.ckpt")
    assert steps(folder) == [3, 2]


# --- where a run goes on ----------------------------------------------------------------------


def saved_run(content: dict[str, Any], run: Path) -> list[dict[str, Any]]:
    DurableIO().save_checkpoint(content, run / "checkpoints" / "last.ckpt")
    tasks: list[dict[str, Any]] = content["mixture"]["tasks"]
    return tasks


def test_a_run_goes_on_until_all_steps_are_made(content: Content, tmp_path: Path) -> None:
    tasks = saved_run(content(3), tmp_path)
    assert last_state(tmp_path, tasks, 4) == tmp_path / "checkpoints" / "last.ckpt"
    assert last_state(tmp_path, tasks, 3) == 3


@pytest.mark.parametrize(("waited", "finished"), [(1, False), (2, True)])
def test_a_run_that_ran_out_of_patience_is_finished(
    content: Content, tmp_path: Path, waited: int, finished: bool
) -> None:
    state = {"EarlyStopping{'monitor': 'x'}": {"wait_count": waited, "patience": 2}}
    tasks = saved_run({**content(3), "callbacks": state}, tmp_path)
    assert (last_state(tmp_path, tasks, 9) == 3) is finished


def test_a_run_of_other_tasks(content: Content, tmp_path: Path) -> None:
    tasks = saved_run(content(3), tmp_path)
    with pytest.raises(InputError, match=r"--resume: the tasks of config\.yaml"):
        last_state(tmp_path, tasks[:2], 9)


def test_a_run_killed_before_its_first_write_begins_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert last_state(tmp_path, [], 9) is None
    assert "has no checkpoint yet: beginning" in capsys.readouterr().out
