"""Says what this machine can do and how to start: `python scripts/doctor.py [--json]`.

Exit code 0 if plain `python train.py` can run, 2 with one line on what to install otherwise.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

# From a checkout in which nothing is installed yet, too.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def shown(value: Any) -> str:
    """A value of the report in words."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {shown(entry)}" for name, entry in value.items())
    return "-" if value is None else str(value)


def main() -> int:
    """Prints the report; returns the exit code."""
    parser = argparse.ArgumentParser(prog="doctor.py", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--data.root",
        dest="data_root",
        type=Path,
        default=Path("."),
        help="folder in which configs/local.yaml would look for its files",
    )
    arguments = parser.parse_args()

    from moe.doctor import examine

    report = examine(arguments.data_root)
    if arguments.json:
        print(json.dumps(asdict(report), indent=2))
    else:
        for name, value in asdict(report).items():
            print(f"{name:<12}{shown(value)}")
    if report.command is None:
        print(f"error: python train.py cannot run: {report.reason}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    if sys.version_info < (3, 11):  # noqa: UP036, the one program that may meet an older one
        print(
            f"error: Python 3.11 or newer is needed, this is {sys.version.split()[0]}",
            file=sys.stderr,
        )
        sys.exit(2)
    sys.exit(main())
