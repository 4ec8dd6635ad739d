"""Measures the monitor: streams of validation rows, unchanged and changed.

python scripts/drift_study.py --ckpt BEST.ckpt [--data.root DATA] [--json OUT.json]
"""

from __future__ import annotations

import argparse

from moe.cli import output_file, run


def main() -> None:
    """Parses the command line, answers the rows, draws the streams, prints what was flagged."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--ckpt", required=True, help="a .ckpt, a folder, or a hub id")
    add("--data.root", dest="root", metavar="DIR", help="of relative sources")
    add("--tokens", type=int, help="of the rows of each task; all rows without it")
    add("--streams", type=int, default=20, help="of each kind")
    add("--length", type=int, default=10_000, help="requests of an unchanged stream")
    add("--window", type=int, default=500)
    add("--alpha", type=float, default=0.01)
    add("--horizon", type=int, default=20)
    add("--json", type=output_file, metavar="OUT.json", help="file for the numbers")
    values = parser.parse_args()

    from moe.measure import write_json
    from moe.monitor.drift import DriftConfig
    from moe.monitor.study import answer_rows, study, study_text

    config = DriftConfig(window=values.window, alpha=values.alpha, horizon=values.horizon)
    report = study(
        answer_rows(values.ckpt, values.root, values.tokens), config, values.streams, values.length
    )
    print(study_text(report))
    if values.json:
        write_json(report, values.json)


if __name__ == "__main__":
    run(main)
