"""Changes a trained model brick by brick: `python scripts/bricks.py OPERATION --ckpt IN --out OUT`.

grow, update, merge, remove write a new checkpoint; extract, compare, show, analyse look at one.
What each does, with a walk through: docs/bricks.md. Exit code 1: the gate (--suite) refused.
"""

from __future__ import annotations

import sys

from moe.cli import run


def main() -> None:
    """Parses the command line and runs the operation."""
    from moe.bricks.command import bricks_parser, run_bricks

    sys.exit(run_bricks(bricks_parser(__doc__).parse_args()))


if __name__ == "__main__":
    run(main)
