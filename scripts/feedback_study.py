"""Measures what honest and hostile feedback does to a trained model that has a task `intent`.

python scripts/feedback_study.py --ckpt BEST.ckpt --out DIR --suite FILE.yaml --label set_alarm \\
    --expert intent-0 [--data.root DATA] [--json OUT.json]
"""

from __future__ import annotations

import argparse

from moe.cli import output_file, run


def main() -> None:
    """Parses the command line, sends, reviews, updates and judges; prints what was found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--ckpt", required=True, help="a .ckpt")
    add("--out", required=True, metavar="DIR", help="new folder of all it writes")
    add("--suite", required=True, metavar="FILE.yaml", help="of the gate")
    add("--label", required=True, help="what 'ping me at six' should mean")
    add("--expert", required=True, help="which one learns")
    add("--data.root", dest="root", metavar="DIR", help="of relative sources")
    add("--json", type=output_file, metavar="OUT.json", help="file for the numbers")
    values = vars(parser.parse_args())

    from moe.measure import write_json
    from moe.rehearsal.feedback import study

    path = values.pop("json")
    report = study(values.pop("ckpt"), values.pop("out"), **values)
    if path:
        write_json(report, path)


if __name__ == "__main__":
    run(main)
