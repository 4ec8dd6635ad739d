"""One joint model against one model per task: `python scripts/compare.py --out DIR ...`.

    python scripts/compare.py --config configs/local.yaml --data.root DATA --out runs/compare
    python scripts/compare.py ... --fraction 0.25 --seeds 0 1 2

Whatever is finished in DIR is not trained again. The joint run costs what `--config` says, the
single-task models together about the same.
"""

from __future__ import annotations

from pathlib import Path

from moe.cli import parse_training, run, series_arguments, series_parser

TRAIN = Path(__file__).parents[1] / "train.py"


def main() -> None:
    """Trains both sides for every seed, prints the tables, writes the JSON."""
    parser = series_parser(__doc__, TRAIN.parent / "configs" / "local.yaml")
    parser.add_argument("--fraction", type=float, default=1.0, help="of the steps, on both sides")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--joint", type=Path, help="a finished run of the joint model to take")
    parser.add_argument("--single_batch_size", type=int, default=32)
    parser.add_argument("--single_encoder_lr", type=float, default=1e-4)
    arguments = parser.parse_args()

    from moe.comparison import compare_seed, comparison_text
    from moe.measure import write_json

    base = series_arguments(arguments)
    config, values = parse_training(base)
    reports = {}
    for seed in arguments.seeds:
        reports[str(seed)] = compare_seed(
            config,
            values.trainer.max_steps,
            base=base,
            folder=arguments.out / f"seed{seed}",
            train=TRAIN,
            joint=arguments.joint,
            fraction=arguments.fraction,
            seed=seed,
            batch_size=arguments.single_batch_size,
            encoder_lr=arguments.single_encoder_lr,
        )
        print(f"seed {seed}, {arguments.fraction:g} of the steps")
        print(comparison_text(reports[str(seed)]), flush=True)
        write_json(reports, str(arguments.out / "report.json"))


if __name__ == "__main__":
    run(main)
