"""The one form of a request: Python, JSON lines, HTTP and events share it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from moe.data.text import normalise_text, replace_surrogates
from moe.types import InputError, TaskSpec

_FIELDS = ("id", "text", "context", "tasks")


@dataclass(frozen=True, kw_only=True)
class Request:
    """A text, perhaps with a passage, perhaps with the tasks that should answer.

    Attributes:
        text: Normalised, not empty.
        context: As given, so that offsets of answers fit; None without one.
        tasks: Names of the tasks to answer; None lets the gate choose.
        id: Returned with the answer, None if there was none.
        given: The text as it came, in which spans of it are counted; None if it is `text`.
    """

    text: str
    context: str | None = None
    tasks: tuple[str, ...] | None = None
    id: str | None = None
    given: str | None = None

    @property
    def original(self) -> str:
        """The text as it came."""
        return self.text if self.given is None else self.given


def _optional_text(value: Any, field: str) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise InputError(f"request: {field} must be a string, got {type(value).__name__} {value!r:.60}")


def _task_names(
    value: Any, tasks: Sequence[TaskSpec], context: str | None
) -> tuple[str, ...] | None:
    if value is None:
        return None
    known = {task.name: task for task in tasks}
    if (
        not isinstance(value, list | tuple)
        or not value
        or not all(isinstance(n, str) for n in value)
    ):
        raise InputError(f"request: tasks must be a list of names or null, got {value!r:.60}")
    for name in value:
        if name not in known:
            raise InputError(f"request: no task {name!r}; the model has {sorted(known)}")
        if known[name].needs_context and not context:
            raise InputError(f"request: task {name!r} needs a context, got {context!r}")
    return tuple(dict.fromkeys(value))


def parse_request(value: Any, tasks: Sequence[TaskSpec]) -> Request:
    """Checks a string or a mapping with `text`, `context`, `tasks`, `id`.

    Raises:
        InputError: A field is missing, unknown, of the wrong type, or empty.
    """
    if isinstance(value, str):
        value = {"text": value}
    if not isinstance(value, dict):
        raise InputError(
            f"request: expected a string or an object, got {type(value).__name__} {value!r:.60}"
        )
    unknown = sorted(str(key) for key in value if key not in _FIELDS)
    if unknown:
        raise InputError(f"request: unknown field {unknown[0]!r}, known: {', '.join(_FIELDS)}")
    if not isinstance(value.get("text"), str):
        raise InputError(f"request: text must be a string, got {value.get('text')!r:.60}")
    given, text = replace_surrogates(value["text"]), normalise_text(value["text"])
    if not text:
        raise InputError(f"request: text is empty, got {value['text']!r:.60}")
    context = _optional_text(value.get("context"), "context")
    context = replace_surrogates(context) if context and context.strip() else None
    if context is None and all(task.needs_context for task in tasks):
        raise InputError("request: context is missing; every task of this model needs one")
    return Request(
        text=text,
        context=context,
        tasks=_task_names(value.get("tasks"), tasks, context),
        id=_optional_text(value.get("id"), "id"),
        given=None if given == text else given,
    )
