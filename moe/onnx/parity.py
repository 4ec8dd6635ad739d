"""Whether an exported graph answers like torch: every expert on every text, in many sizes.

Dimensions: B rows, L tokens, E experts, T tasks.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from moe.checkpoint import Bundle
from moe.data.windows import PaddedWindows, pad_windows
from moe.forms import FORMS
from moe.model import Mixture
from moe.onnx.bundle import FILES, OnnxGraph
from moe.onnx.routing import decide
from moe.onnx.samples import TEXTS, text_windows
from moe.types import Batch

ROWS = (1, 2, 3, 8, 16, 32, 64)  # of the micro-batches of texts, one after another
SIZES = ((1, 1), (64, 1), (1, 2), (5, 7), (3, 33), (1, 512), (64, 512))  # rows x tokens, no texts
Floats32 = NDArray[np.float32]
Outputs = dict[str, Floats32]


class ParityError(RuntimeError):
    """An exported graph answers otherwise than torch."""


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """How far a graph may be from torch.

    Attributes:
        difference: Largest difference of a logit of the gate or an expert, or of what the gate
            reads.
        routing: Smallest share of texts that go to the same task.
        answer: Smallest share of an expert's texts with the same best class, or start and end, or
            of a tagger's tokens with the same tag. One text may always differ: few say little.
    """

    difference: float
    routing: float
    answer: float


# Rounding to 8 bits moves logits by more than rounding to 24: what counts is what they decide.
TOLERANCES = {
    "fp32": Tolerance(difference=1e-3, routing=0.995, answer=0.99),
    "int8": Tolerance(difference=np.inf, routing=0.995, answer=0.95),
}


@dataclass(frozen=True, kw_only=True)
class Parity:
    """How far a graph is from torch.

    Attributes:
        texts: Texts compared.
        sizes: Rows x tokens of the smallest and the largest micro-batch.
        difference: The largest of a logit, by expert, and of `gate`; and of what the gate reads,
            `pooled`.
        routing: Share of texts that go to the same task.
        answer: Share of texts with the same answer, by expert, of those that torch's gate sends to
            its task, of a tagger the mean share of their tokens; experts without texts are absent.
    """

    texts: int
    sizes: tuple[str, str]
    difference: dict[str, float]
    routing: float
    answer: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What is known of the graphs that were written.

    Attributes:
        parity: By precision how far its answers are from torch's.
        rounding: What was done for 8 bits: see `moe.onnx.rounding.Rounded`; empty without.
    """

    parity: dict[str, Parity]
    rounding: dict[str, Any]


def check_parity(
    bundle: Bundle, file: Path, precision: str, tolerances: dict[str, Tolerance] = TOLERANCES
) -> Parity:
    """Compares a graph with the model it was exported from.

    Args:
        bundle: The model.
        file: The graph.
        precision: `fp32` or `int8`: whose tolerance counts.
        tolerances: By precision.

    Raises:
        ParityError: A tolerance is passed.
    """
    model, graph = bundle.model, OnnxGraph(file, torch.get_num_threads())
    names = model.expert_names
    difference = dict.fromkeys(("pooled", "gate", *names), 0.0)
    routed: list[bool] = []
    same: dict[str, list[float]] = {name: [] for name in names}
    sizes = []
    for rows, is_text in micro_batches(bundle):
        sizes.append(rows.input_ids.shape)
        ours, theirs = ask_torch(model, rows), ask_graph(graph, rows)
        for name, largest in difference.items():
            # np.maximum keeps a NaN.
            difference[name] = float(np.maximum(largest, apart(ours[name], theirs[name])))
        if is_text:
            task_B = _tasks(model, ours["gate"], rows)
            routed += (task_B == _tasks(model, theirs["gate"], rows)).tolist()
            for number, task in enumerate(model.tasks):
                for name in task.expert_names:
                    alike_B = FORMS[task.type].same_answer(
                        ours[name], theirs[name], rows.attention_mask
                    )
                    same[name] += alike_B[task_B == number].tolist()
    shapes = sorted(sizes, key=np.prod)
    parity = Parity(
        texts=len(routed),
        sizes=("x".join(map(str, shapes[0])), "x".join(map(str, shapes[-1]))),
        difference=difference,
        routing=float(np.mean(routed)),
        answer={name: float(np.mean(equal)) for name, equal in same.items() if equal},
    )
    counts = {name: len(equal) for name, equal in same.items()}
    wrong = violations(parity, counts, tolerances[precision])
    if wrong:
        raise ParityError(f"{precision} graph: {'; '.join(wrong)}: nothing was written")
    return parity


def parity_text(exported: Exported, out: str | Path) -> str:
    """What the export prints: one line per precision and output, and what stayed in 32 bits."""
    lines = [f"{'graph':6} {'':14} {'largest difference':>20} {'same answer':>12}"]
    for precision, measured in exported.parity.items():
        shares = {"gate": measured.routing, **measured.answer}
        for name, difference in measured.difference.items():
            shown = f"{shares[name]:.2%}" if name in shares else ""
            lines.append(f"{precision:6} {name:14} {difference:20.2e} {shown:>12}".rstrip())
        sizes = " to ".join(measured.sizes)
        megabytes = (Path(out) / FILES[precision]).stat().st_size / 1e6
        lines.append(f"{precision}: {measured.texts} texts, {sizes} tokens, {megabytes:.1f} MB")
    if exported.rounding:
        kept = ", ".join(exported.rounding["kept"]) or "no large matrix"
        lines += [
            f"int8: in 32 bits: {kept}",
            *(f"int8: {at}" for at in exported.rounding["beside"]),
        ]
    return "\n".join([*lines, f"written: {out}"])


def violations(parity: Parity, counts: dict[str, int], allowed: Tolerance) -> list[str]:
    """What is further from torch than allowed; `counts` is the number of texts by expert."""
    wrong = [
        f"{name} differs by {difference:.3g}, allowed {allowed.difference:g}"
        for name, difference in parity.difference.items()
        if not difference <= allowed.difference  # NaN is wrong, too
    ]
    if parity.routing < allowed.routing:
        wrong.append(f"same task for {parity.routing:.2%} of texts, needed {allowed.routing:.2%}")
    wrong += [
        f"{name} gives {share:.2%} of its texts the same answer, needed {allowed.answer:.2%}"
        for name, share in parity.answer.items()
        if share < allowed.answer and round((1 - share) * counts[name]) > 1
    ]
    return wrong


# --- what is asked ----------------------------------------------------------------------------


def micro_batches(bundle: Bundle) -> Iterator[tuple[PaddedWindows, bool]]:
    """Texts of the packaged samples in micro-batches of 1 to 64, then token rows of `SIZES`.

    Whether they are texts comes with each: only there a decision means something.
    """
    longest = bundle.model.encoder.config.max_position_embeddings
    windows = text_windows(bundle, 0, TEXTS)
    source, rows = iter(windows), cycle(ROWS)
    while group := list(islice(source, next(rows))):
        yield pad_windows(group, bundle.tokenizer), True
    ids = np.concatenate([window.text_ids for window in windows])
    for num_rows, length in SIZES:
        yield token_rows(ids, num_rows, min(length, longest)), False


def token_rows(ids: NDArray[np.int32], rows: int, length: int) -> PaddedWindows:
    """Running text in rows of one length; the second half of the last row is padding.

    In every other row a passage follows the first quarter.
    """
    position_L, row_B = np.arange(length), np.arange(rows)
    attention_mask = np.ones((rows, length), dtype=bool)
    attention_mask[-1, (length + 1) // 2 :] = False
    passage_BL = (row_B[:, None] % 2 == 0) & (position_L >= max(length // 4, 1))
    return PaddedWindows(
        input_ids=np.resize(ids, (rows, length)).astype(np.int64),
        attention_mask=attention_mask,
        context_mask=attention_mask & passage_BL,
    )


# --- who answers ------------------------------------------------------------------------------


@torch.inference_mode()
def ask_torch(model: Mixture, rows: PaddedWindows) -> Outputs:
    """Of every row alone: what the gate reads, `pooled`, its logits, `gate`, and each expert's."""
    whole = copy.copy(model)
    whole.top_k = len(model.expert_names)
    count = len(rows.input_ids)
    unknown = torch.full((count,), -1)
    batch = Batch(
        input_ids=torch.from_numpy(rows.input_ids),
        attention_mask=torch.from_numpy(rows.attention_mask),
        context_mask=torch.from_numpy(rows.context_mask),
        request_ids=torch.arange(count),
        task_ids=unknown,
        labels=unknown,
        spans=torch.zeros(count, 2, dtype=torch.int64),
    )
    output = whole(batch, tasks_BT=torch.ones(count, len(model.tasks), dtype=torch.bool))
    said = {model.expert_names[answer.expert]: answer.logits for answer in output.experts}
    said |= {"pooled": output.pooled_BD, "gate": output.routing.logits_BE}
    return {name: tensor.float().numpy() for name, tensor in said.items()}


def ask_graph(graph: OnnxGraph, rows: PaddedWindows) -> Outputs:
    """The same of an exported graph."""
    encoded = graph.encode(rows)
    logits = graph.run_experts(encoded, np.ones(encoded.gate_logits_BE.shape, dtype=bool))
    said = {graph.expert_names[expert]: values for expert, values in logits.items()}
    return {**said, "pooled": encoded.pooled_BD, "gate": encoded.gate_logits_BE}


# --- how far apart they are -------------------------------------------------------------------


def apart(ours: Floats32, theirs: Floats32) -> float:
    """The largest difference; infinite if a number is finite where it should not be."""
    finite = np.isfinite(ours)
    # Where torch says -inf the graph says a large negative number.
    if not (theirs[~finite] < -1e8).all():
        return np.inf
    return float(np.abs(ours[finite] - theirs[finite]).max(initial=0.0))


def _tasks(model: Mixture, gate_BE: Floats32, rows: PaddedWindows) -> NDArray[np.int64]:
    """The task (B,) that each row goes to."""
    has_context_B1 = rows.context_mask.any(1, keepdims=True)
    allowed_BT = has_context_B1 | ~np.array([task.needs_context for task in model.tasks])
    decision = decide(
        gate_BE,
        model.task_sizes,
        named_NT=np.zeros_like(allowed_BT),
        allowed_NT=allowed_BT,
        top_k=1,
        multi_task_threshold=None,
        selection_bias_E=model.gate.expert_bias.double().numpy(),
    )
    return decision.tasks_NT.argmax(1)
