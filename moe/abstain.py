"""Whether a request fits any task: distances in the space that the gate reads.

A softmax says which task fits best, never that none does. Here a request is compared with kept
examples: rows of each task (**exemplars**) and texts that fit none (**strangers**). All vectors are
centred and normalised, so that similarity is a cosine; the length of an embedding says little (the
Mahalanobis distance, which reads it, refused nothing: `docs/results.md`). Numpy alone, so that
every backend shares it.

Dimensions: N requests, D encoder width, X kept rows, T tasks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from moe.decode import Floats

NEIGHBOURS = 3
REFUSED = 0.007  # share of each task's validation rows that may be refused, below the aim of 1 %
UNUSUAL_REFUSED = 0.02  # of the routing rows of a task: unusual forms lie nearer to strangers
STRANGERS = "strangers"  # beside the names of the exemplars, among cosines
Vectors = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What requests are compared with; a new task adds its exemplars and moves no other's.

    Attributes:
        centre_D: Mean of the tasks' mean embeddings.
        exemplars: By task, and of the routing rows: (X, D) centred, normalised rows.
        strangers_XD: Texts that fit no task, likewise.
        threshold: A request with a larger score is refused.
        grown: By task that was added to the trained model: its own threshold. Its exemplars count
            for requests that the gate sends to it and for no others, so that those of the trained
            tasks are refused as before.
    """

    centre_D: Vectors
    exemplars: Mapping[str, Vectors]
    strangers_XD: Vectors
    threshold: float
    grown: Mapping[str, float] = field(default_factory=dict)

    def arrays(self) -> dict[str, Vectors]:
        """The arrays by name."""
        kept = {"centre": self.centre_D, "strangers": self.strangers_XD}
        return {**kept, **_named(self.exemplars)}

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, Vectors], threshold: float, grown: Mapping[str, float]
    ) -> Reference:
        """What `arrays` gave, with the thresholds."""
        return cls(
            centre_D=arrays["centre"],
            exemplars=_unnamed(arrays),
            strangers_XD=arrays["strangers"],
            threshold=threshold,
            grown=grown,
        )


_EXEMPLARS = "exemplars."


def _named(exemplars: Mapping[str, Vectors]) -> dict[str, Vectors]:
    return {_EXEMPLARS + name: kept_XD for name, kept_XD in exemplars.items()}


def _unnamed(arrays: Mapping[str, Vectors]) -> dict[str, Vectors]:
    return {
        name.removeprefix(_EXEMPLARS): kept_XD
        for name, kept_XD in arrays.items()
        if name.startswith(_EXEMPLARS)
    }


def nearest(vectors_ND: Vectors, kept_XD: Vectors) -> Floats:
    """Mean cosine (N,) to the `NEIGHBOURS` most similar of the kept rows."""
    similarity_NX = vectors_ND @ kept_XD.T
    count = min(NEIGHBOURS, similarity_NX.shape[1])
    best: Floats = np.partition(similarity_NX, -count, axis=1)[:, -count:].mean(1)
    return best


def normalise(pooled_ND: Vectors, centre_D: Vectors) -> Vectors:
    """Embeddings (N, D) centred and of length 1, as a `Reference` keeps them."""
    moved_ND = pooled_ND - centre_D
    unit_ND: Vectors = moved_ND / np.maximum(np.linalg.norm(moved_ND, axis=1, keepdims=True), 1e-9)
    return unit_ND


def nearest_cosines(pooled_ND: Vectors, reference: Reference) -> dict[str, Floats]:
    """By kind of exemplars, and `STRANGERS`: the mean cosine (N,) to the nearest of them.

    Args:
        pooled_ND: Shared embeddings, the mean over the windows of a request.
        reference: What they are compared with.
    """
    unit_ND = normalise(pooled_ND, reference.centre_D)
    kept = {**reference.exemplars, STRANGERS: reference.strangers_XD}
    return {name: nearest(unit_ND, kept_XD) for name, kept_XD in kept.items()}


def stranger_scores(pooled_ND: Vectors, reference: Reference) -> Floats:
    """Score (N,) in [-2, 2]: similarity to the strangers minus that to the best task's exemplars.

    Tasks that were added to the trained model do not count.

    Args:
        pooled_ND: Shared embeddings, the mean over the windows of a request.
        reference: What they are compared with.
    """
    return _strangeness(nearest_cosines(pooled_ND, reference), reference)


def _strangeness(
    cosines: Mapping[str, Floats], reference: Reference, added: str | None = None
) -> Floats:
    """The score (N,) where the trained tasks count, and one that was added."""
    names = [name for name in reference.exemplars if name not in reference.grown or name == added]
    score_N: Floats = cosines[STRANGERS] - np.max([cosines[name] for name in names], axis=0)
    return score_N


def refusal_scores(
    cosines: Mapping[str, Floats], reference: Reference, task_N: Sequence[str] = ()
) -> tuple[Floats, Floats]:
    """Score (N,) of each request, and the threshold (N,) above which it is refused.

    Args:
        cosines: Of the requests.
        reference: What they were compared with.
        task_N: The gate's first choice for each; empty if no task was added.
    """
    scores_N = _strangeness(cosines, reference)
    thresholds_N = np.full(len(scores_N), reference.threshold)
    for name, threshold in reference.grown.items():
        mine_N = np.array([task == name for task in task_N], dtype=bool)
        if mine_N.any():
            scores_N[mine_N] = _strangeness(cosines, reference, name)[mine_N]
            thresholds_N[mine_N] = threshold
    return scores_N, thresholds_N


def fit_reference(
    exemplars: Mapping[str, Vectors],
    strangers_XD: Vectors,
    validation: Sequence[Vectors],
    unusual_ND: Vectors | None = None,
    refused: float = REFUSED,
) -> Reference | None:
    """The reference whose threshold refuses at most a share of the rows that belong to a task.

    Args:
        exemplars: By task, and of the routing rows: embeddings (X, D) of training rows.
        strangers_XD: Embeddings of texts that fit no task; without any there is no reference.
        validation: Embeddings (N, D) of other rows of each task.
        unusual_ND: Of other routing rows with a task, None without any.
        refused: Share of each task's rows, in [0, 1].
    """
    if len(strangers_XD) == 0 or any(len(rows_ND) == 0 for rows_ND in validation):
        return None
    centre_D = np.mean([rows_XD.mean(0) for rows_XD in exemplars.values()], axis=0)
    # In half precision as saved: a loaded reference must decide like the one that was fitted.
    centre_D = rounded(centre_D)
    unfitted = Reference(
        centre_D=centre_D,
        exemplars={k: rounded(normalise(v, centre_D)) for k, v in exemplars.items()},
        strangers_XD=rounded(normalise(strangers_XD, centre_D)),
        threshold=np.inf,
    )
    return with_threshold(unfitted, validation, unusual_ND, refused)


def with_threshold(
    reference: Reference,
    validation: Sequence[Vectors],
    unusual_ND: Vectors | None = None,
    refused: float = REFUSED,
) -> Reference:
    """The reference with a threshold that refuses at most a share of rows that belong to a task.

    Args:
        reference: Whatever its threshold is.
        validation: Embeddings (N, D) of rows of each task, none of them an exemplar.
        unusual_ND: Of routing rows with a task, of which `UNUSUAL_REFUSED` may be refused.
        refused: Share of each task's rows, in [0, 1].
    """
    groups = [(rows_ND, refused) for rows_ND in validation]
    if unusual_ND is not None and len(unusual_ND):
        groups.append((unusual_ND, UNUSUAL_REFUSED))
    thresholds = [
        float(np.quantile(stranger_scores(rows_ND, reference), 1 - share, method="higher"))
        for rows_ND, share in groups
    ]
    return replace(reference, threshold=max(thresholds))


def rounded(values: Vectors) -> Vectors:
    """What half precision, in which a checkpoint keeps them, leaves of the values."""
    kept: Vectors = values.astype(np.float16).astype(np.float32)
    return kept
