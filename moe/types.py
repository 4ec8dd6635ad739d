"""What crosses the borders between modules: batches, routing, outputs, and the user's mistakes.

Dimensions, used as suffixes of tensor names in the whole package:
B windows of a micro-batch, L tokens, D encoder width, E experts, K experts chosen per task and
row, T tasks, C classes, N rows that one expert answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:  # requests and answers are read and written without torch, too
    from torch import Tensor

ExpertType = Literal["classifier", "span", "tagger"]
NEEDS_CONTEXT: tuple[ExpertType, ...] = ("span",)  # they answer out of a passage
TrunkKind = Literal["none", "ffn", "transformer"]
Pooling = Literal["first", "mean", "text", "both"]


class InputError(ValueError):
    """A mistake of the user: entry points print its message and exit with code 2."""


class NonFiniteError(RuntimeError):
    """Training met a NaN or an infinity: entry points print its message and exit with code 3."""


@dataclass(frozen=True, kw_only=True)
class BrickSpec:
    """A part of the gate that was fitted for one added expert (`moe.gate.GateBrick`).

    Attributes:
        name: That of the expert it was fitted for.
        order: When it was added: a larger number is later.
        layers: How many of the encoder's layers it reads, from the first.
        own: Prototypes of the expert's rows.
        others: Prototypes of all other rows.
    """

    name: str
    order: int
    layers: int
    own: int
    others: int


@dataclass(frozen=True, kw_only=True)
class ExpertSpec:
    """Name and gate column of an expert, once the model was changed brick by brick.

    Its gate logit is the logsumexp over what it stands on: the mass of several, after a merge.

    Attributes:
        name: Of the expert.
        rows: Rows of the trained gate.
        bricks: Parts of the gate that were fitted later.
    """

    name: str
    rows: tuple[int, ...] = ()
    bricks: tuple[BrickSpec, ...] = ()

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ExpertSpec:
        """What `dataclasses.asdict` described, lists for tuples.

        Raises:
            InputError: It was added when gate bricks read the last layer, too.
        """
        if any("layers" not in brick for brick in values["bricks"]):  # until 22 November 2026
            raise InputError(f"the expert {values['name']!r} is of an older program: add it again")
        bricks = tuple(BrickSpec(**brick) for brick in values["bricks"])
        return cls(name=values["name"], rows=tuple(values["rows"]), bricks=bricks)


@dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """What the trained model knows of a task; saved in the checkpoint.

    Attributes:
        name: The task's name in configs, requests and TensorBoard.
        type: Which kind of expert answers it.
        num_experts: Experts that share the task.
        labels: Class names in the order of the logits, in-scope classes only; of a tagger BIO tags.
        out_of_scope: Name of the extra last class for rows that fit no label, or None.
        can_be_unanswerable: Whether training held questions without an answer.
        experts: The experts one by one; empty as trained: numbered, one row of the gate each.
        trunk: Kind of the experts' trunk; None is that of the config.
        trunk_width: Width inside its feed-forward block; None is the encoder's.
        layer: Encoder layer, counted from 1, whose states the experts read; None is the last.
    """

    name: str
    type: ExpertType
    num_experts: int
    labels: tuple[str, ...] = ()
    out_of_scope: str | None = None
    can_be_unanswerable: bool = False
    experts: tuple[ExpertSpec, ...] = ()
    trunk: TrunkKind | None = None
    trunk_width: int | None = None
    layer: int | None = None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TaskSpec:
        """What `dataclasses.asdict` described, lists for tuples.

        Raises:
            InputError: It is a tagger that was grown when all of these read the middle layer.
        """
        if values.get("middle"):  # until 22 November 2026
            raise InputError(f"the task {values['name']!r} is of an older program: grow it again")
        experts = [ExpertSpec.from_dict(expert) for expert in values.get("experts", ())]
        known = {name: value for name, value in values.items() if name != "middle"}
        return cls(**{**known, "labels": tuple(values["labels"]), "experts": tuple(experts)})

    @property
    def num_classes(self) -> int:
        """Classes of the head, the out-of-scope class included."""
        return len(self.labels) + (self.out_of_scope is not None)

    @property
    def expert_names(self) -> tuple[str, ...]:
        """`sentiment-0`, `sentiment-1`, ..."""
        if self.experts:
            return tuple(expert.name for expert in self.experts)
        return tuple(f"{self.name}-{index}" for index in range(self.num_experts))

    @property
    def needs_context(self) -> bool:
        """Whether a request without a passage cannot be answered."""
        return self.type in NEEDS_CONTEXT


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A micro-batch of windows. Padding is 0 in `input_ids` and False in both masks.

    Attributes:
        input_ids: (B, L) int64, `[CLS] text [SEP]` or `[CLS] text [SEP] context [SEP]`.
        attention_mask: (B, L) bool, True at tokens.
        context_mask: (B, L) bool, True at tokens of the context: where a span may lie.
        request_ids: (B,) int64 in [0, requests): windows of one request share a number.
        task_ids: (B,) int64, the task of the row, -1 where it is not known or it is a routing row.
        labels: (B,) int64 class of the row, -1 where there is none.
        spans: (B, 2) int64 first and last token of the answer; (0, 0), the [CLS] token, where
            the window holds no answer.
        tags: (B, L) int64 class of the word that begins at a token, -1 at all others; None if no
            row has any.
        target_BT: (B, T) the mass that the gate should give each task, rows summing to 1; None
            outside training.
        answered_BT: (B, T) bool, True at the tasks whose answer a routing row holds, so that their
            experts learn from it; None where no row holds any.
        step_rows_T: (T,) int64 rows per task of the whole optimizer step, None outside training.
    """

    input_ids: Tensor
    attention_mask: Tensor
    context_mask: Tensor
    request_ids: Tensor
    task_ids: Tensor
    labels: Tensor
    spans: Tensor
    tags: Tensor | None = None
    target_BT: Tensor | None = None
    answered_BT: Tensor | None = None
    step_rows_T: Tensor | None = None

    def __len__(self) -> int:
        return self.input_ids.shape[0]

    def _map(self, function: Any) -> Batch:
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        moved: dict[str, Any] = {k: None if v is None else function(v) for k, v in values.items()}
        return Batch(**moved)

    def to(self, *args: Any, **kwargs: Any) -> Batch:
        """Every tensor moved as by `torch.Tensor.to`."""
        return self._map(lambda tensor: tensor.to(*args, **kwargs))

    def pin_memory(self) -> Batch:
        """Every tensor in page-locked memory, for the data loader."""
        return self._map(lambda tensor: tensor.pin_memory())

    def select(self, rows_N: Tensor) -> Batch:
        """The windows `rows_N` (N,) int64, in that order."""
        step_rows_T = self.step_rows_T
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "step_rows_T"}
        rows: dict[str, Any] = {k: None if v is None else v[rows_N] for k, v in values.items()}
        return Batch(**rows, step_rows_T=step_rows_T)


@dataclass(frozen=True, kw_only=True)
class Routing:
    """The gate's decision for each window of a micro-batch, all float32 or bool.

    Attributes:
        logits_BE: Scores divided by the gate's temperature.
        probabilities_BE: g, softmax of the logits over all experts.
        task_mass_BT: G_t, the sum of g over the experts of task t.
        tasks_BT: True at the chosen tasks.
        chosen_BE: True at the chosen experts: K within each chosen task.
        log_weights_BE: log of g renormalised over the chosen experts of the same task; -inf at
            the others.
    """

    logits_BE: Tensor
    probabilities_BE: Tensor
    task_mass_BT: Tensor
    tasks_BT: Tensor
    chosen_BE: Tensor
    log_weights_BE: Tensor


@dataclass(frozen=True, kw_only=True)
class ExpertOutput:
    """What one expert said of its rows.

    Attributes:
        expert: Its column in the gate.
        rows_N: (N,) int64, rows of the micro-batch.
        logits: (N, C) for a classifier, (N, L, 2) start and end for a span expert, (N, L, C) for a
            tagger.
    """

    expert: int
    rows_N: Tensor
    logits: Tensor


@dataclass(frozen=True, kw_only=True)
class MixtureOutput:
    """Everything that the model computed for a micro-batch; nothing is kept on the model.

    Attributes:
        pooled_BD: The shared embedding, one vector per window.
        routing: The gate's decision.
        experts: One entry per expert that ran; experts without rows are absent.
    """

    pooled_BD: Tensor
    routing: Routing
    experts: tuple[ExpertOutput, ...]


def expert_specs(tasks: Sequence[TaskSpec]) -> tuple[ExpertSpec, ...]:
    """All experts in the gate's order; as trained, each has the row of its own number."""
    names = [name for task in tasks for name in task.expert_names]
    changed = [expert for task in tasks for expert in task.experts]
    assert len(changed) in (0, len(names)), "some tasks list their experts and some do not"
    return tuple(changed) or tuple(ExpertSpec(name=n, rows=(i,)) for i, n in enumerate(names))


def expert_columns(tasks: Sequence[TaskSpec]) -> tuple[range, ...]:
    """For each task the columns of its experts in the gate; experts are numbered task by task."""
    sizes = [task.num_experts for task in tasks]
    return tuple(range(end - n, end) for n, end in zip(sizes, accumulate(sizes), strict=True))
