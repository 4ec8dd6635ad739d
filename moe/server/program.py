"""What the programs that answer have alike: options of the model, how they begin and how they end.

Imports nothing that an extra brings, so that a missing one is said in one line.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

from moe.cli import run

Add = Callable[..., Any]  # `ArgumentParser.add_argument`


def model_options(add: Add) -> None:
    """What answers, and where."""
    add("--ckpt", dest="checkpoint", metavar="PATH", help="a .ckpt, a folder, or a hub id")
    add("--onnx", metavar="DIR", help="an export of scripts/export.py, instead of --ckpt")
    add("--registry", metavar="DIR", help="models/NAME of scripts/gate.py: take what is current")
    add("--registry-seconds", type=float, default=2.0, help="between two looks at it")
    add("--precision", choices=["fp32", "int8"], help="of the export; int8 if that is fast here")
    add("--device", help="cpu, cuda, ...; a GPU if there is one without it")
    add("--threads", type=int, help="of a batch on a CPU; one per core without it")


def telemetry_options(add: Add) -> None:
    """What is written about requests."""
    add("--telemetry", metavar="DIR", help="write Parquet rows about requests, without their text")
    add("--telemetry-embeddings", action="store_true", default=False, help="with embeddings")
    add("--telemetry-bytes", type=int, default=2**30, help="of the folder; the oldest rows go")


def begin(package: str, extra: str, values: dict[str, Any]) -> None:
    """Calls `answer` of `moe.PACKAGE.run` and ends with its exit code.

    A missing extra and a user's mistake become one line and exit code 2.

    Args:
        package: Whose program it is.
        extra: That brings what it needs.
        values: Of the command line, by destination.
    """
    try:
        answer = import_module(f"moe.{package}.run").answer
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("moe"):
            raise
        print(f"error: no module {error.name}: pip install -e '.[{extra}]'", file=sys.stderr)
        sys.exit(2)
    run(lambda: sys.exit(answer(values)))
