"""Paired ratios against Hugging Face's own models: `python scripts/benchmark.py NAME [--json OUT]`.

What came out, and the commands: docs/performance.md.
"""

from __future__ import annotations

import argparse
import json
import os

from moe.cli import output_file, run


def main() -> None:
    """Runs every case of a benchmark, prints a table, writes the JSON."""
    from moe.benchmarks import BENCHMARKS, Options, run_benchmark
    from moe.measure import write_json

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", nargs="?", choices=sorted(BENCHMARKS), help="which")
    parser.add_argument("--rounds", type=int, default=7, help="interleaved pairs per case")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of both sides")
    parser.add_argument("--ckpt", help="a trained model; one is built without it")
    parser.add_argument("--data.root", dest="root", help="train, offline: folder of its data")
    parser.add_argument("--json", type=output_file, metavar="OUT.json", help="file for the numbers")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        settings = json.loads(arguments.side)
        measure = BENCHMARKS[settings.pop("benchmark")].side
        assert measure is not None
        print(measure(**settings))
        return
    if arguments.name is None or arguments.rounds < 1 or arguments.threads < 1:
        parser.error(f"give a benchmark ({', '.join(BENCHMARKS)}), and positive numbers")
    options = Options(
        rounds=arguments.rounds,
        threads=arguments.threads,
        checkpoint=arguments.ckpt,
        data=arguments.root,
        script=__file__,
    )
    report = run_benchmark(arguments.name, BENCHMARKS[arguments.name], options)
    if arguments.json:
        write_json(report, arguments.json)


if __name__ == "__main__":
    run(main)
