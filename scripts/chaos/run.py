"""Breaks trainings and checkpoints: `python scripts/chaos/run.py NAME [--json OUT]`.

Prints one line for each check, exit code 1 if a case failed. `docs/reliability.md` says what each
one does and how long it takes. Needs Linux.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch

from moe.chaos.checks import CHECKS


def main() -> int:
    """Runs the named checks; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="+", choices=[*CHECKS, "all"], metavar="NAME",
                        help=f"{', '.join(CHECKS)}, or all")  # fmt: skip
    parser.add_argument("--json", type=Path, help="folder for NAME.json")
    parser.add_argument("--scratch", type=Path, help="folder to work in; it is kept")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # threads do not survive the forks
    names = list(CHECKS) if "all" in arguments.names else arguments.names
    failed = False
    for name in names:
        with tempfile.TemporaryDirectory(prefix="chaos-") as temporary:
            Path(temporary).chmod(0o755)  # one check reads as another user
            report = CHECKS[name]((arguments.scratch or Path(temporary)) / name)
        print(report.finish(arguments.json and arguments.json / f"{name}.json"), flush=True)
        for line in report.failures[:20]:
            print(f"  {line}", flush=True)
        failed |= bool(report.failures)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
