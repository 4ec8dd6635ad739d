"""Short trainings that differ in one thing: `python scripts/ablate.py --out DIR [--only NAME]...`.

    python scripts/ablate.py --data.root DATA --steps 80 --seeds 0 1 --out runs/ablate

What is finished in DIR is not trained again. `moe/ablation.py` has the list of variants.
"""

from __future__ import annotations

from pathlib import Path

from moe.cli import parse_training, run, series_arguments, series_parser

TRAIN = Path(__file__).parents[1] / "train.py"


def main() -> None:
    """Trains every variant, prints the table as it grows, writes the JSON."""
    parser = series_parser(__doc__, TRAIN.parent / "configs" / "local.yaml")
    parser.add_argument("--steps", type=int, default=80, help="optimizer steps of each training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--only", action="append", metavar="NAME", help="variants; all without")
    arguments = parser.parse_args()

    from moe.ablation import VARIANTS, ablation_text, arguments_of, run_variant
    from moe.measure import write_json

    base = series_arguments(arguments)
    config, _ = parse_training(base)
    numbers = {**vars(config.optimizer), **vars(config.model.loss)}
    report = {}
    for variant in arguments.only or VARIANTS:
        report[variant] = run_variant(
            variant,
            arguments_of(variant, config.selected_tasks, numbers),
            steps=arguments.steps,
            seeds=arguments.seeds,
            base=base,
            folder=arguments.out,
            train=TRAIN,
        )
        print(f"{ablation_text(report)}\n", flush=True)
        write_json(report, str(arguments.out / "report.json"))


if __name__ == "__main__":
    run(main)
