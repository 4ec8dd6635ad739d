"""Why a request was routed as it was, and why the gate abstained; numpy alone.

Dimensions: N requests, D width of the pooled embedding, T tasks, E experts, X kept rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from moe.abstain import Reference, refusal_scores
from moe.decode import Floats
from moe.types import TaskSpec


def refusals(
    tasks: Sequence[TaskSpec],
    cosines: Mapping[str, Floats],
    reference: Reference,
    first_N: Sequence[int] | None = None,
) -> list[str | None]:
    """Why the gate abstains from each request, None where it does not.

    Args:
        tasks: All tasks of the model.
        cosines: Of the requests (`moe.abstain.nearest_cosines`).
        reference: What they were compared with.
        first_N: The number of the gate's first choice for each; None if no task was added.
    """
    names = ", ".join(task.name for task in tasks)
    chosen = [tasks[number].name for number in ([] if first_N is None else first_N)]
    scores_N, thresholds_N = refusal_scores(cosines, reference, chosen)
    return [
        f"fits no task: closer to texts outside {names} (score {score:.2f}, refused above "
        f"{threshold:.2f}); name the tasks to get an answer"
        if score > threshold
        else None
        for score, threshold in zip(scores_N, thresholds_N, strict=True)
    ]


def similarities(cosines: Mapping[str, Floats]) -> list[dict[str, float]]:
    """For each request its cosines by kind.

    The score that decides on abstaining is that of the strangers minus the largest other; a task
    that was added later counts only for requests that the gate sends to it.
    """
    columns = [column_N.tolist() for column_N in cosines.values()]
    return [dict(zip(cosines, row, strict=True)) for row in zip(*columns, strict=True)]


def explanation(
    tasks: Sequence[TaskSpec],
    *,
    probability_E: Any,
    mass_T: Any,
    answerable_T: Any,
    distance: Mapping[str, float] | None,
    strangeness: float | None,
    fragmentation: float,
    reason: str | None,
) -> dict[str, Any]:
    """What the gate saw of one request, for `explain=True`.

    `runner_up` is the second task in the gate's order among those that can answer, and `margin`
    the mass of the first minus its own, in [0, 1]; both are None if only one can. They are the
    gate's view also where the request named its tasks.

    Args:
        tasks: All tasks of the model.
        probability_E: (E,) the gate's probabilities.
        mass_T: (T,) their sums over the experts of a task.
        answerable_T: (T,) bool, False where a task needs a context and there is none.
        distance: Of `similarities`, None without a fitted reference.
        strangeness: The score that decides on abstaining (`moe.abstain.refusal_scores`), None
            likewise.
        fragmentation: How finely the words of the text break into tokens
            (`moe.data.windows.TextTokenizer.fragmentation`).
        reason: Why the gate abstained, None where it did not.
    """
    names = [name for task in tasks for name in task.expert_names]
    order = [t for t in np.argsort(-np.asarray(mass_T), kind="stable") if answerable_T[t]]
    first, second = order[0], order[1] if len(order) > 1 else None
    return {
        "probabilities": {n: float(p) for n, p in zip(names, probability_E, strict=True)},
        "task_mass": {task.name: float(m) for task, m in zip(tasks, mass_T, strict=True)},
        "runner_up": None if second is None else tasks[second].name,
        "margin": None if second is None else float(mass_T[first] - mass_T[second]),
        "distance": None if distance is None else dict(distance),
        "strangeness": strangeness,
        "fragmentation": fragmentation,
        "reason": reason,
    }
