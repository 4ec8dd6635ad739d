"""What honest and hostile feedback does to a trained model: the path of a correction, measured.

Honest sources correct a phrasing that the model answers wrongly. A hostile one sends known texts
with flipped labels. What quota and review leave of either is counted; then all are let through by
hand: the honest ones, because a review cannot tell the new mistake of a sure model from a flipped
label, and the hostile ones, so that the gate alone has to stop them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from moe.bricks.corrections import CORRECT, update_from_feedback
from moe.bricks.fit import FitConfig
from moe.bricks.judged import save_if_passed
from moe.checkpoint import load_bundle
from moe.feedback import (
    Correction,
    Quarantine,
    QuotaReached,
    hold,
    parse_correction,
    read_quarantine,
)
from moe.predict import MixtureOfExperts
from moe.profile import usual_confidence
from moe.rehearsal.phrases import TASK, flipped, new_phrasing, suite_rows
from moe.release.report import summary
from moe.review import review, write_rows
from moe.types import InputError

SENT = 200  # corrections of either kind
PER_SOURCE = 50  # a day
Sent = tuple[str, str, str]  # source, text, label
Say = Callable[[str], None]


def send(
    model: MixtureOfExperts, folder: Path, task: str, corrections: Iterable[Sent]
) -> dict[str, int]:
    """Takes corrections as `POST /feedback` does; how many were held and refused."""
    quarantine = Quarantine(folder, per_source=PER_SOURCE)
    spec = next(spec for spec in model.tasks if spec.name == task)
    counts = {"held": 0, "refused": 0}
    for source, text, label in corrections:
        value = {"text": text, "task": task, "label": label}
        correction, request = parse_correction(value, model.tasks)
        try:
            quarantine.admit(source)
        except QuotaReached:
            counts["refused"] += 1
            continue
        said = model.answer([request])[0]["answers"][task]
        quarantine.keep(hold(correction, spec, source=source, model="", said=said))
        counts["held"] += 1
    return counts


def study(
    ckpt: str,
    out: str | Path,
    *,
    suite: str,
    label: str,
    expert: str,
    root: str | None = None,
    fit: FitConfig = CORRECT,
    say: Say = print,
) -> dict[str, Any]:
    """Both kinds of feedback, through quota, review, one expert's update and the gate.

    Args:
        ckpt: Checkpoint with a task `intent`.
        out: New folder.
        suite: Of the gate; hostile texts are its rows.
        label: The right label of the new phrasing.
        expert: Which one learns.
        root: Folder of relative sources of data and suite.
        fit: How it learns.
        say: Told each finding at once: the whole takes long.

    Returns:
        `honest` and `hostile`: held, refused, usable after the review, whether the gate passed the
        update, its refusals; `right`: shares of other texts of the new phrasing before and after.

    Raises:
        InputError: The folder is there, or the model answers the new phrasing already.
    """
    out = Path(out)
    if out.exists():
        raise InputError(f"--out {out}: is there already; name a new folder")
    model, bundle = MixtureOfExperts.from_pretrained(ckpt), load_bundle(ckpt)
    rows = suite_rows(suite, root)[TASK]
    texts = new_phrasing()
    wrong = [t for t, ok in zip(texts, _right(model, texts, label), strict=True) if not ok]
    say(f"of {len(texts)} texts of the new phrasing {len(wrong)} are answered wrongly")
    if len(wrong) < SENT + 20:
        raise InputError(f"{ckpt}: answers all but {len(wrong)} of the new texts as {label!r}")
    labels = sorted({row.label for row in rows if row.label is not None})
    honest = [(f"user-{n % 4}", text, label) for n, text in enumerate(wrong[:SENT])]
    hostile = [("hostile", *pair) for pair in flipped(rows, labels, SENT)]
    known = bundle.profile
    sure = None if known is None else usual_confidence(known, bundle.model.tasks)
    report: dict[str, Any] = {}
    for name, corrections in (("honest", honest), ("hostile", hostile)):
        counts: dict[str, Any] = send(model, out / f"{name}-quarantine", TASK, corrections)
        found = review(read_quarantine(out / f"{name}-quarantine"), sure=sure)
        counts["usable"] = len(found.usable)
        say(f"{name}: {counts}, left out {found.left_out}")
        # All of them, as if somebody had trusted the source over several days.
        rights = [Correction(text=t, context=None, task=TASK, label=r) for _, t, r in corrections]
        write_rows(rights, out / name)
        changed = update_from_feedback(bundle, expert=expert, folder=out / name, root=root, fit=fit)
        say("\n".join(changed.notes))
        new = MixtureOfExperts(changed.bundle, "cpu")
        if name == "honest":
            probes = wrong[SENT:]
            after = sum(_right(new, probes, label)) / len(probes)
            report["right"] = {"texts": len(probes), "before": 0.0, "after": after}
            say(f"{len(probes)} other texts of the new phrasing: 0 % right before, {after:.0%} now")
        judged = save_if_passed(
            changed.bundle, out / f"{name}.ckpt", baseline=ckpt, suite=suite, root=root
        )
        say(summary(judged))
        refused = [verdict.name for verdict in judged.refused]
        report[name] = {**counts, "passed": judged.passed, "refused_by": refused}
    return report


def _right(model: MixtureOfExperts, texts: Sequence[str], label: str) -> list[bool]:
    answers = model.predict([{"text": text} for text in texts])
    return [answer["answers"].get(TASK, {}).get("label") == label for answer in answers]
