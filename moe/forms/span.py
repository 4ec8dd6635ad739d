"""The piece of the context that answers a question, or that there is none.

Dimensions: N rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moe.calibration import Calibration, fit_no_answer
from moe.data.formats import By, Example, Split, span_examples, squad_examples
from moe.data.windows import TextTokenizer
from moe.decode import Floats, Logits, WindowSaid, best_span, span_text
from moe.forms.base import Collected, LabelledRows, Shown, Source
from moe.metrics import constant_span_f1, squad_scores
from moe.types import InputError, TaskSpec

if TYPE_CHECKING:
    from moe.config import TaskConfig

GROUP_BY: By = "context"
EVERY_WINDOW = True
SCHEMA: dict[str, Any] = {
    "title": "Span",
    "type": "object",
    "required": ["text", "start", "end", "score", "no_answer"],
    "properties": {
        "text": {"type": "string", "description": "empty without an answer"},
        "start": {"type": ["integer", "null"], "description": "character of the context"},
        "end": {"type": ["integer", "null"], "description": "one past its last character"},
        "score": {"type": "number", "description": "probability, in [0, 1]"},
        "no_answer": {"type": "boolean"},
    },
}
_NOTHING = "— no answer —"


# --- labelled rows ----------------------------------------------------------------------------

read_table = span_examples


def read_json(document: Any, file: str, keys: Sequence[str] | None, split: Split) -> list[Example]:
    """SQuAD JSON, which has no keys to name."""
    if keys is not None:
        raise InputError(
            f"{file}: got #{'+'.join(keys)}, but only CLINC JSON of a classifier has keys"
        )
    return squad_examples(document, file)


def build_spec(name: str, task: TaskConfig, train: Sequence[Example]) -> TaskSpec:
    """Whether training holds questions without an answer."""
    return TaskSpec(
        name=name,
        type=task.type,
        num_experts=task.experts,
        can_be_unanswerable=any(not example.answers for example in train),
    )


def describe(spec: TaskSpec, train: Sequence[Example]) -> str:
    """Passages, and questions without an answer."""
    none = sum(not example.answers for example in train)
    return f"{len({e.context for e in train})} passages, {none} questions without answer"


def encode(
    example: Example, spec: TaskSpec, tokenizer: TextTokenizer, offsets: NDArray[np.int32]
) -> dict[str, Any]:
    """First and last token of the answer, and all accepted ones."""
    voted = _voted_answer(example)
    return {
        "answers": [answer.text for answer in example.answers],
        "span": (-1, -1) if voted is None else _answer_tokens(offsets, *voted),
    }


def _voted_answer(example: Example) -> tuple[int, int] | None:
    """Characters of the answer most annotators gave, the first given among equals."""
    if not example.answers:
        return None
    votes = Counter((a.start, a.start + len(a.text)) for a in example.answers)
    return votes.most_common(1)[0][0]


def _answer_tokens(offsets: NDArray[np.int32], start: int, end: int) -> tuple[int, int]:
    """First and last token that touch the characters [start, end) of the context."""
    touching = np.flatnonzero((offsets[:, 0] < end) & (offsets[:, 1] > start))
    return (int(touching[0]), int(touching[-1])) if len(touching) else (-1, -1)


# --- answers ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class SpanSaid:
    """The best span of a request.

    Attributes:
        text: Its characters; empty if no span was valid.
        start, end: Where they are in the context, [start, end); -1 if no span was valid.
        score: Its probability in its window.
        null: Probability that there is no answer, the smallest over the windows.
    """

    text: str
    start: int
    end: int
    score: float
    null: float


def read(windows: Sequence[WindowSaid], source: Source) -> SpanSaid:
    """The most probable span over windows and experts, which are mixed as probabilities."""
    choice = best_span([(w.weights, w.logits, w.offset) for w in windows])
    start = end = -1
    if choice.start >= 0:
        start, end = int(source.offsets[choice.start][0]), int(source.offsets[choice.end][1])
    text = span_text(choice, source.context, source.offsets)
    return SpanSaid(text=text, start=start, end=end, score=choice.score, null=choice.null)


def _is_answered(spec: TaskSpec, said: SpanSaid, calibration: Calibration) -> bool:
    threshold = calibration.no_answer.get(spec.name, np.inf)
    return said.start >= 0 and not said.null - said.score > threshold


def answers(
    spec: TaskSpec,
    said: Sequence[SpanSaid],
    calibration: Calibration,
    expert_names: Sequence[str],
) -> list[dict[str, Any]]:
    """Text and place of the span, or that there is none."""
    return [
        {
            "text": one.text,
            "start": one.start,
            "end": one.end,
            "score": one.score,
            "no_answer": False,
        }
        if _is_answered(spec, one, calibration)
        else {"text": "", "start": None, "end": None, "score": one.null, "no_answer": True}
        for one in said
    ]


def entries(spec: TaskSpec, answer: Mapping[str, Any]) -> list[dict[str, Any]]:
    """As the removed `question-answering`, which said 0, 0 and an empty text for no answer."""
    place = {"start": answer["start"] or 0, "end": answer["end"] or 0}
    return [{"answer": answer["text"], "score": answer["score"], **place}]


def same_answer(ours: Logits, theirs: Logits, attention_mask: NDArray[Any]) -> Floats:
    """1 where the most probable start and end are the same."""
    same: Floats = (ours.argmax(1) == theirs.argmax(1)).all(1).astype(np.float64)
    return same


# --- measuring --------------------------------------------------------------------------------


def fit(collected: Collected, fitted: Calibration, out_of_scope_recall: float) -> None:
    """The no-answer threshold, where training holds questions without an answer."""
    if not collected.spec.can_be_unanswerable:
        return
    gold, said = collected.column("answers"), collected.said
    fitted.no_answer[collected.spec.name] = fit_no_answer(
        np.array([one.null - one.score for one in said]),
        squad_scores([one.text for one in said], gold)[:, 1],
        squad_scores([""] * len(gold), gold)[:, 1],
    )


def _scores(collected: Collected, calibration: Calibration, ok_N: NDArray[Any]) -> Floats:
    """Exact match and F1 (N, 2), 0-100; rows that did not reach their task score 0."""
    texts = _texts(collected, calibration)
    scores_N2: Floats = squad_scores(texts, collected.column("answers")) * ok_N[:, None]
    return scores_N2


def _texts(collected: Collected, calibration: Calibration) -> list[str]:
    spec = collected.spec
    return [one.text if _is_answered(spec, one, calibration) else "" for one in collected.said]


def measure(
    collected: Collected, calibration: Calibration, ok_N: NDArray[Any], refused_N: NDArray[Any]
) -> dict[str, float]:
    """Exact match and F1 of the SQuAD script, 0-100."""
    scores_N2 = _scores(collected, calibration, ok_N)
    return {"exact_match": float(scores_N2[:, 0].mean()), "f1": float(scores_N2[:, 1].mean())}


def row_scores(
    collected: Collected, calibration: Calibration, ok_N: NDArray[Any]
) -> dict[str, Floats]:
    """`f1` and `exact_match`."""
    scores_N2 = _scores(collected, calibration, ok_N)
    return {"f1": scores_N2[:, 1], "exact_match": scores_N2[:, 0]}


def show(collected: Collected, calibration: Calibration) -> list[Shown]:
    """All accepted answers; right is an exact match."""
    rows = zip(
        _texts(collected, calibration), collected.column("answers"), collected.said, strict=True
    )
    shown = []
    for text, accepted, said in rows:
        answered, gold = text or _NOTHING, list(dict.fromkeys(accepted)) or [_NOTHING]
        right = squad_scores([answered], [gold])[0, 0] == 100.0
        expected = " / ".join(gold)
        shown.append(Shown(expected=expected, answered=answered, score=said.score, right=right))
    return shown


def baseline(train: LabelledRows, validation: LabelledRows) -> float:
    """F1 of the best constant span, 0-100."""
    return constant_span_f1(validation.rows["context"][:], validation.rows["answers"][:])
