"""Measures routing where it is hard: `python scripts/routing.py --ckpt PATH [--json OUT.json]`.

Beside the gate stand a hand-written rule and TF-IDF with logistic regression (extra `[compare]`).
"""

from __future__ import annotations

import argparse

from moe.cli import output_file, run


def main() -> None:
    """Parses the command line, routes, prints the tables, writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ckpt", required=True, help="a .ckpt, a folder, or a hub id")
    parser.add_argument("--rows", default="sample:routing", help="routing rows to measure")
    parser.add_argument("--data.root", dest="root", help="folder of relative sources")
    parser.add_argument("--json", type=output_file, metavar="OUT.json", help="file for the numbers")
    parser.add_argument("--device", help="cpu, cuda, ...; a GPU if there is one without it")
    arguments = parser.parse_args()

    from moe.measure import write_json
    from moe.routing_report import measure_routing, routing_text

    report = measure_routing(
        arguments.ckpt, arguments.rows, root=arguments.root, device=arguments.device
    )
    print(routing_text(report))
    if arguments.json:
        write_json(report, arguments.json)


if __name__ == "__main__":
    run(main)
