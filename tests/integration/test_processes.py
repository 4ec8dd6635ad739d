"""Two processes in whole trainings, by the checks of `scripts/chaos/run.py` in short forms."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks the processes")


def check(call: str, folder: Path) -> dict[str, Any]:
    """A check in a process that forks nothing but what it imported; its report."""
    program = (
        "import sys, torch\nfrom pathlib import Path\n"
        "from moe.chaos.one_of_two import nonfinite_on_one, other_counts, stops_of_one\n"
        "from moe.chaos.parity import parity\n"
        "from moe.chaos.shared_rows import evaluation_sizes\n"
        "torch.set_num_threads(1)\nfolder = Path(sys.argv[1])\n"
        f"print({call}.finish(folder / 'report.json'))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", program, str(folder)], cwd=folder, env=environment,
                          capture_output=True, text=True, timeout=600)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    report: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return report


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    report = check("parity(folder, 4, ['at once'])", tmp_path)
    assert report["failures"] == []
    assert report["cases"] == 6
    assert report["numbers"]["absent"] == 1.0  # one question a step, on one of two ranks


@pytest.mark.slow
def test_two_processes_train_as_one_in_several_groups(tmp_path: Path) -> None:
    assert check("parity(folder, 8, ['in groups'])", tmp_path)["failures"] == []


@pytest.mark.slow
def test_rows_of_a_validation_are_counted_once(tmp_path: Path) -> None:
    report = check("evaluation_sizes(folder, 5)", tmp_path)
    assert report["failures"] == [] and report["cases"] == 3 * 5


@pytest.mark.slow
def test_a_run_goes_on_with_fewer_and_more_processes(tmp_path: Path) -> None:
    report = check("other_counts(folder)", tmp_path)
    assert report["failures"] == [] and report["cases"] == 4 + 20


@pytest.mark.slow
def test_a_signal_to_one_of_two_stops_both(tmp_path: Path) -> None:
    assert check("stops_of_one(folder, 2)", tmp_path)["failures"] == []


@pytest.mark.slow
def test_a_step_that_is_not_finite_on_one_of_two_is_skipped_by_both(tmp_path: Path) -> None:
    assert check("nonfinite_on_one(folder, ['loss'])", tmp_path)["failures"] == []


@pytest.mark.slow
def test_the_processes_that_train_py_starts_itself(tmp_path: Path) -> None:
    program = "from pathlib import Path; from moe.chaos.project import make_project\n"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("OMP_NUM_THREADS", None)
    subprocess.run([sys.executable, "-c", program + "make_project(Path('.'))"], cwd=tmp_path,
                   env=environment, check=True)  # fmt: skip
    command = [sys.executable, ROOT / "train.py", "--config", "tiny.yaml", "--trainer.devices", 2,
               "--trainer.max_steps", 3]  # fmt: skip
    done = subprocess.run(list(map(str, command)), cwd=tmp_path, env=environment, timeout=600,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("best checkpoint:") == 1  # one of the two reports
    runs = [path.name for path in (tmp_path / "runs" / "tiny").iterdir()]
    assert runs == ["version_0"]
    wrong = [*command[:-2], "--trainer.max_steps", 0, "--trainer.max_epochs", -1]
    done = subprocess.run(list(map(str, wrong)), cwd=tmp_path, env=environment, timeout=600,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.count("error: training has no end") == 1
