"""Rewrites a part so that rounding what goes into its matrices costs little.

In 8 bits a tensor has 255 steps from its smallest to its largest number. In a few channels of an
encoder's states the numbers are ten times those of the others, which are then left with 25 steps.
Both rewrites move such channels out of the way and leave the function as it is in 32 bits.

Dimensions: K inputs of a matrix, N its outputs, F units of a feed-forward block.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from onnx import ModelProto, NodeProto

from moe.onnx.products import (
    Floats32,
    Product,
    node,
    products,
    set_nodes,
    set_weights,
    weights,
)

STRENGTH = 0.65  # alpha of SmoothQuant: how much of the difference goes into the weights
OUTLIER = 1.5  # a unit is an outlier that reaches so many times what 99 % of the units stay below
TINY = 1e-5  # for a channel that is always 0


def level(part: ModelProto, peaks: Mapping[str, Floats32], smallest: int) -> None:
    """Divides channels by a scale that the matrices' rows take over.

    `x W = (x / s) (s W)` with `s_k = peak_k^a / (max_n |W_kn|)^(1 - a)`: SmoothQuant (Xiao et al.
    2023, arXiv 2211.10438, equations 3 and 4). There the layer norm before does the division; here
    it is a multiplication of its own, because the residual path reads the layer norm, too.

    Args:
        part: Is changed.
        peaks: Of the products' inputs.
        smallest: Numbers of the smallest matrix to change.
    """
    readers: dict[str, list[Product]] = {}
    for product in products(part, smallest):
        if product.maker not in ("Gelu", "Attention"):  # units have `take_out`, heads no outliers
            readers.setdefault(product.input, []).append(product)
    matrices = weights(part)
    changed: dict[str, Floats32] = {}
    for name, group in readers.items():
        largest_K = np.max([np.abs(matrices[p.weight]).max(1) for p in group], axis=0)
        scale_K = np.maximum(peaks[name], TINY) ** STRENGTH
        scale_K = (scale_K / np.maximum(largest_K, TINY) ** (1 - STRENGTH)).astype(np.float32)
        changed |= {p.weight: matrices[p.weight] * scale_K[:, None] for p in group}
        changed[f"{name}/shrink"] = 1 / scale_K
    nodes: list[NodeProto] = []
    levelled: set[str] = set()
    multiplied = {p.product for group in readers.values() for p in group}
    for old in part.graph.node:
        if old.output[0] in multiplied:
            name = old.input[0]
            if name not in levelled:
                levelled.add(name)
                nodes.append(node("Mul", [name, f"{name}/shrink"], [f"{name}/level"]))
            old.input[0] = f"{name}/level"
        nodes.append(old)
    set_weights(part, changed)
    set_nodes(part, nodes)


def take_out(part: ModelProto, peaks: Mapping[str, Floats32], smallest: int) -> list[str]:
    """Computes the outliers among the units of feed-forward blocks beside the others, in 32 bits.

    The block is a sum over its units, `sum_f gelu(x w_f + b_f) v_f`, which can be taken in two
    parts. It is `OUTLIER` units or so that hold a large number for a special token and write it to
    one channel, so their rows of the second matrix are large, too.

    Args:
        part: Is changed.
        peaks: Of the products' inputs.
        smallest: Numbers of the smallest matrix to change.

    Returns:
        A line on each block from which units were taken.
    """
    found = products(part, smallest)
    inner_of = _inner_products(part, found)
    matrices, report = weights(part), []
    changed: dict[str, Floats32] = {}
    beside: dict[str, list[NodeProto]] = {}
    for outer in (product for product in found if product.maker == "Gelu"):
        peak_F, inner = peaks[outer.input], inner_of[outer.input]
        few = np.flatnonzero(peak_F > OUTLIER * np.quantile(peak_F, 0.99))
        if not len(few):
            continue
        report.append(f"{outer.name}: {len(few)} of {len(peak_F)} units beside the others")
        own = f"{outer.name}/few"
        first, bias, second = (matrices[n].copy() for n in (inner.weight, inner.bias, outer.weight))
        changed |= {f"{own}/in": first[:, few], f"{own}/bias": bias[few], f"{own}/out": second[few]}
        # Equal constants are one tensor in an export; a bias that layers share is 0 everywhere.
        first[:, few], bias[few], second[few] = 0, 0, 0
        changed |= {inner.weight: first, inner.bias: bias, outer.weight: second}
        beside[outer.output] = _few(own, inner.input, outer.output)
    nodes: list[NodeProto] = []
    for old in part.graph.node:
        added = beside.get(old.output[0], [])
        if added:
            old.output[0] = added[-1].input[0]
        nodes += [old, *added]
    set_weights(part, changed)
    set_nodes(part, nodes)
    return report


def _inner_products(part: ModelProto, found: list[Product]) -> dict[str, Product]:
    """By what GELU makes: the product that it is applied to."""
    outputs = {product.output: product for product in found}
    return {n.output[0]: outputs[n.input[0]] for n in part.graph.node if n.op_type == "Gelu"}


def _few(own: str, hidden: str, output: str) -> list[NodeProto]:
    """The nodes of the few units, and the sum of both parts."""
    return [
        node("MatMul", [hidden, f"{own}/in"], [f"{own}/product"]),
        node("Add", [f"{own}/product", f"{own}/bias"], [f"{own}/sum"]),
        node("Gelu", [f"{own}/sum"], [f"{own}/units"]),
        node("MatMul", [f"{own}/units", f"{own}/out"], [f"{own}/answer"]),
        node("Add", [f"{own}/most", f"{own}/answer"], [output]),
    ]
