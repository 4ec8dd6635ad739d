"""What the model says of labelled rows, collected batch by batch.

The rows' own task is forced, so that one pass gives the answers of learned and of oracle routing;
what the learned gate would have done is kept beside them.

Dimensions: N requests, T tasks, E experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moe.data.collate import RequestBatch
from moe.data.routing import RoutingTable
from moe.data.tables import TaskTable
from moe.data.windows import Words
from moe.decision import route
from moe.forms import FORMS, Collected, Source
from moe.gate import mean_per_request
from moe.model import Mixture
from moe.readout import read_task
from moe.types import MixtureOutput, expert_columns


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What the model said of rows of one task, or of routing rows.

    Attributes:
        row_N: Index of each row in its table.
        pooled_ND: What the gate read, float32; the mean over the windows of a row.
        allowed_NT: The tasks that could answer.
        mass_NT: The gate's mass on each task.
        probabilities_NE: The gate's probabilities.
        routed_N: Whether the learned gate's first choice is the row's own task, or one of them.
        chosen_NE: The experts that the learned gate would have chosen in its first task.
        said: Of a task, what its form made of each row (`moe.forms.base.Form.read`).
    """

    row_N: NDArray[np.int64]
    pooled_ND: NDArray[np.float32]
    allowed_NT: NDArray[np.bool_]
    mass_NT: NDArray[np.float64]
    probabilities_NE: NDArray[np.float64]
    routed_N: NDArray[np.bool_]
    chosen_NE: NDArray[np.bool_]
    said: tuple[Any, ...] = ()

    @property
    def first_N(self) -> NDArray[np.int64]:
        """The learned gate's first choice of task."""
        first: NDArray[np.int64] = np.where(self.allowed_NT, self.mass_NT, -1.0).argmax(1)
        return first

    @property
    def load_E(self) -> NDArray[np.int64]:
        """How often the learned gate chose each expert."""
        load: NDArray[np.int64] = self.chosen_NE.sum(0)
        return load

    @property
    def second_N(self) -> NDArray[np.float64]:
        """Largest mass on a task that could answer and is not the first choice, 0 without one."""
        mass_NT = np.sort(np.where(self.allowed_NT, self.mass_NT, 0.0), axis=1)
        second: NDArray[np.float64] = mass_NT[:, -2] if mass_NT.shape[1] > 1 else 0 * mass_NT[:, 0]
        return second

    def of(self, table: TaskTable, expert_names: Sequence[str]) -> Collected:
        """The same for the form of the table's task."""
        return Collected(table=table, row_N=self.row_N, said=self.said, expert_names=expert_names)


def _said(
    table: TaskTable, output: MixtureOutput, requests: RequestBatch, columns: range
) -> tuple[Any, ...]:
    windows, read = read_task(output, requests, columns), FORMS[table.spec.type].read
    records = enumerate(table.read(requests.rows))
    return tuple(read(windows[number], _source(record)) for number, record in records)


def _source(record: dict[str, Any]) -> Source:
    def words() -> Words:
        starts_W = np.flatnonzero(record["tags"] >= 0)
        return Words(starts_W=starts_W, offsets_W2=record["word_offsets"].reshape(-1, 2))

    return Source(
        text=record["text"],
        context=record["context"] or "",
        offsets=record["offsets"].reshape(-1, 2),
        words=words,
    )


def _wanted(table: TaskTable | RoutingTable, requests: RequestBatch, num_tasks: int) -> Tensor:
    """(N, T) bool: the tasks that each row belongs to."""
    wanted_NT = torch.zeros(len(requests.rows), num_tasks, dtype=torch.bool)
    for number, record in enumerate(table.read(requests.rows)):
        wanted_NT[number, list(record.get("targets", (table.task,)))] = True
    return wanted_NT


@torch.no_grad()
def collect(model: Mixture, table: TaskTable | RoutingTable, requests: RequestBatch) -> Answers:
    """Runs the model on rows of one task with that task forced; on routing rows the gate alone.

    Args:
        model: In evaluation mode.
        table: The rows' table.
        requests: A micro-batch of its rows, on the model's device.
    """
    batch = requests.batch
    output = model(batch, tasks_BT=model.own_tasks(batch))
    first = requests.first_windows()
    pooled_BD = mean_per_request(output.pooled_BD.float(), batch.request_ids)
    allowed_NT = model.answerable(batch)[first]
    learned = route(
        output.routing.logits_BE[first],
        model.task_experts_TE,
        allowed_BT=allowed_NT,
        top_k=model.top_k,
        selection_bias_E=model.gate.expert_bias,
    )
    chosen_NT = learned.tasks_BT.cpu()
    answers = Answers(
        row_N=np.array(requests.rows),
        pooled_ND=pooled_BD[first].cpu().numpy(),
        allowed_NT=allowed_NT.cpu().numpy(),
        mass_NT=learned.task_mass_BT.double().cpu().numpy(),
        probabilities_NE=learned.probabilities_BE.double().cpu().numpy(),
        routed_N=(chosen_NT & _wanted(table, requests, len(model.tasks))).any(1).numpy(),
        chosen_NE=learned.chosen_BE.cpu().numpy(),
    )
    if isinstance(table, RoutingTable):
        return answers
    columns = expert_columns(model.tasks)[table.task]
    return replace(answers, said=_said(table, output, requests, columns))


def embed(model: Mixture, requests: RequestBatch) -> NDArray[np.float32]:
    """What the gate reads of each request (N, D), the mean over its windows; no expert runs."""
    return embed_wide(model, requests)[:, : model.gate.dim]


@torch.no_grad()
def embed_wide(model: Mixture, requests: RequestBatch) -> NDArray[np.float32]:
    """What is remembered of each request (N, P): the same, and behind it what bricks read."""
    batch = requests.batch
    wide_BP = mean_per_request(model.embed([batch], early=True)[0].wide_BP, batch.request_ids)
    embedded: NDArray[np.float32] = wide_BP[requests.first_windows()].cpu().numpy()
    return embedded


def join(parts: Sequence[Answers]) -> Answers:
    """The answers of several micro-batches as one, in the order of the table's rows."""
    row_N = np.concatenate([part.row_N for part in parts])
    order = np.argsort(row_N)
    said = [one for part in parts for one in part.said]
    return Answers(
        row_N=row_N[order],
        pooled_ND=np.concatenate([part.pooled_ND for part in parts])[order],
        allowed_NT=np.concatenate([part.allowed_NT for part in parts])[order],
        mass_NT=np.concatenate([part.mass_NT for part in parts])[order],
        probabilities_NE=np.concatenate([part.probabilities_NE for part in parts])[order],
        routed_N=np.concatenate([part.routed_N for part in parts])[order],
        chosen_NE=np.concatenate([part.chosen_NE for part in parts])[order],
        said=tuple(said[i] for i in order) if said else (),
    )
