"""Corrections that users send: checked one by one, kept apart, and looked at together before use.

Nothing that is sent changes a model. It is written to a quarantine, with what the model says of the
same request; `moe.review` looks at all of them together.
Standard library alone, so that the server needs nothing more.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from moe.requests import Request, parse_request
from moe.types import InputError, TaskSpec

_FIELDS = ("id", "text", "context", "task", "label", "answer")
CONFIDENT = 0.9  # score from which an answer counts as sure


@dataclass(frozen=True, kw_only=True)
class Correction:
    """What the right answer would have been.

    Attributes:
        text, context: Of the request.
        task: The task that should have answered.
        label: Of a classifier, that of its out-of-scope rows included.
        answer: Of a span task: a piece of the context, empty where it holds none.
    """

    text: str
    context: str | None
    task: str
    label: str | None = None
    answer: str | None = None


@dataclass(frozen=True, kw_only=True)
class Held:
    """A correction in quarantine.

    Attributes:
        time: When it came, UTC.
        source: Who sent it.
        model: Hash of the model that was asked, empty if unknown.
        correction: What was sent.
        said: What the model answers to the request if it is given the task.
        contradicts: Whether it is sure of another answer: its score is `CONFIDENT` or more.
        differs: Whether it gives another answer; None in files of before this was kept.
    """

    time: str
    source: str
    model: str
    correction: Correction
    said: Mapping[str, Any]
    contradicts: bool
    differs: bool | None = None


def source_of_key(key: str) -> str:
    """Who sends with a key, without telling the key."""
    return f"key-{hashlib.sha256(key.encode()).hexdigest()[:12]}"


class QuotaReached(Exception):
    """A source has sent as many corrections today as it may."""


def parse_correction(value: Any, tasks: Sequence[TaskSpec]) -> tuple[Correction, Request]:
    """A checked correction, and the request to ask the model.

    Raises:
        InputError: A field is missing, unknown, or not of this model.
    """
    if not isinstance(value, dict):
        raise InputError(f"feedback: expected an object, got {type(value).__name__} {value!r:.60}")
    unknown = sorted(str(key) for key in value if key not in _FIELDS)
    if unknown:
        raise InputError(f"feedback: unknown field {unknown[0]!r}, known: {', '.join(_FIELDS)}")
    known = {task.name: task for task in tasks}
    name = value.get("task")
    if not isinstance(name, str) or name not in known:
        raise InputError(f"feedback: task must be one of {sorted(known)}, got {name!r:.60}")
    request = parse_request(
        {**{k: value[k] for k in ("id", "text", "context") if k in value}, "tasks": [name]}, tasks
    )
    spec = known[name]
    if spec.type not in _READERS:
        raise InputError(f"feedback: {name!r} is a {spec.type}; corrections are for {[*_READERS]}")
    right = _READERS[spec.type](value, spec, request)
    return Correction(text=request.text, context=request.context, task=name, **right), request


def _span(value: Mapping[str, Any], spec: TaskSpec, request: Request) -> dict[str, str | None]:
    answer = value.get("answer")
    if "label" in value or not isinstance(answer, str) or answer not in (request.context or ""):
        raise InputError(
            f"feedback: answer must be a piece of the context, or empty, got {answer!r:.60}"
        )
    return {"answer": answer}


def _label(value: Mapping[str, Any], spec: TaskSpec, request: Request) -> dict[str, str | None]:
    label = value.get("label")
    allowed = label in spec.labels or (label is None and spec.out_of_scope is not None)
    if "label" not in value or "answer" in value or not allowed:
        other = " or null" if spec.out_of_scope is not None else ""
        raise InputError(
            f"feedback: label must be one of the {len(spec.labels)} of {spec.name}{other} "
            f"({', '.join(spec.labels[:6])}{', ...' if len(spec.labels) > 6 else ''}), "
            f"got {label!r:.60}"
        )
    return {"label": spec.out_of_scope if label is None else label}


_READERS = {"classifier": _label, "span": _span}


class Quarantine:
    """A folder of JSON lines, a file a day (UTC).

    Args:
        folder: Of the files.
        per_source: Most corrections of one source in a day.

    Raises:
        InputError: The folder cannot be written.
    """

    def __init__(self, folder: str | Path, per_source: int = 50) -> None:
        self.folder = Path(folder)
        self._per_source = per_source
        self._lock = threading.Lock()
        self._day, self._sent = "", Counter[str]()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"--feedback {self.folder}: cannot be written ({error.strerror})"
            ) from error

    def admit(self, source: str) -> None:
        """Counts a correction of a source.

        Raises:
            QuotaReached: It has sent its share of the day.
        """
        with self._lock:
            self._begin_day(_now().strftime("%Y%m%d"))
            if self._sent[source] >= self._per_source:
                raise QuotaReached(f"at most {self._per_source} corrections a day from one source")
            self._sent[source] += 1

    def _begin_day(self, day: str) -> None:
        """Counts what was sent today before a restart."""
        if day == self._day:
            return
        file = self._file(day)
        rows = read_file(file) if file.is_file() else []
        self._day, self._sent = day, Counter(row.source for row in rows)

    def keep(self, held: Held) -> None:
        """Writes a correction; on disk when this returns."""
        line = json.dumps(asdict(held)) + "\n"
        day = datetime.fromisoformat(held.time).strftime("%Y%m%d")
        with self._lock, self._file(day).open("a", encoding="utf-8") as file:
            file.write(line)

    def _file(self, day: str) -> Path:
        return self.folder / f"feedback-{day}.jsonl"


def hold(
    correction: Correction, spec: TaskSpec, *, source: str, model: str, said: Mapping[str, Any]
) -> Held:
    """A correction with what is known of it now.

    Args:
        correction: Checked.
        spec: Its task.
        source: Who sent it.
        model: Hash of the model that was asked.
        said: Its answer of that task.
    """
    is_label = correction.label is not None
    found = said["label"] or spec.out_of_scope if is_label else said["text"]
    wanted = correction.label if is_label else correction.answer
    return Held(
        time=_now().isoformat(timespec="seconds"),
        source=source,
        model=model,
        correction=correction,
        said=said,
        contradicts=found != wanted and float(said["score"]) >= CONFIDENT,
        differs=found != wanted,
    )


def _now() -> datetime:
    return datetime.now(UTC)


def read_file(file: Path) -> list[Held]:
    """The corrections of one file; a last line that was cut off by a crash does not count."""
    held = []
    lines = file.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            values = json.loads(line)
            held.append(Held(**{**values, "correction": Correction(**values["correction"])}))
        except (ValueError, TypeError, KeyError) as error:
            if number == len(lines):
                break
            raise InputError(f"{file}, line {number}: no correction, got {line[:60]!r}") from error
    return held


def read_quarantine(folder: str | Path) -> list[Held]:
    """All corrections of a folder, the oldest first.

    Raises:
        InputError: There is no such file, or one is damaged.
    """
    files = sorted(Path(folder).glob("feedback-*.jsonl"))
    if not files:
        raise InputError(f"--quarantine {folder}: no feedback-*.jsonl there")
    return [held for file in files for held in read_file(file)]
