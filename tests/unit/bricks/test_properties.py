"""Whatever is grown, updated, merged and removed in whatever order: the rest stays bit for bit."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from moe.bricks.grow import grow
from moe.bricks.merge import merge
from moe.bricks.proof import digests
from moe.bricks.remove import remove
from moe.bricks.update import update
from moe.build import build_model
from moe.calibration import Calibration
from moe.checkpoint import Bundle, load_bundle, save_checkpoint
from moe.config import ExperimentConfig, TaskConfig
from moe.data.windows import TextTokenizer
from moe.model_config import ExpertConfig, GateConfig, ModelConfig
from moe.types import Batch, TaskSpec, expert_specs

from .conftest import FEW, OLD, texts, wide


@torch.no_grad()
def oracle_logits(bundle: Bundle, batch: Batch) -> dict[str, Tensor]:
    """What every expert says of every row, and the gate's logits, by name of the expert."""
    model = bundle.model.eval()
    matrix_TE = model.task_experts_TE
    model.top_k = matrix_TE.shape[1]
    output = model(batch, tasks_BT=torch.ones(len(batch), len(model.tasks), dtype=torch.bool))
    said = {model.expert_names[answer.expert]: answer.logits for answer in output.experts}
    gate = {f"gate {name}": output.routing.logits_BE[:, column]
            for column, name in enumerate(model.expert_names)}
    return {**said, **gate}


def random_bundle(seed: int, tokenizer: TextTokenizer, encoder: Any, cache: Path) -> Bundle:
    draw = random.Random(seed)
    kinds = [("sentiment", "classifier", ("bad", "good")), ("qa", "span", ()),
             ("intent", "classifier", ("pay", "ask", "go"))]
    tasks = [TaskSpec(name=name, type=kind, num_experts=draw.randint(1, 3), labels=labels,  # type: ignore[arg-type]
                      out_of_scope=draw.choice([None, "oos"]) if labels else None)
             for name, kind, labels in kinds]
    model_config = ModelConfig(
        pooling=draw.choice(["first", "mean", "text", "both"]),  # type: ignore[arg-type]
        gate=GateConfig(kind=draw.choice(["cosine", "linear"]), width=draw.choice([8, 16]),  # type: ignore[arg-type]
                        hidden=draw.choice([0, 12])),
        expert=ExpertConfig(trunk=draw.choice(["none", "ffn", "transformer"]),  # type: ignore[arg-type]
                            pooling=draw.choice(["first", "mean"])),  # type: ignore[arg-type]
    )
    shape = draw.choice([{"dim": 32, "n_heads": 4}, {"dim": 16, "n_heads": 2}])
    built = encoder(seed, vocab_size=120, n_layers=draw.choice([1, 2, 3]), **shape)
    torch.manual_seed(seed)
    model = build_model(model_config, tasks, built).eval()
    model.gate.selection_bias.normal_()
    config = ExperimentConfig(tasks={t.name: TaskConfig(type=t.type, train="gone.csv")
                                     for t in tasks}, model=model_config)
    config = replace(config, data=replace(config.data, max_length=32, stride=4, max_tokens=512,
                                          cache=str(cache)))
    bundle = Bundle(model=model, tokenizer=tokenizer, config=config, precision="32-true",
                    calibration=replace(Calibration(), temperature={"qa-0": 1.5}), metrics={})
    return replace(bundle, memory={n: wide(bundle, texts(w, 20)) for n, w in OLD.items()})


def step(bundle: Bundle, draw: random.Random, rows: Path) -> tuple[Bundle, set[str], str]:
    """One operation, the experts that it may change or take away, and its name."""
    tasks = list(bundle.model.tasks)
    config = TaskConfig(type="classifier", train=str(rows))
    new = [t for t in tasks if t.name.startswith("topic")]
    shared = [t for t in tasks if t.num_experts > 1]
    many = [e for t in tasks for e in t.expert_names]
    trained = [s.name for s in expert_specs(tasks) if s.rows]
    free = [e for e in many if len(trained) > 1 or e not in trained]  # one must be left
    options = ["grow"] + ["update", "also"] * bool(new) + ["merge"] * bool(shared)
    kind = draw.choice(options + ["remove"] * bool(free))
    if kind == "grow":
        name = next(n for i in range(9) if (n := f"topic{i}") not in [t.name for t in tasks])
        return grow(bundle, task=name, config=config, fit=FEW).bundle, set(), kind
    if kind == "also":
        task = draw.choice(new).name
        return grow(bundle, task=task, config=config, also=True, fit=FEW).bundle, set(), kind
    if kind == "update":
        expert = draw.choice(draw.choice(new).expert_names)
        return update(bundle, expert=expert, config=config, fit=FEW).bundle, {expert}, kind
    if kind == "merge":
        pair = draw.sample(draw.choice(shared).expert_names, 2)
        method = draw.choice(["average", "task-arithmetic", "ties"])
        made = merge(bundle, experts=(pair[0], pair[1]), method=method)  # type: ignore[arg-type]
        return made.bundle, set(pair), kind
    expert = draw.choice(free)
    return remove(bundle, expert=expert).bundle, {expert}, kind


SLOW = [pytest.param(seed, marks=pytest.mark.slow) for seed in range(5, 20)]


@pytest.mark.parametrize("seed", [*range(5), *SLOW])
def test_what_is_not_touched_stays(
    seed: int, word_tokenizer: TextTokenizer, tiny_encoder: Any, tmp_path: Path, new_rows: Path,
    hand_batch: Batch,
) -> None:
    draw = random.Random(seed)
    bundle = random_bundle(seed, word_tokenizer, tiny_encoder, tmp_path)
    start, said = digests(bundle), oracle_logits(bundle, hand_batch)
    touched: set[str] = set()
    for _ in range(5):
        before = oracle_logits(bundle, hand_batch)
        bundle, changed, kind = step(bundle, draw, new_rows)
        touched |= changed
        now = oracle_logits(bundle, hand_batch)
        assert set(now) >= {n for n in before if n.removeprefix("gate ") not in changed}
        for name in set(now) & set(before):
            expert = name.removeprefix("gate ")
            is_brick = expert.startswith("topic")  # its odds are those against who is still there
            if expert in changed or (name.startswith("gate") and is_brick and kind != "grow"):
                continue
            assert torch.equal(now[name], before[name]), (kind, name)
    after = digests(bundle)
    kept = [name for name in start if name in after and not _of(name, touched)]
    assert len(kept) >= 20
    assert all(after[name] == start[name] for name in kept)
    assert len(bundle.history) == 5
    save_checkpoint(bundle, tmp_path / "changed.ckpt")
    loaded = load_bundle(tmp_path / "changed.ckpt")
    assert digests(loaded) == after
    again = oracle_logits(loaded, hand_batch)
    last = oracle_logits(bundle, hand_batch)
    assert all(torch.equal(again[name], last[name]) for name in last)
    for task in [t for t in bundle.model.tasks if t.name.startswith("topic")]:
        bundle = remove(bundle, task=task.name).bundle
    rest = oracle_logits(bundle, hand_batch)
    for name in rest:
        if name.removeprefix("gate ") not in touched:
            assert torch.equal(rest[name], said[name]), name


def _of(name: str, experts: set[str]) -> bool:
    return any(f".{expert}" in name or name.endswith(expert) for expert in experts) or (
        name.startswith(("memory.", "calibration.")))
