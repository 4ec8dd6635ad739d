"""The command line of `scripts/bricks.py`: one sub-command for each operation."""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from moe.bricks.history import Changed
from moe.checkpoint import load_bundle, save_checkpoint
from moe.types import ExpertType, InputError

METHODS = ("average", "task-arithmetic", "ties", "fisher")


def bricks_parser(description: str | None) -> argparse.ArgumentParser:
    """All operations with their options."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    operations = parser.add_subparsers(dest="operation", required=True, metavar="OPERATION")
    grow = _writing(operations, "grow", "a new expert, for a new task or for one it has")
    where = grow.add_mutually_exclusive_group(required=True)
    where.add_argument("--task", help="name of the new task")
    where.add_argument("--also-for", metavar="TASK", help="a task that gets a further expert")
    grow.add_argument("--type", choices=get_args(ExpertType), default="classifier")
    grow.add_argument("--out_of_scope", help="label of the rows that belong to no class")
    grow.add_argument("--old_root", help="folder of the old data, if the checkpoint has no memory")
    _rows(grow, required=True)
    _fit(grow)
    update = _writing(operations, "update", "one expert trained further, and nothing else")
    update.add_argument("--expert", required=True)
    update.add_argument("--fresh", action="store_true", help="from new weights")
    _rows(update, required=False)
    update.add_argument("--feedback", metavar="DIR", help="of scripts/feedback.py, not --train")
    update.add_argument("--old_root", help="folder of the old data, for --feedback and --suite")
    update.add_argument("--own_rows", type=int, help="most old rows of the task, for --feedback")
    update.add_argument("--suite", metavar="FILE.yaml", help="ask the gate: write what passed")
    _fit(update)
    merge = _writing(operations, "merge", "two experts into one, or one from another checkpoint")
    merge.add_argument("--experts", nargs="+", required=True, metavar="NAME")
    merge.add_argument("--method", choices=METHODS)
    merge.add_argument("--from", dest="other", metavar="CKPT", help="where the second one is")
    merge.add_argument("--base", metavar="CKPT", help="where both were still one")
    merge.add_argument("--healing_steps", type=int, help="optimizer steps of the merged expert")
    merge.add_argument("--old_root", help="folder of the old data, if there is no memory")
    _rows(merge, required=False)
    remove = _writing(operations, "remove", "an expert or a task out again")
    which = remove.add_mutually_exclusive_group(required=True)
    which.add_argument("--expert")
    which.add_argument("--task")
    extract = _reading(operations, "extract", "one task as a model of Hugging Face's own class")
    extract.add_argument("--out", required=True, metavar="DIR")
    extract.add_argument("--task", required=True)
    extract.add_argument("--expert", help="if the task has several")
    compare = operations.add_parser("compare", help="metrics and tensors of two checkpoints")
    compare.add_argument("checkpoints", nargs=2, metavar="CKPT")
    compare.add_argument("--measure", action="store_true", help="measure both now")
    compare.add_argument("--test", action="append", default=[], metavar="TASK=SOURCE")
    compare.add_argument("--data.root", dest="root")
    show = operations.add_parser("show", help="parts, parameters and history")
    show.add_argument("ckpt", metavar="CKPT")
    analyse = _reading(operations, "analyse", "look inside: neurons, emergent bricks, the gate")
    analyse.add_argument("--out", required=True, metavar="DIR")
    analyse.add_argument("--rows", type=int, default=200, help="validation rows of each task")
    analyse.add_argument("--data.root", dest="root", help="folder of relative sources")
    return parser


def _reading(operations: Any, name: str, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = operations.add_parser(name, help=text, description=text)
    parser.add_argument("--ckpt", required=True, help="a .ckpt, a folder, or a hub id")
    return parser


def _writing(operations: Any, name: str, text: str) -> argparse.ArgumentParser:
    parser = _reading(operations, name, text)
    parser.add_argument("--out", required=True, metavar="CKPT", help="a .ckpt that is written")
    return parser


def _rows(parser: argparse.ArgumentParser, *, required: bool) -> None:
    parser.add_argument("--train", required=required, metavar="SOURCE")
    parser.add_argument("--validation", metavar="SOURCE", help="10 %% of the rows without it")
    parser.add_argument("--text", metavar="COLUMN")
    parser.add_argument("--context", metavar="COLUMN")
    parser.add_argument("--label", metavar="COLUMN")
    parser.add_argument("--data.root", dest="root", default=".", help="folder of relative sources")


def _fit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--lr", type=float, help="largest learning rate")
    parser.add_argument("--seed", type=int, default=0)


def run_bricks(values: argparse.Namespace) -> int:
    """Runs one operation, prints what changed and what provably not; 1 if the gate refused it."""
    start = time.monotonic()
    if values.operation in _READERS:
        print(_READERS[values.operation](values))
        return 0
    out = Path(values.out)
    if out.suffix != ".ckpt":
        raise InputError(f"--out {values.out}: expected a file that ends in .ckpt")
    if out.exists():
        raise InputError(f"--out {values.out}: is there already; nothing is changed in place")
    if getattr(values, "suite", None) is not None:
        from moe.bricks.judged import check_question

        check_question(values.ckpt, values.suite, values.old_root)
    changed: Changed = _WRITERS[values.operation](values)
    print(_changed_text(changed, values.ckpt))
    wrote = _write(changed, out, values)
    took = f"{time.monotonic() - start:.0f} s"
    print(
        f"\n{values.operation}: {took}, {f'wrote {out}' if wrote else 'refused, nothing written'}"
    )
    return 0 if wrote else 1


def _write(changed: Changed, out: Path, values: argparse.Namespace) -> bool:
    """Writes the checkpoint, if the gate is asked only one that passes; whether it did."""
    if getattr(values, "suite", None) is None:
        save_checkpoint(changed.bundle, out)
        return True
    from moe.bricks.judged import report_of, save_if_passed
    from moe.release.report import summary

    report = save_if_passed(
        changed.bundle, out, baseline=values.ckpt, suite=values.suite, root=values.old_root
    )
    print(f"\n{summary(report)}\nreport: {report_of(out)}.md, .json, .xml")
    return report.passed


def _changed_text(changed: Changed, source: str) -> str:
    from moe.bricks.compare import metrics_text
    from moe.bricks.proof import proof_text

    entry = changed.bundle.history[-1]
    before, after = entry["metrics_before"], entry["metrics_after"]
    moved = {name: after[name] for name in after if after[name] != before.get(name)}
    metrics = metrics_text({k: before[k] for k in moved if k in before}, moved) if moved else ""
    proof = f"tensors and fitted numbers beside {source}, by SHA-256:\n"
    return "\n\n".join(
        [*changed.notes, *([metrics] if moved else []), proof + proof_text(changed.difference)]
    )


def _task_config(values: argparse.Namespace) -> Any:
    from moe.config import TaskConfig

    return TaskConfig(
        type=getattr(values, "type", "classifier"),
        train=values.train,
        validation=values.validation,
        text=values.text,
        context=values.context,
        label=values.label,
        out_of_scope=getattr(values, "out_of_scope", None),
    )


def _fit_config(values: argparse.Namespace, default: Any) -> Any:
    config = replace(default, seed=values.seed)
    if values.epochs is not None:
        config = replace(config, epochs=values.epochs)
    if values.lr is not None:
        config = replace(config, optimizer=replace(config.optimizer, expert_lr=values.lr))
    return config


def _grow(values: argparse.Namespace) -> Changed:
    from moe.bricks.grow import GROW, grow

    return grow(
        load_bundle(values.ckpt),
        task=values.task or values.also_for,
        config=_task_config(values),
        root=values.root,
        also=values.also_for is not None,
        fit=_fit_config(values, GROW),
        old_root=values.old_root,
    )


def _update(values: argparse.Namespace) -> Changed:
    from moe.bricks.update import UPDATE, update

    if (values.train is None) == (values.feedback is None):
        raise InputError("update: give either --train SOURCE or --feedback DIR")
    if values.feedback is not None:
        return _learn(values)
    if values.own_rows is not None:
        raise InputError(f"--own_rows {values.own_rows}: belongs to --feedback")
    return update(
        load_bundle(values.ckpt),
        expert=values.expert,
        config=_task_config(values),
        root=values.root,
        fit=_fit_config(values, UPDATE),
        fresh=values.fresh,
    )


def _learn(values: argparse.Namespace) -> Changed:
    from moe.bricks.corrections import CORRECT, update_from_feedback
    from moe.bricks.lesson import OWN_ROWS

    given = [name for name in ("validation", "text", "context", "label") if getattr(values, name)]
    if given or values.root != ".":
        named = f"--{given[0]}" if given else f"--data.root {values.root}"
        raise InputError(f"{named}: belongs to --train; with --feedback give --old_root")
    if values.suite is None:
        raise InputError("update --feedback: what is learned from feedback is judged: give --suite")
    return update_from_feedback(
        load_bundle(values.ckpt),
        expert=values.expert,
        folder=values.feedback,
        root=values.old_root,
        fit=_fit_config(values, CORRECT),
        own_rows=OWN_ROWS if values.own_rows is None else values.own_rows,
        fresh=values.fresh,
    )


def _merge(values: argparse.Namespace) -> Changed:
    from moe.bricks.bring import bring
    from moe.bricks.merge import healing_fit, merge

    bundle = load_bundle(values.ckpt)
    other = None if values.other is None else load_bundle(values.other)
    names = values.experts
    if values.method is None:
        if other is None or len(names) != 1:
            raise InputError("merge: give --method with two --experts, or --from with one expert")
        return bring(bundle, expert=names[0], other=other, old_root=values.old_root)
    if len(names) == 1 and other is not None:
        names = names * 2  # the same expert in both
    if len(names) != 2:
        raise InputError(f"--experts {' '.join(names)}: {values.method} merges two")
    healing = None
    if values.healing_steps is not None:
        healing = healing_fit(values.healing_steps)
    return merge(
        bundle,
        experts=(names[0], names[1]),
        method=values.method,
        other=other,
        base=None if values.base is None else load_bundle(values.base),
        config=None if values.train is None else _task_config(values),
        root=values.root,
        healing=healing,
    )


def _remove(values: argparse.Namespace) -> Changed:
    from moe.bricks.remove import remove

    return remove(load_bundle(values.ckpt), expert=values.expert, task=values.task)


def _extract(values: argparse.Namespace) -> str:
    from moe.bricks.extract import extract

    made = extract(load_bundle(values.ckpt), task=values.task, out=values.out, expert=values.expert)
    return (
        f"wrote {values.out}: {made.architecture} with {made.layers} layers, from {made.expert}; "
        f"its logits differ by at most {made.largest:.1e} from the mixture's"
    )


def _compare(values: argparse.Namespace) -> str:
    from moe.bricks.compare import compare

    one, two = values.checkpoints
    return compare(one, two, measured=values.measure, tests=values.test, root=values.root)


def _show(values: argparse.Namespace) -> str:
    from moe.bricks.show import show_text

    return show_text(load_bundle(values.ckpt))


def _analyse(values: argparse.Namespace) -> str:
    from moe.bricks.analyse import analyse, analysis_text

    report = analyse(load_bundle(values.ckpt), values.out, rows=values.rows, root=values.root)
    return analysis_text(report, values.out)


_READERS = {"extract": _extract, "compare": _compare, "show": _show, "analyse": _analyse}
_WRITERS = {"grow": _grow, "update": _update, "merge": _merge, "remove": _remove}
