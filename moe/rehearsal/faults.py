"""Damages of a trained model, each of which the evaluation gate should refuse.

They suit a model with a two-class classifier, a span task and a classifier that rejects. What
happens in production by a mix-up: an old file, a wrong order, a number that was not taken along.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from moe.checkpoint import Bundle, load_bundle, save_bundle
from moe.data.windows import TextTokenizer
from moe.types import InputError, TaskSpec

Fault = Callable[[Bundle], Bundle | None]  # changes the model in place, or returns another bundle
Role = Literal["plain", "span", "rejecting"]
ROLES: tuple[Role, ...] = ("plain", "span", "rejecting")


def task_of(bundle: Bundle, role: Role) -> TaskSpec:
    """The first two-class classifier, span task, or classifier that rejects texts.

    Raises:
        InputError: The model has none.
    """
    fits: dict[Role, Callable[[TaskSpec], bool]] = {
        "plain": lambda t: t.type == "classifier" and not t.out_of_scope and len(t.labels) == 2,
        "span": lambda t: t.type == "span",
        "rejecting": lambda t: t.type == "classifier" and bool(t.out_of_scope),
    }
    found = next((task for task in bundle.model.tasks if fits[role](task)), None)
    if found is None:
        raise InputError(
            "these faults need a two-class classifier, a span task and a classifier with "
            f"out_of_scope; the model has {[(t.name, t.type) for t in bundle.model.tasks]}"
        )
    return found


def _parameters(bundle: Bundle, role: Role) -> Iterator[tuple[str, torch.nn.Parameter]]:
    for name in task_of(bundle, role).expert_names:
        yield from bundle.model.experts[name].named_parameters()


def _heads(bundle: Bundle, role: Role) -> Iterator[torch.Tensor]:
    for name, parameter in _parameters(bundle, role):
        if "trunk" not in name:
            yield parameter


def labels_swapped(bundle: Bundle) -> None:
    """Class 0 has the name of class 1."""
    chosen = task_of(bundle, "plain")
    bundle.model.tasks = tuple(
        replace(t, labels=t.labels[::-1]) if t.name == chosen.name else t
        for t in bundle.model.tasks
    )


def rows_swapped(role: Role) -> Fault:
    """The two outputs of each head change places, where no name shows it."""

    def damage(bundle: Bundle) -> None:
        for parameter in _heads(bundle, role):
            if len(parameter) == 2:
                parameter.copy_(parameter.flip(0))

    return damage


def zeroed(role: Role) -> Fault:
    """Every expert of a task is zeros."""

    def damage(bundle: Bundle) -> None:
        for _, parameter in _parameters(bundle, role):
            parameter.zero_()

    return damage


def head_of_another_training(bundle: Bundle) -> None:
    """Numbers of the same size, but others."""
    generator = torch.Generator().manual_seed(0)
    for parameter in _heads(bundle, "rejecting"):
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * parameter.std())


def heads_rounded(bundle: Bundle) -> None:
    """To two steps; what rounds to four may be as good as before."""
    for role in ROLES:
        for parameter in _heads(bundle, role):
            step = parameter.abs().max()
            parameter.copy_((parameter / step).floor() * step)


def not_a_number(bundle: Bundle) -> None:
    """One head holds NaN."""
    next(_heads(bundle, "plain")).fill_(float("nan"))


def prototypes_rolled(bundle: Bundle) -> None:
    """The rows of the gate belong to other experts."""
    prototypes: Any = bundle.model.gate.scores.prototypes
    prototypes.copy_(prototypes.roll(2, 0))


def prototypes_equal(bundle: Bundle) -> None:
    """The gate sees no difference."""
    prototypes: Any = bundle.model.gate.scores.prototypes
    prototypes.copy_(prototypes[:1].clone())


def words_rolled(bundle: Bundle) -> None:
    """Embeddings of a vocabulary in another order."""
    table: Any = bundle.model.encoder.embeddings.word_embeddings.weight
    table.copy_(table.roll(7, 0))


def positions_reversed(bundle: Bundle) -> None:
    """The last position's embedding stands first."""
    table: Any = bundle.model.encoder.embeddings.position_embeddings.weight
    table.copy_(table.flip(0))


def last_layer_lost(bundle: Bundle) -> None:
    """The last layer of the encoder is zeros."""
    layers: Any = bundle.model.encoder.transformer.layer
    for parameter in layers[-1].parameters():
        parameter.zero_()


def cased_tokenizer(bundle: Bundle) -> Bundle:
    """A tokenizer that keeps case."""
    text = json.loads(bundle.tokenizer.to_json())
    text["normalizer"]["lowercase"] = False
    return replace(bundle, tokenizer=TextTokenizer.from_json(json.dumps(text)))


def rejects_from(threshold: float | None) -> Fault:
    """Another out-of-scope threshold, or none."""

    def damage(bundle: Bundle) -> Bundle:
        kept = {} if threshold is None else {task_of(bundle, "rejecting").name: threshold}
        return replace(bundle, calibration=replace(bundle.calibration, out_of_scope=kept))

    return damage


def nothing_found(bundle: Bundle) -> Bundle:
    """No question has an answer."""
    none = {task_of(bundle, "span").name: -9.0}
    return replace(bundle, calibration=replace(bundle.calibration, no_answer=none))


def too_warm(bundle: Bundle) -> Bundle:
    """Temperatures of a hundred."""
    roles: tuple[Role, ...] = ("plain", "rejecting")
    hot = {name: 100.0 for role in roles for name in task_of(bundle, role).expert_names}
    return replace(bundle, calibration=replace(bundle.calibration, temperature=hot))


FAULTS: dict[str, Fault] = {
    "labels swapped in one task": labels_swapped,
    "logits swapped in one task": rows_swapped("plain"),
    "rows of the gate permuted": prototypes_rolled,
    "experts of the two-class task zeroed": zeroed("plain"),
    "experts of the span task zeroed": zeroed("span"),
    "experts of the rejecting task zeroed": zeroed("rejecting"),
    "head of the rejecting task is another's": head_of_another_training,
    "nothing is out of scope": rejects_from(99.0),
    "everything is out of scope": rejects_from(-99.0),
    "the out-of-scope threshold is gone": rejects_from(None),
    # From here on written after the rules of the first suite were frozen.
    "a tokenizer that keeps case": cased_tokenizer,
    "words of another vocabulary": words_rolled,
    "a parameter is not a number": not_a_number,
    "the last layer of the encoder lost": last_layer_lost,
    "positions in another order": positions_reversed,
    "heads rounded to two steps": heads_rounded,
    "start and end of a span swapped": rows_swapped("span"),
    "a gate that sees no difference": prototypes_equal,
    "no question has an answer": nothing_found,
    "temperatures of a hundred": too_warm,
}


def damaged(ckpt: str | Path, fault: Fault | None, folder: Path) -> Path:
    """Writes a damaged copy, or with None an undamaged one, as `save_pretrained` does."""
    bundle = load_bundle(ckpt)
    if fault is not None:
        with torch.no_grad():
            bundle = fault(bundle) or bundle
    save_bundle(bundle, folder)
    return folder
