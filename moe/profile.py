"""What requests look like to a trained model, as rows of numbers: of validation, or of a time.

Saved in the checkpoint at validation, it is what `scripts/monitor.py` compares traffic with.

Dimensions: N requests, M of them with an embedding, D width of the pooled embedding, T tasks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe.abstain import nearest_cosines, refusal_scores
from moe.calibration import Calibration
from moe.collect import Answers
from moe.data.tables import TaskTable
from moe.evaluation import refusals
from moe.forms import FORMS
from moe.types import TaskSpec

MAX_EMBEDDED = 2_000  # requests that keep their embedding: 3 MB at 768 numbers each
USUAL = 0.25  # share of the answers that are less sure than is usual
_NONE, _YES = -1, 1


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Requests in random order or in that of their arrival.

    Attributes:
        task_N: int16 first task of the gate.
        expert_N: int16 the expert that weighed most in it.
        abstained_N: bool whether the gate refused.
        out_of_scope_N: int8 whether the task rejected it, -1 of a task that rejects nothing.
        no_answer_N: int8 whether a span task found nothing, -1 of other tasks.
        confidence_N: float32 score of the answer, NaN without one.
        strangeness_N: float32 what decides on abstaining (`moe.abstain.refusal_scores`): similarity
            to texts of no task minus that to the best task's. NaN without a fitted reference.
        fragmentation_N: float32 how finely the words of the text break into tokens
            (`TextTokenizer.fragmentation`): misspelt and foreign ones more. NaN if unknown.
        embedding_MD: float16 what the gate read of the first M requests.
    """

    task_N: NDArray[np.int16]
    expert_N: NDArray[np.int16]
    abstained_N: NDArray[np.bool_]
    out_of_scope_N: NDArray[np.int8]
    no_answer_N: NDArray[np.int8]
    confidence_N: NDArray[np.float32]
    strangeness_N: NDArray[np.float32]
    fragmentation_N: NDArray[np.float32]
    embedding_MD: NDArray[np.float16]

    def __len__(self) -> int:
        return len(self.task_N)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The arrays by name, for a file."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> Profile:
        """What `arrays` gave.

        Raises:
            KeyError: One is missing.
        """
        return cls(**{f.name: np.asarray(arrays[f.name]) for f in fields(cls)})

    def rows(self, rows_R: NDArray[np.int64]) -> Profile:
        """Some requests; those that keep their embedding come first, in the given order."""
        has_R = rows_R < len(self.embedding_MD)
        ordered_R = np.concatenate([rows_R[has_R], rows_R[~has_R]])
        kept = {
            f.name: getattr(self, f.name)[ordered_R]
            for f in fields(self)
            if f.name != "embedding_MD"
        }
        return Profile(**kept, embedding_MD=self.embedding_MD[rows_R[has_R]])


def join_profiles(parts: Sequence[Profile]) -> Profile:
    """Requests of several profiles that all keep every embedding, or none."""
    names = [f.name for f in fields(Profile)]
    return Profile(**{n: np.concatenate([getattr(part, n) for part in parts]) for n in names})


def usual_confidence(profile: Profile, specs: Sequence[TaskSpec]) -> dict[str, float]:
    """By task the score that three quarters of its answers reach; none for tasks without answers.

    Args:
        profile: Of a time at which the model was as good as it is.
        specs: All tasks of the model.
    """
    scores = {
        spec.name: profile.confidence_N[profile.task_N == number]
        for number, spec in enumerate(specs)
    }
    return {
        name: float(np.nanquantile(scores_N, USUAL))
        for name, scores_N in scores.items()
        if np.isfinite(scores_N).any()
    }


def validation_profile(
    tables: Sequence[TaskTable],
    answers: Sequence[Answers],
    calibration: Calibration,
    specs: Sequence[TaskSpec],
    seed: int = 0,
) -> Profile:
    """The profile of validation rows, in random order.

    A row that the gate would have sent to another task has no confidence: only its own was asked.

    Args:
        tables: Labelled rows of each task.
        answers: One per table.
        calibration: Fitted on them.
        specs: All tasks of the model.
        seed: Of the order.
    """
    parts = [
        _task_profile(table, said, calibration, specs)
        for table, said in zip(tables, answers, strict=True)
    ]
    whole = join_profiles(parts)
    mixed = whole.rows(np.random.default_rng(seed).permutation(len(whole)))
    return Profile.from_arrays(
        {**mixed.arrays(), "embedding_MD": mixed.embedding_MD[:MAX_EMBEDDED]}
    )


def _task_profile(
    table: TaskTable,
    said: Answers,
    calibration: Calibration,
    specs: Sequence[TaskSpec],
) -> Profile:
    count, reference = len(said.row_N), calibration.reference
    first_N = said.first_N
    own_N = first_N == table.task
    confidence_N, rejected_N, empty_N = _said(table, said, calibration, specs)
    strange_N = np.full(count, np.nan)
    if reference is not None:
        chosen_N = [specs[number].name for number in first_N]
        cosines = nearest_cosines(said.pooled_ND, reference)
        strange_N, _ = refusal_scores(cosines, reference, chosen_N)
    return Profile(
        task_N=first_N.astype(np.int16),
        expert_N=(said.probabilities_NE * said.chosen_NE).argmax(1).astype(np.int16),
        abstained_N=refusals(said, calibration, specs),
        out_of_scope_N=np.where(own_N, rejected_N, _NONE).astype(np.int8),
        no_answer_N=np.where(own_N, empty_N, _NONE).astype(np.int8),
        confidence_N=np.where(own_N, confidence_N, np.nan).astype(np.float32),
        strangeness_N=strange_N.astype(np.float32),
        fragmentation_N=_fragmentation(table, said),
        embedding_MD=said.pooled_ND.astype(np.float16),
    )


def _said(
    table: TaskTable, said: Answers, calibration: Calibration, specs: Sequence[TaskSpec]
) -> tuple[Any, Any, Any]:
    """(N,) score of each answer, NaN where it was rejected; whether it was; whether it is empty."""
    names = [name for task in specs for name in task.expert_names]
    answers = FORMS[table.spec.type].answers(table.spec, said.said, calibration, names)
    rejected_N = np.array([_flag(answer.get("out_of_scope")) for answer in answers])
    empty_N = np.array([_flag(answer.get("no_answer")) for answer in answers])
    score_N = np.array([answer.get("score", np.nan) for answer in answers])
    return np.where(rejected_N == _YES, np.nan, score_N), rejected_N, empty_N


def _flag(value: bool | None) -> int:
    return _NONE if value is None else int(value)


def _fragmentation(table: TaskTable, said: Answers) -> NDArray[np.float32]:
    column: NDArray[np.float32] = np.array(table.rows["fragmentation"], dtype=np.float32)
    return column[said.row_N]
