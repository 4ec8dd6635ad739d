"""Measures a checkpoint: `python eval.py --ckpt PATH [--test TASK=SOURCE]... [--json OUT.json]`."""

from __future__ import annotations

import argparse

from moe.cli import output_file, run


def main() -> None:
    """Parses the command line, evaluates, prints one table, writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ckpt", required=True, help="a .ckpt, a folder, or a hub id")
    parser.add_argument(
        "--test",
        action="append",
        default=[],
        metavar="TASK=SOURCE",
        help="rows to measure; without it the checkpoint's validation sources",
    )
    parser.add_argument("--json", type=output_file, metavar="OUT.json", help="file for the numbers")
    parser.add_argument("--routing", choices=("learned", "oracle"), default="learned")
    parser.add_argument(
        "--data.root",
        dest="root",
        metavar="DIR",
        help="folder of relative sources; that of the training without it",
    )
    parser.add_argument("--device", help="cpu, cuda, ...; a GPU if there is one without it")
    arguments = parser.parse_args()

    from moe.measure import measure, report_table, write_json

    report = measure(
        arguments.ckpt,
        tests=arguments.test,
        routing=arguments.routing,
        root=arguments.root,
        device=arguments.device,
    )
    print(report_table(report))
    if arguments.json:
        write_json(report, arguments.json)


if __name__ == "__main__":
    run(main)
