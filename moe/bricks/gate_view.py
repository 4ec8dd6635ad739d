"""What the gate goes by: neighbours of its prototypes, confusions, and the words that move it.

Dimensions: R rows of the gate, T tasks, W variants of a text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from moe.checkpoint import Bundle
from moe.collect import Answers
from moe.data.collate import collate
from moe.data.tables import TaskTable
from moe.data.windows import make_windows
from moe.types import expert_specs

MOST_WORDS = 40  # of a text that is taken apart


def prototype_similarity(bundle: Bundle) -> tuple[list[str], NDArray[np.float64]]:
    """Names (R) and cosines (R, R) of the trained gate's rows: which experts it holds alike."""
    scores: Any = bundle.model.gate.scores
    rows_RP = getattr(scores, "prototypes", None)
    unit_RP = F.normalize(scores.weight if rows_RP is None else rows_RP, dim=-1).detach()
    used = {row: expert.name for expert in expert_specs(bundle.model.tasks) for row in expert.rows}
    order = sorted(used)
    cosine_RR = (unit_RP[order] @ unit_RP[order].T).double().numpy()
    return [used[row] for row in order], cosine_RR


def routing_shares(answers: Sequence[Answers]) -> NDArray[np.float64]:
    """(T, E) share of the rows of each task that the gate sends to each expert."""
    return np.stack([said.load_E / max(said.load_E.sum(), 1) for said in answers])


@torch.no_grad()
def moving_words(
    bundle: Bundle, table: TaskTable, said: Answers, count: int = 3
) -> list[dict[str, Any]]:
    """The least certain rows of a task, and what leaving out each word does to its mass.

    Args:
        bundle: A trained model.
        table: Rows of the task.
        said: The model's answers for them.
        count: Rows to take apart.
    """
    shortest = [len(record["text"].split()) for record in table.read(said.row_N.tolist())]
    mass_N = np.where(np.array(shortest) > 1, said.mass_NT[:, table.task], np.inf)
    found = []
    for row in np.argsort(mass_N)[:count]:
        record = table.read([int(said.row_N[row])])[0]
        words = record["text"].split()[:MOST_WORDS]
        variants = [" ".join(words[:i] + words[i + 1 :]) for i in range(len(words))]
        mass_W = _own_mass(bundle, table, [" ".join(words), *variants], record["context"])
        found.append(
            {
                "text": " ".join(words),
                "mass": float(mass_W[0]),
                "without": {
                    f"{i}:{word}": float(mass_W[i + 1] - mass_W[0]) for i, word in enumerate(words)
                },
            }
        )
    return found


def _own_mass(
    bundle: Bundle, table: TaskTable, texts: Sequence[str], context: str | None
) -> NDArray[np.float64]:
    """The gate's mass (W,) on the table's task for some texts with one context."""
    data, tokenizer = bundle.config.data, bundle.tokenizer
    context_ids = None if context is None else tokenizer.encode([context])[0][0]
    shape = {"max_length": data.max_length, "stride": data.stride}
    windows = [make_windows(ids, context_ids, **shape)[0] for ids, _ in tokenizer.encode(texts)]
    batch = collate(windows, range(len(windows)), tokenizer)
    output = bundle.model(batch)
    mass_W: NDArray[np.float64] = output.routing.task_mass_BT[:, table.task].double().numpy()
    return mass_W
