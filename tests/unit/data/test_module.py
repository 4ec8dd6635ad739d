"""Steps and requests from tables; the order of positions, also after an interruption."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from moe.config import DataConfig, MixingConfig
from moe.data.formats import Answer, Example
from moe.data.module import (
    MixtureData,
    PositionSampler,
    RequestDataset,
    Step,
    StepDataset,
    build_planner,
)
from moe.data.prepare import Tables
from moe.data.routing import RoutingRow, RoutingTable
from moe.data.tables import build_table
from moe.data.windows import TextTokenizer
from moe.types import Batch, TaskSpec

MOOD = TaskSpec(name="mood", type="classifier", num_experts=1, labels=("bad", "good"))
QA = TaskSpec(name="qa", type="span", num_experts=1)
CONTEXT = "an abbot led the monks"


def positions(done: int, epochs: int) -> list[list[int]]:
    """Of 8 steps in epochs of 3, begun after `done` of them."""
    drawn: list[list[int]] = []
    sampler = PositionSampler(3, 8, lambda: done + sum(map(len, drawn)))
    for _ in range(epochs):
        drawn.append(list(sampler))
    return drawn


def test_every_epoch_goes_on_where_the_last_one_ended() -> None:
    assert positions(0, 3) == [[0, 1, 2], [3, 4, 5], [6, 7]]


@pytest.mark.parametrize(("done", "expected"), [
    (4, [[4, 5], [6, 7]]), (3, [[3, 4, 5], [6, 7]]), (6, [[6, 7], []]), (8, [[], []])])
def test_an_interrupted_epoch_starts_behind_what_was_done(
    done: int, expected: list[list[int]]
) -> None:
    assert positions(done, 2) == expected


# --- routing rows -----------------------------------------------------------------------------


@pytest.fixture
def tables(tmp_path: Path, word_tokenizer: TextTokenizer) -> Tables:
    """Texts begin with good or bad (mood), who (qa) or film (routing rows)."""
    mood = [Example(text=f"{word} {'very ' * i}", label=word)
            for word in ("good", "bad") for i in range(4)]
    qa = [Example(text="who led" + " monks" * i, context=CONTEXT,
                  answers=(Answer(text="abbot", start=3),)) for i in range(4)]
    rows = [RoutingRow(text="film was good", context=None, tasks=("mood",)),
            RoutingRow(text="film was bad who led", context=CONTEXT, tasks=("mood", "qa"))]
    held = [RoutingRow(text="film led film", context=None, tasks=()), *rows]
    mood_table, qa_table = (
        build_table(examples, spec, task, word_tokenizer, tmp_path / "cache")
        for task, (examples, spec) in enumerate(((mood, MOOD), (qa, QA)))
    )
    return Tables(
        specs=(MOOD, QA), train=(mood_table, qa_table), validation=(mood_table, qa_table),
        routing_train=RoutingTable(rows, ("mood", "qa"), word_tokenizer),
        routing_validation=RoutingTable(held, ("mood", "qa"), word_tokenizer),
        exemplars={"mood": mood_table, "qa": qa_table},
    )


def config(**changes: Any) -> DataConfig:
    values = {"batch_size": 4, "max_length": 32, "stride": 4, "max_tokens": 64, "max_padding": 0.9,
              "attach_context": 0.0, "noise": 0.0, "mixing": MixingConfig(kind="uniform"),
              "routing": "rows.jsonl", "routing_share": 0.5}
    return DataConfig(**{**values, **changes})


def words(tokenizer: TextTokenizer, batch: Batch, row: int) -> list[str]:
    ids = batch.input_ids[row, batch.attention_mask[row]].tolist()
    return [tokenizer._tokenizer.id_to_token(number) for number in ids]


def test_a_step_holds_routing_rows(tables: Tables, word_tokenizer: TextTokenizer) -> None:
    planner = build_planner(tables, config(), total_steps=6, seed=0)
    dataset = StepDataset(tables, planner, word_tokenizer)
    met = []
    for position in range(6):
        step = dataset[position]
        tasks = torch.cat([batch.task_ids for batch in step.micro_batches]).tolist()
        assert sorted(tasks) == [-1, -1, 0, 0, 1, 1]  # 4 rows, and half as many
        for batch in step.micro_batches:
            assert batch.step_rows_T.tolist() == [2, 2]
            for row in range(len(batch)):
                first = words(word_tokenizer, batch, row)[1]
                target, task = batch.target_BT[row].tolist(), batch.task_ids[row].item()
                assert task == {"good": 0, "bad": 0, "who": 1, "film": -1}[first]
                if task >= 0:
                    assert target == [task == 0, task == 1]
                    continue
                # One of the two rows wants mood; the other, with the passage, both.
                has_context = bool(batch.context_mask[row].any())
                assert target == ([0.5, 0.5] if has_context else [1.0, 0.0])
                assert (batch.labels[row].item(), batch.spans[row].tolist()) == (-1, [0, 0])
                met.append(words(word_tokenizer, batch, row))
    plain = ["[CLS]", "film", "was", "good", "[SEP]"]
    both = ["[CLS]", "film", "was", "bad", "who", "led", "[SEP]", *CONTEXT.split(), "[SEP]"]
    assert sorted(met) == [both] * 6 + [plain] * 6


def test_a_step_holds_the_answers_of_routing_rows(
    tables: Tables, word_tokenizer: TextTokenizer
) -> None:
    rows = [RoutingRow(text="film was bad who led", context=CONTEXT, tasks=("mood", "qa"),
                       answers={"mood": "bad", "answer": "abbot"}),
            RoutingRow(text="film was good", context=None, tasks=("mood",))]
    known = replace(tables, routing_train=RoutingTable(rows, ("mood", "qa"), word_tokenizer,
                                                       tables.specs))
    planner = build_planner(known, config(max_tokens=256), total_steps=2, seed=0)
    dataset = StepDataset(known, planner, word_tokenizer)
    met = []
    for batch in (*dataset[0].micro_batches, *dataset[1].micro_batches):
        assert batch.step_rows_T.tolist() == [2, 2]  # as without answers
        for row in (batch.task_ids < 0).nonzero().flatten().tolist():
            answered = [] if batch.answered_BT is None else batch.answered_BT[row].tolist()
            met.append((any(answered), batch.labels[row].item(), batch.spans[row].tolist()))
        own = batch.task_ids >= 0
        assert batch.answered_BT is None or not batch.answered_BT[own].any()
    # [CLS] film was bad who led [SEP] An abbot: the ninth token.
    with_answers = (True, MOOD.labels.index("bad"), [8, 8])
    assert sorted(met) == [(False, -1, [0, 0])] * 2 + [with_answers] * 2


def test_a_step_without_a_share_of_routing_rows(
    tables: Tables, word_tokenizer: TextTokenizer
) -> None:
    planner = build_planner(tables, config(routing_share=0.0), total_steps=2, seed=0)
    step = StepDataset(tables, planner, word_tokenizer)[0]
    tasks = torch.cat([batch.task_ids for batch in step.micro_batches]).tolist()
    assert sorted(tasks) == [0, 0, 1, 1]


def test_requests_of_routing_rows(tables: Tables, word_tokenizer: TextTokenizer) -> None:
    assert tables.routing_validation is not None
    dataset = RequestDataset(tables.routing_validation, word_tokenizer, config(max_length=16))
    requests = [dataset[i] for i in range(len(dataset))]
    assert sorted(row for r in requests for row in r.rows) == [0, 1, 2]
    for batch in (r.batch for r in requests):
        assert set(batch.task_ids.tolist()) == {-1}
        assert batch.target_BT is None and batch.step_rows_T is None


def test_validation_asks_tasks_then_routing_rows_then_exemplars(
    tables: Tables, word_tokenizer: TextTokenizer
) -> None:
    planner = build_planner(tables, config(), total_steps=2, seed=0)
    data = MixtureData(tables=tables, planner=planner, tokenizer=word_tokenizer,
                       config=config(), steps_per_epoch=2)
    loaders = data.val_dataloader()
    expected = (*tables.validation, tables.routing_validation, *tables.exemplars.values())
    for loader, table in zip(loaders, expected, strict=True):
        assert loader.dataset.table is table
    rows = [sorted(row for r in loader for row in r.rows) for loader in loaders]
    assert rows == [list(range(n)) for n in (8, 4, 3, 8, 4)]


# --- tags -------------------------------------------------------------------------------------


def test_tags_follow_their_words_through_noise_and_passages(
    tmp_path: Path, word_tokenizer: TextTokenizer
) -> None:
    """"good" is B-x wherever it stands; noise and foreign passages are as frequent as can be."""
    slots = TaskSpec(name="slots", type="tagger", num_experts=1, labels=("O", "B-x", "I-x"))
    texts = ["the very good film was bad", "good good monks", "an abbot was very good"]
    rows = [Example(text=t, tags=tuple("B-x" if w == "good" else "O" for w in t.split()))
            for t in texts]
    passage = f"{CONTEXT} and {CONTEXT} and {CONTEXT}"  # fewer than 8 tokens are not attached
    qa = [Example(text="who led", context=passage, answers=(Answer(text="abbot", start=3),))]
    tables = [build_table(examples, spec, task, word_tokenizer, tmp_path / "cache")
              for task, (examples, spec) in enumerate(((rows, slots), (qa, QA)))]
    made = Tables(specs=(slots, QA), train=tuple(tables), validation=tuple(tables))
    crowded = config(noise=1.0, attach_context=1.0, routing=None, max_length=48)
    planner = build_planner(made, crowded, total_steps=6, seed=0)
    dataset = StepDataset(made, planner, word_tokenizer)
    noised = contexts = 0
    for batch in (b for step in range(6) for b in dataset[step].micro_batches):
        for row in (batch.task_ids == 0).nonzero().flatten().tolist():
            said = words(word_tokenizer, batch, row)
            text = said[1 : said.index("[SEP]")]
            tags = batch.tags[row].tolist()
            starts = [i for i, token in enumerate(text, 1) if not token.startswith("##")]
            assert [i for i, tag in enumerate(tags) if tag >= 0] == starts
            whole = "".join(t.removeprefix("##") if t.startswith("##") else f" {t}" for t in text)
            marked = [tags[i] == 1 for i in starts]
            plain = next(t for t in texts if len(t.split()) == len(starts))
            assert marked == [word == "good" for word in plain.split()]
            noised += whole.split() != plain.split()
            contexts += bool(batch.context_mask[row].any())
    assert noised > 0 and contexts > 0


def test_tags_are_cut_with_their_text(tmp_path: Path, word_tokenizer: TextTokenizer) -> None:
    slots = TaskSpec(name="slots", type="tagger", num_experts=1, labels=("O", "B-x", "I-x"))
    rows = [Example(text=" ".join(["very", "good"] * 10), tags=("O", "B-x") * 10)]
    table = build_table(rows, slots, 0, word_tokenizer, tmp_path / "cache")
    made = Tables(specs=(slots,), train=(table,), validation=(table,))
    planner = build_planner(made, config(max_length=16, routing=None), total_steps=1, seed=0)
    batch = StepDataset(made, planner, word_tokenizer)[0].micro_batches[0]
    assert batch.tags[0].tolist() == [-1, *[0, 1] * 7, -1]  # 16 - 2 words


# --- several ranks ----------------------------------------------------------------------------


def ids(step: Step) -> list[list[int]]:
    return sorted(batch.input_ids[row, batch.attention_mask[row]].tolist()
                  for batch in step.micro_batches for row in range(len(batch)))


def test_two_ranks_build_the_rows_of_one(tables: Tables, word_tokenizer: TextTokenizer) -> None:
    planner = build_planner(tables, config(), total_steps=6, seed=0)
    whole = StepDataset(tables, planner, word_tokenizer)
    halves = [StepDataset(tables, planner, word_tokenizer, rank, 2) for rank in (0, 1)]
    for position in range(6):
        first, second = (half[position] for half in halves)
        assert sorted(ids(first) + ids(second)) == ids(whole[position])
        assert first.rounds == second.rounds
        for batch in first.micro_batches + second.micro_batches:
            assert batch.step_rows_T.tolist() == [2, 2]  # of both


def test_a_rank_with_fewer_groups_has_empty_ones_first(
    tables: Tables, word_tokenizer: TextTokenizer
) -> None:
    planner = build_planner(tables, config(), total_steps=1, seed=0)
    step = StepDataset(tables, planner, word_tokenizer)[0]
    groups = replace(step, rounds=1).together(10_000)
    assert len(groups) == 1 and groups[0] == list(step.micro_batches)
    # The last one is never empty: in its backward pass the ranks exchange gradients.
    assert replace(step, rounds=3).together(10_000) == [[], [], groups[0]]


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
def test_every_row_is_asked_of_one_rank(
    tables: Tables, word_tokenizer: TextTokenizer, size: int, ranks: int
) -> None:
    table = replace(tables.validation[0], rows=tables.validation[0].rows.select(range(size)))
    shared = [RequestDataset(table, word_tokenizer, config(), rank, ranks) for rank in range(ranks)]
    rows = [row for part in shared for i in range(len(part)) for row in part[i].rows]
    assert sorted(rows) == list(range(size))
    assert len(shared[0]) >= 1 and (size >= ranks) == all(len(part) for part in shared)
