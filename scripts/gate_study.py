"""Measures the evaluation gate: damaged copies of a model, and clean trainings with other seeds.

python scripts/gate_study.py faults --ckpt BEST.ckpt --suite FILE.yaml --out DIR [--rows N] \\
    [--data.root DATA]
python scripts/gate_study.py retrains --ckpt BEST.ckpt --suite FILE.yaml --out DIR \\
    [--config CONFIG.yaml] [--steps 40] [--seeds 20] [--rows N] [--data.root DATA] [...]

All damaged copies should be refused, and all trainings pass. What is finished in DIR is not trained
again; DIR/report.json has the numbers. Other arguments of `retrains` go to train.py.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from moe.cli import run, series_arguments, series_parser

TRAIN = Path(__file__).parents[1] / "train.py"


def main() -> None:
    """Parses the command line, judges, prints each verdict as it comes."""
    values, others = _arguments()

    from moe.measure import write_json
    from moe.rehearsal.judging import judge_faults, judge_retrains, judging_text

    shared = {"suite": values.suite, "root": values.root, "rows": values.rows}
    if values.what == "faults":
        found = judge_faults(values.ckpt, values.out, **shared)
    else:
        found = judge_retrains(
            values.ckpt,
            values.out,
            base=[*series_arguments(values), *others],
            train=TRAIN,
            steps=values.steps,
            seeds=values.seeds,
            **shared,
        )
    print(judging_text(found))
    write_json(found, str(values.out / "report.json"))


def _arguments() -> tuple[argparse.Namespace, list[str]]:
    parser = series_parser(__doc__, TRAIN.parent / "configs" / "local.yaml")
    parser.add_argument("what", choices=("faults", "retrains"))
    parser.add_argument("--ckpt", required=True, help="a .ckpt: what is damaged, or whose encoder")
    parser.add_argument("--suite", required=True, metavar="FILE.yaml", help="of the gate")
    parser.add_argument("--rows", type=int, help="of each task, instead of the suite's")
    parser.add_argument("--steps", type=int, default=40, help="optimizer steps of a training")
    parser.add_argument("--seeds", type=int, default=20, help="trainings to judge")
    values, others = parser.parse_known_args()
    if others and values.what == "faults":
        parser.error(f"faults takes no {' '.join(others)}")
    return values, others


if __name__ == "__main__":
    run(main)
