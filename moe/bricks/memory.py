"""What a checkpoint remembers of its tasks' rows: embeddings, so that no old text is needed.

Dimensions: N rows, D width of what the gate reads, P of that and what its bricks read, X kept rows.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from moe.abstain import (
    REFUSED,
    Reference,
    Vectors,
    nearest_cosines,
    normalise,
    refusal_scores,
    rounded,
)
from moe.checkpoint import Bundle
from moe.collect import embed_wide
from moe.data.module import RequestDataset
from moe.data.prepare import UNUSUAL, read_task, some_rows
from moe.data.routing import RoutingTable, hold_out, read_routing_rows
from moe.data.tables import TaskTable, build_table
from moe.encoder import early_layers
from moe.fitting import MAX_REMEMBERED, remembered
from moe.types import InputError


def with_memory(bundle: Bundle, root: str | None = None) -> Bundle:
    """The bundle, with a memory made from its training data if it holds none or an older one.

    Args:
        bundle: Any.
        root: Folder of the training data's relative sources; None is that of the training.

    Raises:
        InputError: It has no such memory and its training data cannot be read.
    """
    encoder = bundle.model.encoder
    width = bundle.model.gate.dim + len(early_layers(encoder)) * encoder.config.dim
    # Until 22 November 2026 of the last and the middle layer.
    if bundle.memory and all(rows.shape[1] == width for rows in bundle.memory.values()):
        return bundle
    root = bundle.config.data.root if root is None else root
    try:
        tables = _some_tables(bundle, root)
    except InputError as error:
        raise InputError(
            "the checkpoint remembers no rows of its tasks, or not all that is needed of them, and "
            f"its training data cannot be read: {error}; name their folder with --old_root"
        ) from error
    rows = {}
    for name, table in tables.items():
        data = RequestDataset(table, bundle.tokenizer, bundle.config.data)
        batches = [embed_wide(bundle.model, data[i]) for i in range(len(data))]
        rows[name] = np.concatenate(batches)
    return replace(bundle, memory=remembered(rows, bundle.config.seed_everything))


def _some_tables(bundle: Bundle, root: str) -> dict[str, TaskTable | RoutingTable]:
    """Some training rows of each task and the routing rows that were trained on, tokenized."""
    config, seed = bundle.config, bundle.config.seed_everything
    tables: dict[str, TaskTable | RoutingTable] = {}
    for number, spec in enumerate(bundle.model.tasks):
        train = read_task(spec.name, config.tasks[spec.name], root, seed).train
        order = np.random.default_rng(seed).permutation(len(train))[:MAX_REMEMBERED]
        some = [train[i] for i in order]
        cache = Path(config.data.cache)
        table = build_table(some, spec, number, bundle.tokenizer, cache)
        tables[spec.name] = some_rows(table, seed)  # passages are long: fewer of them
    if config.data.routing is not None:
        names = [spec.name for spec in bundle.model.tasks]
        read = read_routing_rows(config.data.routing, root=Path(root), split="train", tasks=names)
        if trained := hold_out(read)[0]:
            tables[UNUSUAL] = RoutingTable(trained, names, bundle.tokenizer)
    return tables


def remember(
    bundle: Bundle, task: str, train_NP: Vectors, validation_ND: Vectors, seed: int = 0
) -> Bundle:
    """The bundle that also remembers rows of an added task; what it kept of others stays.

    Where the gate abstains, requests that are sent to the task are compared with its own rows
    too, under a threshold of its own that refuses at most `REFUSED` of its validation rows.

    Args:
        bundle: With a memory.
        task: Its name.
        train_NP: What gate and bricks read of its training rows, of which some are kept.
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
    scores_N, _ = refusal_scores(
        nearest_cosines(validation_ND, reference), reference, [task] * len(validation_ND)
    )
    needed = float(np.quantile(scores_N, 1 - REFUSED, method="higher"))
    return max(needed, reference.threshold)
