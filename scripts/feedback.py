"""Reviews the corrections of `scripts/serve.py --feedback`, and writes what may be learned from.

    python scripts/feedback.py --quarantine DIR --out ROWS [--ckpt CKPT] [--trust SOURCE]...

Exit code 0, 2 is a mistake in the call.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from moe.cli import run


def main() -> None:
    """Parses the command line, reviews, writes a file for each task, prints what is left out."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quarantine", required=True, metavar="DIR", help="of the server")
    parser.add_argument("--out", required=True, type=Path, metavar="ROWS", help="folder to write")
    parser.add_argument("--trust", action="append", default=[], metavar="SOURCE", help="see docs")
    parser.add_argument("--ckpt", help="that was asked: says how sure its answers usually are")
    values = parser.parse_args()

    from moe.feedback import read_quarantine
    from moe.review import review, sureness, write_rows

    sure = None if values.ckpt is None else sureness(values.ckpt)
    found = review(read_quarantine(values.quarantine), values.trust, sure)
    for reason, count in found.left_out.items():
        print(f"left out {count}: {reason}")
    for path in write_rows(found.usable, values.out):
        print(f"written: {path}")
    print(f"{len(found.usable)} corrections may be learned from")


if __name__ == "__main__":
    run(main)
