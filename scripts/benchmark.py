"""Paired speed ratios on this CPU: `python scripts/benchmark.py train-cpu [--json OUT]`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from moe.benchmark import CASES, compare, run_side, setup


def main() -> None:
    """Runs every case of a benchmark, prints a table, writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", nargs="?", choices=["train-cpu"], default="train-cpu")
    parser.add_argument("--rounds", type=int, default=7, help="interleaved pairs per case")
    parser.add_argument("--rows", type=int, default=16, help="rows of a micro-batch")
    parser.add_argument("--tokens", type=int, default=192, help="tokens of a row")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        sys.stdout.write(str(run_side(**json.loads(arguments.side))))
        return
    cases = {}
    for case in CASES:
        batch = (arguments.rows, arguments.tokens)
        cases[case] = compare(__file__, case, arguments.rounds, batch)
        ratio = cases[case]["ratio"]
        print(
            f"{case:<20}{ratio['median']:.2f}x ({ratio['min']:.2f} to {ratio['max']:.2f})  "
            f"{cases[case]['ours']:.0f} against {cases[case]['baseline']:.0f} tokens/s",
            flush=True,
        )
    report = {"name": arguments.name, "cases": cases, "setup": setup()}
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
