"""Measures merging: two parents that continue an expert on half of the rows each, by each method.

python scripts/merge_study.py --ckpt BEST.ckpt --task qa [--data.root DATA] [--json OUT.json] \\
    [--rows 600] [--validation 300] [--healing_steps 500]
"""

from __future__ import annotations

import argparse
from functools import partial

from moe.cli import output_file, run


def main() -> None:
    """Parses the command line, trains, merges and heals; prints each result as it comes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--ckpt", required=True, help="a .ckpt, a folder, or a hub id")
    add("--task", required=True, help="one with a single expert")
    add("--data.root", dest="root", metavar="DIR", help="of relative sources")
    add("--rows", type=int, default=600, help="training rows of each parent")
    add("--validation", type=int, default=300, help="most rows to measure on")
    add("--healing_steps", type=int, default=500, help="after merging; 0 is none")
    add("--json", type=output_file, metavar="OUT.json", help="file for the numbers")
    values = parser.parse_args()

    from moe.bricks.merge_study import merge_study, read_halves
    from moe.checkpoint import load_bundle
    from moe.measure import write_json

    bundle = load_bundle(values.ckpt)
    halves = read_halves(bundle, values.task, values.root, values.rows, values.validation)
    say = partial(print, flush=True)
    found = merge_study(bundle, halves, values.healing_steps, say=say)
    if values.json:
        write_json(found, values.json)


if __name__ == "__main__":
    run(main)
