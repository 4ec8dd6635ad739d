"""Refuses a worse model, and keeps the released ones.

    python scripts/gate.py check --candidate NEW --baseline OLD --suite configs/suites/sample.yaml
    python scripts/gate.py promote --registry models/NAME --candidate NEW --report gate/report.json
    python scripts/gate.py rollback --registry models/NAME

Exit code 0 passed, 1 refused, 2 a mistake in the call.
"""

from __future__ import annotations

import argparse
import sys

from moe.cli import run


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = options.add_subparsers(dest="command", required=True)
    side = "a .ckpt, a folder, an export, EXPORT@int8, or models/NAME"
    check = commands.add_parser("check", help="judge a candidate")
    check.add_argument("--candidate", required=True, help=side)
    check.add_argument("--baseline", help=f"{side}; without it only absolute limits count")
    check.add_argument("--suite", required=True, metavar="FILE.yaml", help="rows and rules")
    check.add_argument("--data.root", dest="root", metavar="DIR", help="of relative sources")
    check.add_argument("--report", default="gate/report", help="path of .json, .md and .xml")
    check.add_argument("--device", help="cpu, cuda, ...; a GPU if there is one without it")
    promote = commands.add_parser("promote", help="take in a model that passed; make it current")
    promote.add_argument("--registry", required=True, metavar="models/NAME")
    promote.add_argument("--candidate", required=True, help="as it was checked")
    promote.add_argument("--report", default="gate/report.json", help="of the check")
    rollback = commands.add_parser("rollback", help="make the version before current again")
    rollback.add_argument("--registry", required=True, metavar="models/NAME")
    rollback.add_argument("--to", metavar="VERSION", help="another version than the one before")
    return options


def main() -> None:
    """Parses the command line and runs the command."""
    values = vars(parser().parse_args())

    from moe.release import commands
    from moe.release.registry import Refused

    try:
        sys.exit(getattr(commands, values.pop("command"))(**values))
    except Refused as error:
        print(f"refused: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    run(main)
