"""Exports a model for ONNX Runtime: `python scripts/export.py --ckpt PATH --out DIR [--int8]`.

Checks every expert against torch and writes nothing if an answer is too far off (exit code 1).
"""

from __future__ import annotations

import argparse
import sys

from moe.cli import run


def main() -> None:
    """Parses the command line, exports, prints how near the graphs are to torch."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ckpt", required=True, help="a .ckpt, a folder, or a hub id")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder that is not there yet")
    parser.add_argument("--int8", action="store_true", help="write a graph with 8-bit weights, too")
    arguments = parser.parse_args()

    from moe.onnx.export import export
    from moe.onnx.parity import ParityError, parity_text

    try:
        exported = export(arguments.ckpt, arguments.out, int8=arguments.int8)
    except ParityError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    print(parity_text(exported, arguments.out))


if __name__ == "__main__":
    run(main)
