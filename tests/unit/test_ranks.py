"""Shares of the ranks; sums and agreement between two processes, over gloo."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from moe import ranks
from moe.types import InputError

ROOT = Path(__file__).parents[2]


def test_the_costliest_go_first_to_whoever_has_least() -> None:
    # 9 to rank 0; 7 and then 3 (10 after it) to rank 1; 2 to rank 0 (11); 2 to rank 1 (12).
    assert ranks.shares([2, 9, 3, 7, 2], 2) == [[0, 1], [2, 3, 4]]


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("costs", [[5] * 4, [100, 1, 1, 1, 1], [3, 1, 4, 1, 5, 9, 2, 6]])
def test_every_item_has_one_rank_and_no_rank_is_idle(costs: list[int], count: int) -> None:
    parts = ranks.shares(costs, count)
    assert len(parts) == count and all(part == sorted(part) and part for part in parts)
    assert sorted(index for part in parts for index in part) == list(range(len(costs)))


def test_fewer_items_than_ranks() -> None:
    assert ranks.shares([4], 3) == [[0], [], []]
    assert ranks.shares([], 2) == [[], []]


def test_alone_there_is_nobody_to_wait_for() -> None:
    values = torch.tensor([1.0, 2.0])
    assert ranks.sum_over_ranks(values) is values
    assert (ranks.num_ranks(), ranks.rank()) == (1, 0)
    assert ranks.summed([1, 0]) == [1, 0]
    assert ranks.gathered("x") == ranks.on_all("x") == ["x"]
    assert ranks.from_first(lambda: 3) == ranks.first_before_others(lambda: 3) == 3
    with pytest.raises(InputError, match="no such file"):
        ranks.from_first(fails)


def fails() -> None:
    raise InputError("no such file")


def test_two_processes_agree(tmp_path: Path) -> None:
    """This file, run as a program twice: what each of the two found is in a file."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    found = tmp_path / "rendezvous"
    pair = [
        subprocess.Popen([sys.executable, __file__, str(found), str(number), str(tmp_path)],
                         env=environment, cwd=ROOT)
        for number in (0, 1)
    ]  # fmt: skip
    assert [process.wait(120) for process in pair] == [0, 0]
    first, second = (json.loads((tmp_path / f"{number}.json").read_text()) for number in (0, 1))
    assert first.pop("made_first") and not second.pop("made_first")
    assert (first.pop("gathered"), second.pop("gathered")) == (["0", "1"], [])
    assert (first.pop("kept"), second.pop("kept")) == ([1.0, 3.0], [2.0, 2.0])  # what went in
    assert first == second == {
        "sum": [3.0, 5.0],  # 1 + 2 and 3 + 2
        "summed": [1.0, 1.0],  # each of the two signals was sent to one of them
        "on_all": ["0", "1"],
        "from_first": "made by 0",
        "error": "no such file",  # which rank 0 alone looked for
    }


def as_one_of_two(store: str, number: int, folder: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=number,
                                         world_size=2)  # fmt: skip
    own = torch.tensor([1.0, 3.0] if number == 0 else [2.0, 2.0])
    error = ""
    try:
        ranks.from_first(fails if number == 0 else lambda: None)
    except InputError as met:
        error = str(met)
    marker = folder / "made"

    def make() -> bool:
        before = marker.exists()
        marker.touch()
        return not before

    found = {
        "sum": ranks.sum_over_ranks(own).tolist(),
        "summed": ranks.summed([number == 0, number == 1]),
        "on_all": ranks.on_all(str(number)),
        "gathered": ranks.gathered(str(number)),
        "from_first": ranks.from_first(lambda: f"made by {number}"),
        "error": error,
        "made_first": ranks.first_before_others(make),
        "kept": own.tolist(),
    }
    (folder / f"{number}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    as_one_of_two(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
