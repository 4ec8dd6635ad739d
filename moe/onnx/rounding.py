"""Which matrices stand to be rounded to 8 bits: measured on texts, decided by one rule.

Outliers are moved out of the way first (`moe.onnx.outliers`). If all products rounded together
then move the logits of gate and experts by no more than `LIMITS`, all of them are. Else each is
rounded alone and measured. Such errors add up about like lengths at right angles, so what to keep
in 32 bits is found without trying: from the worst on, until the root of the sum of the squares of
the others is within the limits.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from onnx import ModelProto
from onnxruntime import InferenceSession

from moe.data.windows import PaddedWindows
from moe.onnx.graph import Parts
from moe.onnx.int8 import round_products, round_words
from moe.onnx.outliers import level, take_out
from moe.onnx.products import Feeds, Floats32, peaks, products, session

# Root mean square error of logits, in standard deviations of the logits: of `configs/local.yaml`
# 0.020 of the gate sent 0.4 % of the texts elsewhere, and 0.042 sent 2 %.
LIMITS = {"gate": 0.025, "expert": 0.05}


@dataclass(frozen=True, kw_only=True)
class Rounded:
    """Parts in 8 bits, and what was done for them.

    Attributes:
        parts: The parts.
        kept: Names of the products that stayed in 32 bits, the worst first.
        beside: A line on each feed-forward block with units beside the others.
        error: By output: root mean square error of its logits on the samples, in standard
            deviations of the logits.
    """

    parts: Parts
    kept: tuple[str, ...]
    beside: tuple[str, ...]
    error: dict[str, float]

    def report(self) -> dict[str, Any]:
        """All but the parts, for `config.json`."""
        return {"kept": list(self.kept), "beside": list(self.beside), "error": self.error}


def quantise(parts: Parts, samples: Sequence[PaddedWindows], threads: int = 1) -> Rounded:
    """The parts with 8-bit weights; inputs of a matrix are rounded as they come.

    Args:
        parts: In 32 bits; they are not changed.
        samples: Rows of texts to look for outliers with, and to measure errors on.
        threads: To measure with.
    """
    smallest = parts.layer_dim**2
    ruler = Ruler(parts, samples, threads)
    parts, beside = _without_outliers(parts, ruler, smallest)
    kept: tuple[str, ...] = ()
    rounded = _round(parts, smallest, kept)
    error = ruler.error(rounded)
    if _share(error) > 1:
        kept = choose_kept(_errors_alone(parts, ruler, smallest))
        rounded = _round(parts, smallest, kept)
        error = ruler.error(rounded)
    return Rounded(parts=rounded, kept=kept, beside=beside, error=error)


@dataclass(frozen=True, kw_only=True)
class Alone:
    """What rounding one product does.

    Attributes:
        error: By output: see `Rounded`.
        numbers: Of its matrix: what it costs to keep it.
    """

    error: dict[str, float]
    numbers: int

    @property
    def share(self) -> float:
        """The largest share of a limit that it uses up."""
        return _share(self.error)


def choose_kept(alone: dict[str, Alone]) -> tuple[str, ...]:
    """The products to keep in 32 bits: first those with the largest squared error per number.

    Args:
        alone: By product.
    """
    order = sorted(alone, key=lambda name: (-(alone[name].share ** 2) / alone[name].numbers, name))
    for count in range(len(order)):
        if _share(_sum([alone[name].error for name in order[count:]])) <= 1:
            return tuple(order[:count])
    return tuple(order)


def _sum(errors: Sequence[dict[str, float]]) -> dict[str, float]:
    """Independent errors together."""
    outputs = dict.fromkeys(output for error in errors for output in error)
    return {o: float(np.sqrt(sum(e.get(o, 0.0) ** 2 for e in errors))) for o in outputs}


def _share(error: dict[str, float]) -> float:
    return max(e / LIMITS["gate" if name == "gate" else "expert"] for name, e in error.items())


class Ruler:
    """Measures how far rounded parts are from the original ones.

    Args:
        parts: The original.
        samples: Rows of texts.
        threads: To compute with.
    """

    def __init__(self, parts: Parts, samples: Sequence[PaddedWindows], threads: int = 1) -> None:
        self.parts, self._threads = parts, threads
        self._masks = [{"attention": s.attention_mask, "context": s.context_mask} for s in samples]
        self._ids = [sample.input_ids for sample in samples]
        self._sessions = {name: session(part, threads) for name, part in named_parts(parts).items()}
        self.states = self._encode(self._sessions["encoder"])
        self._reference = self._logits(self.states, {})

    def feeds(self, name: str) -> list[Feeds]:
        """What a part is fed with, by micro-batch, if all others are in 32 bits."""
        return self._feeds(name, self.states)

    def error(self, rounded: Parts) -> dict[str, float]:
        """By output: see `Rounded`. Parts that are the original ones are not computed again."""
        mine = named_parts(self.parts)
        changed = {
            name: session(part, self._threads)
            for name, part in named_parts(rounded).items()
            if part is not mine[name]
        }
        states = self._encode(changed["encoder"]) if "encoder" in changed else self.states
        outputs = None if "encoder" in changed else set(changed)
        logits = self._logits(states, changed, outputs)
        return {name: apart(self._reference[name], values) for name, values in logits.items()}

    def _feeds(self, name: str, states: Sequence[Floats32]) -> list[Feeds]:
        if name == "encoder":
            return [
                {"input_ids": ids, "attention": mask["attention"]}
                for ids, mask in zip(self._ids, self._masks, strict=True)
            ]
        return [{"hidden": h, **mask} for h, mask in zip(states, self._masks, strict=True)]

    def _encode(self, encoder: InferenceSession) -> list[Floats32]:
        return [_first(encoder, feeds) for feeds in self._feeds("encoder", [])]

    def _logits(
        self,
        states: Sequence[Floats32],
        changed: dict[str, InferenceSession],
        outputs: Collection[str] | None = None,
    ) -> dict[str, list[Floats32]]:
        """By output its logits for every micro-batch; `outputs` are those to compute, None all."""
        return {
            name: [_first(changed.get(name, own), feeds) for feeds in self._feeds(name, states)]
            for name, own in self._sessions.items()
            if name != "encoder" and (outputs is None or name in outputs)
        }


def named_parts(parts: Parts) -> dict[str, ModelProto]:
    """`encoder`, `gate`, and the experts by name."""
    experts = {expert.name: expert.model for expert in parts.experts}
    return {"encoder": parts.encoder, "gate": parts.gate, **experts}


def replace_parts(parts: Parts, changed: Mapping[str, ModelProto]) -> Parts:
    """The parts with some of `named_parts` replaced."""
    new = {**named_parts(parts), **changed}
    experts = tuple(replace(expert, model=new[expert.name]) for expert in parts.experts)
    return replace(parts, encoder=new["encoder"], gate=new["gate"], experts=experts)


def apart(exact: Sequence[Floats32], rounded: Sequence[Floats32]) -> float:
    """Root mean square difference of finite logits, in standard deviations of the exact ones."""
    ours, theirs = (np.concatenate([z.ravel() for z in values]) for values in (exact, rounded))
    inside = ours > -1e8  # a span's logits outside the passage are -1e9
    difference = np.sqrt(np.mean((ours[inside] - theirs[inside]) ** 2))
    return float(difference / ours[inside].std())


def _first(runner: InferenceSession, feeds: Feeds) -> Floats32:
    known = {value.name for value in runner.get_inputs()}
    first: Floats32 = runner.run(None, {k: v for k, v in feeds.items() if k in known})[0]
    return first


def _roundable(parts: Parts) -> dict[str, ModelProto]:
    return {name: part for name, part in named_parts(parts).items() if name != "gate"}


def _without_outliers(parts: Parts, ruler: Ruler, smallest: int) -> tuple[Parts, tuple[str, ...]]:
    """The same function with its outliers out of the way, and a line on each place."""
    changed, report = {}, []
    for name, part in _roundable(parts).items():
        own = copy.deepcopy(part)
        largest = peaks(own, [p.input for p in products(own, smallest)], ruler.feeds(name))
        report += [f"{name}/{line}" for line in take_out(own, largest, smallest)]
        level(own, largest, smallest)
        changed[name] = own
    return replace_parts(parts, changed), tuple(report)


def _errors_alone(parts: Parts, ruler: Ruler, smallest: int) -> dict[str, Alone]:
    """By product, named PART/LAYER: what rounding it alone does."""
    found = {}
    for name, part in _roundable(parts).items():
        mine = products(part, smallest)
        sizes = {weight.name: int(np.prod(weight.dims)) for weight in part.graph.initializer}
        for product in mine:
            own = copy.deepcopy(part)
            round_products(own, smallest, {p.name for p in mine} - {product.name})
            error = ruler.error(replace_parts(ruler.parts, {name: own}))
            found[f"{name}/{product.name}"] = Alone(error=error, numbers=sizes[product.weight])
    return found


def _round(parts: Parts, smallest: int, kept: Collection[str]) -> Parts:
    changed = {}
    for name, part in _roundable(parts).items():
        own = copy.deepcopy(part)
        mine = {p.removeprefix(f"{name}/") for p in kept if p.startswith(f"{name}/")}
        round_products(own, smallest, mine)
        if name == "encoder":
            round_words(own)
        changed[name] = own
    return replace_parts(parts, changed)
