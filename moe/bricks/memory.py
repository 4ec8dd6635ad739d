"""What a checkpoint remembers of its tasks' rows: embeddings, so that no old text is needed.

Dimensions: N rows, D width of what the gate reads, P width of what gate bricks read, X kept rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from moe.abstain import REFUSED, Reference, Vectors, normalise, refusal_scores, rounded
from moe.checkpoint import Bundle
from moe.collect import embed_deep
from moe.data.module import RequestDataset
from moe.data.prepare import Tables, build_tables, some_rows
from moe.data.routing import RoutingTable
from moe.data.tables import TaskTable
from moe.fitting import remembered
from moe.types import InputError


def with_memory(bundle: Bundle, root: str | None = None) -> Bundle:
    """The bundle, with a memory made from its training data if it holds none.

    Args:
        bundle: Any.
        root: Folder of the training data's relative sources; None is that of the training.

    Raises:
        InputError: It holds no memory and its training data cannot be read.
    """
    if bundle.memory:
        return bundle
    config = bundle.config
    data = config.data if root is None else replace(config.data, root=root)
    try:
        tables, _ = build_tables(
            config.selected_tasks, data, bundle.tokenizer, config.seed_everything
        )
    except InputError as error:
        raise InputError(
            "the checkpoint remembers no rows of its tasks, and its training data cannot be read: "
            f"{error}; name their folder with --old_root"
        ) from error
    return replace(bundle, memory=_embedded(bundle, tables))


def _embedded(bundle: Bundle, tables: Tables) -> dict[str, Vectors]:
    seed = bundle.config.seed_everything
    chosen: Mapping[str, TaskTable | RoutingTable] = tables.exemplars or {
        table.spec.name: some_rows(table, seed) for table in tables.train
    }
    rows = {}
    for name, table in chosen.items():
        data = RequestDataset(table, bundle.tokenizer, bundle.config.data)
        batches = [embed_deep(bundle.model, data[i]) for i in range(len(data))]
        rows[name] = np.concatenate(batches)
    return remembered(rows, seed)


def remember(
    bundle: Bundle, task: str, train_NP: Vectors, validation_ND: Vectors, seed: int = 0
) -> Bundle:
    """The bundle that also remembers rows of an added task; what it kept of others stays.

    Where the gate abstains, requests that are sent to the task are compared with its own rows
    too, under a threshold of its own that refuses at most `REFUSED` of its validation rows.

    Args:
        bundle: With a memory.
        task: Its name.
        train_NP: Of its training rows, of which some are kept.
        validation_ND: What the gate reads of other rows of the task.
        seed: Chooses the rows.
    """
    kept = remembered({task: train_NP}, seed)
    memory = {**bundle.memory, **kept}
    bundle = replace(bundle, memory=memory)
    reference = bundle.calibration.reference
    if reference is None:
        return bundle
    train_ND = kept[task][:, : bundle.model.gate.dim]
    exemplars = {**reference.exemplars, task: rounded(normalise(train_ND, reference.centre_D))}
    grown = {**reference.grown, task: reference.threshold}
    reference = replace(reference, exemplars=exemplars, grown=grown)
    threshold = _own_threshold(reference, task, validation_ND)
    reference = replace(reference, grown={**reference.grown, task: threshold})
    return replace(bundle, calibration=replace(bundle.calibration, reference=reference))


def _own_threshold(reference: Reference, task: str, validation_ND: Vectors) -> float:
    """At least that of the trained tasks: a few validation rows may all lie far from strangers."""
    scores_N, _ = refusal_scores(validation_ND, reference, [task] * len(validation_ND))
    needed = float(np.quantile(scores_N, 1 - REFUSED, method="higher"))
    return max(needed, reference.threshold)
