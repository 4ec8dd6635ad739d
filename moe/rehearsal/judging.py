"""The evaluation gate itself, measured: it refuses damaged models and passes clean trainings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from moe.checkpoint import load_bundle
from moe.comparison import Side as Training
from moe.comparison import run_side, steps_alone
from moe.rehearsal.faults import FAULTS, damaged
from moe.release.canaries import read_canaries
from moe.release.check import broken, check_sides
from moe.release.measuring import measure_side
from moe.release.rows import read_rows
from moe.release.rules import Verdict
from moe.release.sides import load_side
from moe.release.suite import load_suite
from moe.types import InputError

Say = Callable[[str], None]
UNDAMAGED = "an undamaged copy"


class Judge:
    """The gate with a baseline that is measured once.

    Args:
        baseline: A side (`moe.release.sides`).
        suite: YAML file.
        root: Folder of relative sources instead of the suite's own.
        rows: Most rows of each task, and a third of it perturbed; None is what the suite says.
    """

    def __init__(
        self,
        baseline: str | Path,
        suite: str | Path,
        root: str | None = None,
        rows: int | None = None,
    ) -> None:
        self._suite = load_suite(suite)
        if rows is not None:
            self._suite = replace(self._suite, rows=rows, perturbed_rows=max(rows // 3, 1))
        self._rows = read_rows(self._suite, root)
        self._canaries: list[dict[str, Any]] = []
        if self._suite.canaries is not None:
            self._canaries = read_canaries(Path(suite).parent / self._suite.canaries)
        self._baseline = load_side(str(baseline))
        self._theirs = measure_side(self._baseline, self._rows, self._suite)

    def refusals(self, candidate: str | Path) -> list[Verdict]:
        """The verdicts that refuse a candidate."""
        try:
            side = load_side(str(candidate))
        except InputError as error:
            return [broken("loads", error)]
        verdicts = check_sides(
            side,
            self._baseline,
            self._suite,
            self._rows,
            self._canaries,
            self._theirs,
        )
        return [verdict for verdict in verdicts if verdict.outcome == "refused"]


def judge_faults(
    ckpt: str,
    out: Path,
    *,
    suite: str,
    root: str | None = None,
    rows: int | None = None,
    say: Say = print,
) -> dict[str, list[str]]:
    """What refuses each damaged copy of a checkpoint, and damaged exports of it.

    Args:
        ckpt: A trained model, also the baseline.
        out: Folder for one copy at a time.
        suite: Of the gate.
        root: Folder of relative sources.
        rows: Most rows of each task; None is what the suite says.
        say: Told each finding at once.

    Returns:
        By damage the names of what refuses it; nothing refuses `UNDAMAGED`, if all is well.

    Raises:
        InputError: The suite, its rows or the model cannot be read, or have not what is damaged.
    """
    from moe.rehearsal.export_faults import EXPORT_FAULTS, damaged_export

    judge = Judge(ckpt, suite, root, rows)
    out.mkdir(parents=True, exist_ok=True)
    found = {}
    for name in (UNDAMAGED, *FAULTS, *EXPORT_FAULTS):
        with TemporaryDirectory(dir=out) as temporary:
            folder = Path(temporary) / "candidate"
            if name in EXPORT_FAULTS:
                damaged_export(ckpt, EXPORT_FAULTS[name], folder)
            else:
                damaged(ckpt, FAULTS.get(name), folder)
            found[name] = _told(name, judge.refusals(folder), say)
    return found


def judge_retrains(
    ckpt: str,
    out: Path,
    *,
    base: Sequence[str],
    train: Path,
    steps: int,
    seeds: int,
    suite: str,
    root: str | None = None,
    rows: int | None = None,
    say: Say = print,
) -> dict[str, list[str]]:
    """What refuses trainings that differ from the baseline in their seed alone.

    All of them start from the encoder of one checkpoint, with new experts and a new gate: so they
    are short, and still as good as what is released. Finished ones are not trained again.

    Args:
        ckpt: Whose encoder.
        out: Folder of runs.
        base: `--config ...` and other arguments of all trainings.
        train: The `train.py` to call.
        steps: Optimizer steps of each.
        seeds: Number of candidates; seed 0 trains the baseline.
        suite: Of the gate.
        root: Folder of relative sources.
        rows: Most rows of each task; None is what the suite says.
        say: Told each finding at once.

    Returns:
        By training the names of what refuses it.
    """
    encoder = out / "encoder"
    bundle = load_bundle(ckpt)
    bundle.model.encoder.save_pretrained(encoder)
    (encoder / "tokenizer.json").write_text(bundle.tokenizer.to_json(), encoding="utf-8")
    every = (*base, *steps_alone(steps), "--model.encoder.name", str(encoder))

    def trained(seed: int) -> Path:
        side = Training(name=f"seed{seed}", arguments=("--seed_everything", str(seed)))
        return run_side(side, every, out, train) / "checkpoints" / "best.ckpt"

    judge = Judge(trained(0), suite, root, rows)
    names = [f"seed {seed}" for seed in range(1, seeds + 1)]
    return {
        name: _told(name, judge.refusals(trained(seed)), say) for seed, name in enumerate(names, 1)
    }


def _told(name: str, refusals: Sequence[Verdict], say: Say) -> list[str]:
    reasons = "; ".join(f"{v.name}: {v.reason}" for v in refusals[:3])
    say(f"{name}: {f'refused by {len(refusals)}: {reasons}' if refusals else 'passed'}")
    return [verdict.name for verdict in refusals]


def judging_text(found: Mapping[str, Sequence[str]]) -> str:
    """How many were refused, and who was not."""
    passed = [name for name, refusals in found.items() if not refusals]
    return f"{len(found) - len(passed)} of {len(found)} refused; passed: {', '.join(passed) or '-'}"
