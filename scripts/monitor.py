"""Looks whether traffic is still what the model was validated on.

    python scripts/monitor.py --ckpt BEST.ckpt --telemetry DIR [--html report.html]
    python scripts/monitor.py --ckpt OLD.ckpt --fit reference.npz [--data.root DATA]

Exit code 0 nothing changed, 1 an alert, 2 a mistake in the call.
"""

from __future__ import annotations

import argparse
import sys

from moe.cli import output_file, run


def main() -> None:
    """Parses the command line, compares, prints the alerts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--ckpt", required=True, help="the checkpoint that was served, or that was exported")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--telemetry", metavar="DIR", help="of scripts/serve.py --telemetry")
    what.add_argument("--fit", metavar="OUT.npz", help="write the reference of an older checkpoint")
    add("--data.root", dest="root", metavar="DIR", help="of relative sources, for --fit")
    add("--reference", metavar="FILE|DIR", help="of --fit, or telemetry of a good time")
    add("--model", metavar="HASH", help="which model's requests; of the last one without it")
    add("--window", type=int, default=500, help="requests that are looked at together")
    add("--alpha", type=float, default=0.01, help="chance of a false alert over the horizon")
    add("--horizon", type=int, default=20, help="windows over which alpha is shared")
    add("--html", metavar="OUT.html", help="report in one file")
    add("--json", type=output_file, metavar="OUT.json", help="the same for programs")
    add("--tensorboard", metavar="DIR", help="folder of TensorBoard events to write")
    values = vars(parser.parse_args())

    from moe.monitor.commands import fit, watch

    out, root = values.pop("fit"), values.pop("root")
    if out is not None:
        fit(values["ckpt"], out, root)
        return
    sys.exit(watch(values.pop("ckpt"), values.pop("telemetry"), **values))


if __name__ == "__main__":
    run(main)
