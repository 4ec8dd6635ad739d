"""How the neurons of the encoder's feed-forward layers serve the tasks, and the bricks they form.

A neuron is a column between the two linear layers; it is active at a token if its value after GELU
is above 0. After Zhang et al. 2023 (arXiv 2305.18390) and MoEfication (arXiv 2110.01786).

Dimensions: B windows, L tokens, N layers, F neurons of a layer, T tasks, S sampled tokens, K
bricks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moe.bricks.measuring import collect_here
from moe.checkpoint import Bundle
from moe.data.module import RequestDataset
from moe.data.tables import TaskTable
from moe.encoder import encode
from moe.evaluation import evaluate, main_metric

SAMPLED = 600  # tokens of each task for co-activation
BRICK = 96  # neurons of an emergent brick
ONE_TASK = 2.0  # a neuron serves one task if it is active there so many times as often as elsewhere
ROUNDS = 10
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Activations:
    """What was seen of the neurons.

    Attributes:
        rate_TNF: Share of the tokens of a task at which a neuron is active.
        weight_TNF: Mean size of its value there, times the norm of what it adds to the states.
        sample_NSF: Whether it is active, at tokens of all tasks in equal parts.
    """

    rate_TNF: Floats
    weight_TNF: Floats
    sample_NSF: NDArray[np.bool_]


def _layers(bundle: Bundle) -> list[Any]:
    return list(bundle.model.encoder.transformer.layer)


@contextmanager
def _before_second_layer(bundle: Bundle, change: Any) -> Iterator[None]:
    """`change(number, values_NF)` sees, and may replace, what each layer's neurons say."""

    def hook(number: int) -> Any:
        def run(module: Any, inputs: tuple[Tensor]) -> tuple[Tensor]:
            return (change(number, inputs[0]),)

        return run

    handles = [
        layer.ffn.lin2.register_forward_pre_hook(hook(number))
        for number, layer in enumerate(_layers(bundle))
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def activations(bundle: Bundle, tables: Sequence[TaskTable], seed: int = 0) -> Activations:
    """Runs the encoder over the rows of each task.

    Args:
        bundle: Whose encoder.
        tables: One of each task.
        seed: Samples the tokens.
    """
    outer = [layer.ffn.lin2.weight.norm(dim=0).double().numpy() for layer in _layers(bundle)]
    rates, weights, samples = [], [], []
    for table in tables:
        rate_NF, size_NF, active_NSF = _of_task(bundle, table, np.random.default_rng(seed))
        rates.append(rate_NF)
        weights.append(size_NF * np.stack(outer))
        samples.append(active_NSF)
    return Activations(
        rate_TNF=np.stack(rates),
        weight_TNF=np.stack(weights),
        sample_NSF=np.concatenate(samples, axis=1),
    )


def _of_task(
    bundle: Bundle, table: TaskTable, generator: np.random.Generator
) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    layers = range(len(_layers(bundle)))
    active: list[Any] = [0.0 for _ in layers]
    size: list[Any] = [0.0 for _ in layers]
    seen: list[list[Any]] = [[] for _ in layers]
    tokens = 0
    data = RequestDataset(table, bundle.tokenizer, bundle.config.data)
    for number in range(len(data)):
        batch = data[number].batch
        mask_BL = batch.attention_mask
        some = generator.permutation(int(mask_BL.sum()))[: SAMPLED // len(data) + 1]

        def look(layer: int, values_NF: Tensor, mask: Tensor = mask_BL, some: Any = some) -> Tensor:
            real_SF = values_NF[mask.flatten()]
            active[layer] = active[layer] + (real_SF > 0).sum(0).double().numpy()
            size[layer] = size[layer] + real_SF.abs().sum(0).double().numpy()
            seen[layer].append((real_SF[some] > 0).numpy())
            return values_NF

        with _before_second_layer(bundle, look):
            encode(bundle.model.encoder, batch.input_ids, mask_BL)
        tokens += int(mask_BL.sum())
    sample = np.stack([np.concatenate(parts)[:SAMPLED] for parts in seen])
    return np.stack(active) / tokens, np.stack(size) / tokens, sample


def served_tasks(rate_TNF: Floats) -> NDArray[np.int64]:
    """(N, F) the one task that a neuron serves, -1 where it serves several or none."""
    order_TNF = np.sort(rate_TNF, axis=0)
    if len(rate_TNF) < 2:
        return np.zeros(rate_TNF.shape[1:], dtype=np.int64)
    alone_NF = order_TNF[-1] >= ONE_TASK * np.maximum(order_TNF[-2], 1e-6)
    return np.where(alone_NF, rate_TNF.argmax(0), -1)


def emergent_bricks(sample_SF: NDArray[np.bool_], size: int = BRICK, seed: int = 0) -> Any:
    """(F,) the brick of each neuron: balanced k-means over which tokens activate it.

    In each round the best pairs of neuron and brick are taken first, and a brick that is full takes
    no more.

    Args:
        sample_SF: Whether each neuron is active at each token.
        size: Neurons of a brick.
        seed: Draws the first centres.
    """
    vectors_FS = sample_SF.T.astype(np.float64)
    vectors_FS -= vectors_FS.mean(0)
    vectors_FS /= np.maximum(np.linalg.norm(vectors_FS, axis=1, keepdims=True), 1e-9)
    count = max(len(vectors_FS) // size, 1)
    capacity = -(-len(vectors_FS) // count)
    centres_KS = vectors_FS[np.random.default_rng(seed).permutation(len(vectors_FS))[:count]]
    owner_F = np.full(len(vectors_FS), -1)
    for _ in range(ROUNDS):
        owner_F = _assign(vectors_FS @ centres_KS.T, capacity)
        centres_KS = np.stack([vectors_FS[owner_F == k].mean(0) for k in range(count)])
        centres_KS /= np.maximum(np.linalg.norm(centres_KS, axis=1, keepdims=True), 1e-9)
    return owner_F


def _assign(score_FK: Floats, capacity: int) -> NDArray[np.int64]:
    owner_F = np.full(len(score_FK), -1)
    room = [capacity] * score_FK.shape[1]
    for flat in np.argsort(-score_FK, axis=None, kind="stable"):
        neuron, brick = divmod(int(flat), score_FK.shape[1])
        if owner_F[neuron] < 0 and room[brick]:
            owner_F[neuron] = brick
            room[brick] -= 1
    return owner_F


def best_neurons(weight_NF: Floats, share: float) -> NDArray[np.bool_]:
    """(N, F) the heaviest share of the neurons of each layer."""
    kept = max(round(share * weight_NF.shape[1]), 1)
    rank_NF = np.argsort(np.argsort(-weight_NF, axis=1, kind="stable"), axis=1)
    mask_NF: NDArray[np.bool_] = rank_NF < kept
    return mask_NF


def best_bricks(weight_NF: Floats, owner_NF: NDArray[np.int64], share: float) -> NDArray[np.bool_]:
    """(N, F) the neurons of the heaviest share of the bricks of each layer."""
    masks = []
    for weight_F, owner_F in zip(weight_NF, owner_NF, strict=True):
        total_K = np.bincount(owner_F, weights=weight_F)
        kept = np.argsort(-total_K, kind="stable")[: max(round(share * len(total_K)), 1)]
        masks.append(np.isin(owner_F, kept))
    return np.stack(masks)


def score_with(bundle: Bundle, table: TaskTable, mask_NF: NDArray[np.bool_]) -> float:
    """Main metric of a task, a fraction, with its own expert and only these neurons."""
    masks = torch.from_numpy(mask_NF)
    with _before_second_layer(bundle, lambda number, values: values * masks[number]):
        said = collect_here(bundle, table)
    found = evaluate([table], [said], bundle.calibration, bundle.model.tasks, "oracle")
    return main_metric(found.tasks[table.spec.name])[1]
