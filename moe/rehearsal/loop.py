"""The steps: train, gate, promote, serve, drift, feedback, one expert, gate, promote, rollback."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe.feedback import source_of_key
from moe.rehearsal.phrases import LABEL, TASK, changed, flipped, new_phrasing, suite_rows, usual
from moe.rehearsal.shell import Server, expect, run, serving, wait_for
from moe.release.registry import Registry, read_manifest
from moe.release.scores import Gold
from moe.types import InputError

SUITE = "configs/suites/sample.yaml"
WINDOW = 500  # requests that the monitor looks at together
USERS = ("anna", "ben", "carla", "dev")  # their API keys; 50 corrections a day from each
HOSTILE = "mallory"
_QUOTA = 50
_SENT = 5 / 6  # share of the wrongly answered texts that is sent as corrections; the rest probes
_FEWEST = 60  # texts of the new phrasing that must be answered wrongly
_MENDED = 0.75  # share of the probes that reach the expert which must be right after the update


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where everything of a rehearsal lies.

    Attributes:
        out: Its folder.
        suite: Of the gate.
        rows: All rows of the suite by task.
    """

    out: Path
    suite: str
    rows: dict[str, list[Gold]]

    @property
    def registry(self) -> Path:
        """Of `scripts/gate.py`."""
        return self.out / "models" / "assistant"

    @property
    def served(self) -> Path:
        """The checkpoint that is current."""
        return self.registry / "current" / "model.ckpt"


def rehearse(out: str | Path, ckpt: str | None = None, suite: str = SUITE) -> None:
    """Runs the whole loop with the packaged sample, in a new folder; prints every command.

    Args:
        out: The folder.
        ckpt: A trained checkpoint of `configs/default.yaml`; None trains one.
        suite: Of the gate; its rows are the usual requests.

    Raises:
        StepFailed: A step did not do what it should.
        InputError: The folder is there, this is not the repository's root, or there is no suite.
    """
    if Path(out).exists():
        raise InputError(f"--out {out}: is there already; name a new folder")
    if not Path("train.py").is_file():
        raise InputError(f"{Path.cwd()}: no train.py here; run this in the repository's root")
    # Read first: a mistake in it should not cost a training.
    places = Places(out=Path(out), suite=suite, rows=suite_rows(suite))
    places.out.mkdir(parents=True)
    start = time.monotonic()
    best = Path(ckpt) if ckpt is not None else _train(places)
    _release(best, places)
    (places.out / "keys").write_text("\n".join([*USERS, HOSTILE]) + "\n", encoding="utf-8")
    arguments = (
        *("--registry", places.registry, "--api-key-file", places.out / "keys"),
        *("--telemetry", places.out / "telemetry", "--telemetry-embeddings"),
        *("--feedback", places.out / "quarantine", "--feedback-per-source", _QUOTA),
    )
    with serving(places.out / "serve.log", *arguments) as server:
        _operate(server, places)
    print(f"\nthe whole loop: {(time.monotonic() - start) / 60:.1f} minutes")


def _train(places: Places) -> Path:
    run("train.py", "--trainer.default_root_dir", places.out / "runs")
    return places.out / "runs" / "default" / "version_0" / "checkpoints" / "best.ckpt"


def _release(best: Path, places: Places) -> None:
    report = places.out / "v1-gate"
    run("scripts/gate.py", "check", "--candidate", best, "--suite", places.suite,
        "--report", report)  # fmt: skip
    _promote(best, report, places, "v1")


def _promote(candidate: Path, report: Path, places: Places, version: str) -> None:
    run("scripts/gate.py", "promote", "--registry", places.registry, "--candidate", candidate,
        "--report", report.with_suffix(".json"))  # fmt: skip
    current = Registry(places.registry).current()
    expect(current is not None and current.name == version, f"{current} is current, not {version}")


def _operate(server: Server, places: Places) -> None:
    texts = new_phrasing()
    _drift(server, places, texts)
    wrong = _wrongly_answered(server, texts)
    cut = min(round(_SENT * len(wrong)), _QUOTA * len(USERS))
    expert = _most_common_expert(wrong)
    probes = [text for text, answer in wrong[cut:] if _expert(answer) == expert]
    _collect(server, places, [text for text, _ in wrong[:cut]])
    before = _current_hash(places)
    _improve(places, expert)
    _swapped(server, before, _current_hash(places))
    share = _share_right(server, probes)
    print(f"{len(probes)} other texts of the new phrasing that reach {expert}: {share:.0%} right")
    expect(share >= _MENDED, f"{share:.0%} of the new phrasing are right, expected {_MENDED:.0%}")
    after = _current_hash(places)
    run("scripts/gate.py", "rollback", "--registry", places.registry)
    expect(_current_hash(places) == before, "the rollback did not make the first model current")
    _swapped(server, after, before)
    share = _share_right(server, probes)
    expect(share == 0, f"after the rollback {share:.0%} of the texts are right, expected none")
    print("the first model answers again")


# --- drift --------------------------------------------------------------------------------------


def _drift(server: Server, places: Places, texts: Sequence[str]) -> None:
    """A window of usual requests and one with the new phrasing; the monitor sees the second."""
    rows = [row for task in places.rows.values() for row in task]
    server.predict(usual(rows, WINDOW), USERS[0])
    server.predict(changed(rows, texts, WINDOW), USERS[0])
    print(f"\n{WINDOW} usual requests answered, then {WINDOW} of which 30 % are of a new phrasing")
    folder, found = places.out / "telemetry", places.out / "drift.json"
    took = wait_for("telemetry", lambda: _rows_written(folder) >= 2 * WINDOW)
    print(f"telemetry written after {took:.0f} s", flush=True)
    run("scripts/monitor.py", "--ckpt", places.served, "--telemetry", folder,
        "--html", places.out / "drift.html", "--json", found, code=1)  # fmt: skip
    windows = json.loads(found.read_text(encoding="utf-8"))["windows"]
    alerts = [sum(s["p"] < s["level"] for s in window["signals"]) for window in windows]
    expect(len(alerts) == 2 and alerts[0] == 0 and alerts[1] > 0, f"alerts by window: {alerts}")


def _rows_written(folder: Path) -> int:
    import pyarrow.parquet as pq

    return sum(pq.read_metadata(part).num_rows for part in folder.glob("part-*.parquet"))


# --- feedback -----------------------------------------------------------------------------------


def _wrongly_answered(server: Server, texts: Sequence[str]) -> list[tuple[str, Any]]:
    """Texts of the new phrasing that get another answer than `LABEL`, with the answers."""
    answers = server.predict([{"text": text} for text in texts], USERS[0])
    wrong = [(t, a) for t, a in zip(texts, answers, strict=True) if not _is_right(a)]
    print(f"\nof {len(texts)} texts of the new phrasing {len(wrong)} are answered wrongly")
    for text, answer in wrong[:3]:
        said = answer["answers"].get(TASK, {})
        print(f"  {text!r}: {said.get('label')}, out of scope {said.get('out_of_scope')}")
    expect(len(wrong) >= _FEWEST, f"only {len(wrong)} texts are answered wrongly")
    return wrong


def _is_right(answer: Any) -> bool:
    return bool(answer["answers"].get(TASK, {}).get("label") == LABEL)


def _expert(answer: Any) -> str:
    return str(answer["routing"][0]["experts"][0]["name"])


def _most_common_expert(wrong: Sequence[tuple[str, Any]]) -> str:
    counts = Counter(_expert(a) for _, a in wrong if a["routing"][0]["task"] == TASK)
    print(f"they reach {dict(counts)}")
    expect(len(counts) > 0, f"the gate sends none of them to {TASK}")
    return counts.most_common(1)[0][0]


def _collect(server: Server, places: Places, texts: Sequence[str]) -> None:
    """Users correct the texts; somebody sends flipped labels; the review keeps the first alone."""
    for number, text in enumerate(texts):
        body = {"text": text, "task": TASK, "label": LABEL}
        status, content, _ = server.post("/feedback", body, USERS[number % len(USERS)])
        expect(status == 200, f"/feedback: status {status}, {content}")
    rows = places.rows[TASK]
    labels = sorted({row.label for row in rows if row.label is not None})
    taken = Counter(
        server.post("/feedback", {"text": text, "task": TASK, "label": label}, HOSTILE)[0]
        for text, label in flipped(rows, labels, 200)
    )
    print(f"\n{len(texts)} corrections of {len(USERS)} users are held")
    print(f"200 flipped labels of one source: {taken[200]} held, {taken[429]} refused (status 429)")
    expect(taken == {200: _QUOTA, 429: 200 - _QUOTA}, f"statuses {dict(taken)}")
    # Somebody has looked at what the users sent: a model that is sure of its mistakes would have
    # the review leave them out, too.
    trust = [word for user in USERS for word in ("--trust", source_of_key(user))]
    reviewed = run("scripts/feedback.py", "--quarantine", places.out / "quarantine",
                   "--out", places.out / "corrected", "--ckpt", places.served, *trust)  # fmt: skip
    expect(
        f"left out {_QUOTA}: source {source_of_key(HOSTILE)}" in reviewed
        and f"{len(texts)} corrections may be learned from" in reviewed,
        "the review did not leave out the flipped labels alone",
    )


# --- one expert, and the swap -------------------------------------------------------------------


def _improve(places: Places, expert: str) -> None:
    candidate = places.out / "v2.ckpt"
    run("scripts/bricks.py", "update", "--ckpt", places.served, "--out", candidate,
        "--expert", expert, "--feedback", places.out / "corrected",
        "--suite", places.suite)  # fmt: skip
    _promote(candidate, places.out / "v2-gate", places, "v2")


def _current_hash(places: Places) -> str:
    current = Registry(places.registry).current()
    assert current is not None
    return read_manifest(current).hash


def _swapped(server: Server, before: str, after: str) -> None:
    """Asks until the other model answers."""

    def is_new() -> bool:
        status, content, found = server.post("/predict", {"text": "ping"}, USERS[0])
        expect(status == 200, f"/predict: status {status}, {content}")
        expect(found in (before, after), f"answered by the model {found[:12]}")
        return found == after

    took = wait_for("the swap", is_new)
    print(f"\nthe server answers with {after[:12]} instead of {before[:12]} after {took:.0f} s")


def _share_right(server: Server, texts: Sequence[str]) -> float:
    expect(len(texts) > 0, "no text is left to look at")
    answers = server.predict([{"text": text} for text in texts], USERS[0])
    return sum(map(_is_right, answers)) / len(texts)
