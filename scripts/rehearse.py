"""Runs the loop of docs/operations.md once, with the packaged sample, and stops where it breaks.

python scripts/rehearse.py --out runs/operations

Exit code 0: every step did what it should, 1: one did not, 2: a mistake in the call.
"""

from __future__ import annotations

import argparse
import sys

from moe.cli import run


def main() -> None:
    """Parses the command line, runs the steps, each by its command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="new folder of all it writes")
    parser.add_argument("--ckpt", help="a checkpoint of configs/default.yaml, instead of training")
    parser.add_argument("--suite", metavar="FILE.yaml", help="instead of the sample's")
    values = parser.parse_args()

    from moe.rehearsal.loop import SUITE, rehearse
    from moe.rehearsal.shell import StepFailed

    try:
        rehearse(values.out, values.ckpt, values.suite or SUITE)
    except StepFailed as error:
        print(f"\nfailed: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    run(main)
