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
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from moe.decode import Floats

NEIGHBOURS = 3
REFUSED = 0.007  # share of each task's validation rows that may be refused, below the aim of 1 %
UNUSUAL_REFUSED = 0.02  # of the routing rows of a task: unusual forms lie nearer to strangers
Vectors = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What requests are compared with; a new task adds its exemplars and moves no other's.

    Attributes:
        centre_D: Mean of the tasks' mean embeddings.
        exemplars: By task, and of the routing rows: (X, D) centred, normalised rows.
        strangers_XD: Texts that fit no task, likewise.
        threshold: A request with a larger score is refused.
    """

    centre_D: Vectors
    exemplars: Mapping[str, Vectors]
    strangers_XD: Vectors
    threshold: float


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


def stranger_scores(pooled_ND: Vectors, reference: Reference) -> Floats:
    """Score (N,) in [-2, 2]: similarity to the strangers minus that to the best task's exemplars.

    Args:
        pooled_ND: Shared embeddings, the mean over the windows of a request.
        reference: What they are compared with.
    """
    unit_ND = normalise(pooled_ND, reference.centre_D)
    own_TN = [nearest(unit_ND, kept_XD) for kept_XD in reference.exemplars.values()]
    scores: Floats = nearest(unit_ND, reference.strangers_XD) - np.max(own_TN, axis=0)
    return scores


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
    centre_D = _rounded(centre_D)
    unfitted = Reference(
        centre_D=centre_D,
        exemplars={k: _rounded(normalise(v, centre_D)) for k, v in exemplars.items()},
        strangers_XD=_rounded(normalise(strangers_XD, centre_D)),
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


def _rounded(values: Vectors) -> Vectors:
    rounded: Vectors = values.astype(np.float16).astype(np.float32)
    return rounded
