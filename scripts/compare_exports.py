"""What an export loses: its metrics beside those of the checkpoint, on labelled rows.

`python scripts/compare_exports.py --ckpt PATH --onnx DIR [--test TASK=SOURCE]... [--json OUT.json]`
"""

from __future__ import annotations

import argparse

from moe.cli import output_file, run


def main() -> None:
    """Parses the command line, measures every precision, prints one table, writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ckpt", required=True, help="a .ckpt, a folder, or a hub id")
    parser.add_argument("--onnx", required=True, metavar="DIR", help="what export.py made of it")
    parser.add_argument(
        "--test",
        action="append",
        default=[],
        metavar="TASK=SOURCE",
        help="rows to measure; without it the checkpoint's validation sources",
    )
    parser.add_argument("--data.root", dest="root", metavar="DIR", help="folder of the sources")
    parser.add_argument("--json", type=output_file, metavar="OUT.json", help="file for the numbers")
    arguments = parser.parse_args()

    from moe.measure import write_json
    from moe.onnx.compare import compare_exports, comparison_table

    report = compare_exports(
        arguments.ckpt, arguments.onnx, tests=arguments.test, root=arguments.root
    )
    print(comparison_table(report))
    if arguments.json:
        write_json(report, arguments.json)


if __name__ == "__main__":
    run(main)
