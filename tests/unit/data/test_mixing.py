"""What a training step holds: shares, order, attached passages, micro-batches."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from moe.config import MixingConfig
from moe.data.mixing import (
    MAX_PASSAGE,
    MIN_PASSAGE,
    WINDOW_STEPS,
    PlannedRow,
    StepPlanner,
    neighbours,
    rows_per_step,
    task_shares,
)
from moe.data.tables import TrainingItems
from moe.types import InputError

NAMES = ("intent", "qa")


def items_of(text: Any, context: Any = 0) -> TrainingItems:
    """Items with these lengths; with noise a text is two tokens longer."""
    text = np.array(text, dtype=np.int64)
    context = np.broadcast_to(np.array(context, dtype=np.int64), text.shape)
    rows = np.arange(len(text))
    return TrainingItems(row=rows, first=0 * rows, text=text, noised=text + 2, context=context)


def planner(items: Any = None, **changes: Any) -> StepPlanner:
    """100 intent rows and 40 questions on passages of 30 to 69 tokens; half of each."""
    if items is None:
        random = np.random.default_rng(0)
        items = [items_of(random.integers(3, 20, 100)),
                 items_of(random.integers(5, 15, 40), np.arange(30, 70))]
    values = {
        "items": items, "names": NAMES, "can_attach": (True, False),
        "donors": np.arange(30, 70), "mixing": MixingConfig(kind="uniform"), "batch_size": 8,
        "max_tokens": 10_000, "max_padding": 0.9, "max_length": 96, "attach_context": 0.0,
        "noise": 0.0, "total_steps": 75, "seed": 0,
    }
    return StepPlanner(**{**values, **changes})


def rows_of(plan: StepPlanner, positions: Any = None) -> list[PlannedRow]:
    positions = range(len(plan)) if positions is None else positions
    return [row for at in positions for group in plan.step(at).micro_batches for row in group]


# --- shares -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("mixing", "expected"), [
    ({"kind": "proportional"}, [0.2, 0.8]),                  # 100 and 400 of 500
    ({"kind": "uniform"}, [0.5, 0.5]),
    ({"kind": "temperature", "temperature": 1}, [0.2, 0.8]),
    ({"kind": "temperature", "temperature": 2}, [1 / 3, 2 / 3]),   # roots 10 and 20
    ({"kind": "fixed", "shares": {"qa": 3.0, "intent": 1.0}}, [0.25, 0.75]),
])
def test_shares(mixing: dict, expected: list[float]) -> None:
    shares = task_shares([100, 400], MixingConfig(**mixing), np.array([0.0, 1.0]), NAMES)
    np.testing.assert_allclose(shares, [expected, expected])


def test_annealed_shares_go_from_proportional_to_uniform() -> None:
    progress = np.array([0.0, 0.5, 1.0])
    shares = task_shares([100, 400], MixingConfig(kind="annealed"), progress, NAMES)
    np.testing.assert_allclose(shares, [[0.2, 0.8], [0.35, 0.65], [0.5, 0.5]])


def test_fixed_shares_need_every_task() -> None:
    mixing = MixingConfig(kind="fixed", shares={"intent": 1.0})
    with pytest.raises(InputError, match=r"has no task 'qa', got \{'intent': 1.0\}"):
        task_shares([1, 1], mixing, np.zeros(1), NAMES)


def test_rows_per_step_by_hand() -> None:
    # Of 5 rows 30 % are 1.5: due after each step 1.5, 3, 4.5, 6, rounded 2, 3, 5, 6;
    # 70 % are 3.5: 3.5, 7, 10.5, 14, rounded 4, 7, 11, 14.
    rows = rows_per_step(np.tile([0.3, 0.7], (4, 1)), 5)
    assert rows.tolist() == [[2, 4], [1, 3], [2, 4], [1, 3]]


def test_every_task_has_a_row() -> None:
    assert rows_per_step(np.tile([0.01, 0.99], (3, 1)), 10).tolist() == [[1, 10]] * 3


@pytest.mark.parametrize("seed", range(5))
def test_rows_follow_the_shares_within_half_a_row(seed: int) -> None:
    shares = np.random.default_rng(seed).dirichlet([5, 5, 5], size=60)
    assert (shares * 100 > 1).all()
    rows = rows_per_step(shares, 100)
    assert np.abs(rows.cumsum(0) - (100 * shares).cumsum(0)).max() <= 0.5 + 1e-9


# --- the plan ---------------------------------------------------------------------------------


def test_a_batch_smaller_than_the_tasks() -> None:
    with pytest.raises(InputError, match="batch_size 1 is smaller than the 2 tasks"):
        planner(batch_size=1)


def test_every_step_has_rows_of_all_tasks_as_planned() -> None:
    plan = planner(mixing=MixingConfig(kind="fixed", shares={"intent": 1.0, "qa": 3.0}))
    assert len(plan) == 75
    for position in range(len(plan)):
        step = plan.step(position)
        counts = Counter(row.task for group in step.micro_batches for row in group)
        assert step.position == position
        assert (counts[0], counts[1]) == step.rows_T == (2, 6)


def test_annealing_runs_over_the_whole_training() -> None:
    plan = planner(mixing=MixingConfig(kind="annealed"), batch_size=140, total_steps=11)
    # 100 and 40 of 140 at the first step, 70 and 70 at the last.
    assert plan.rows_ST[0].tolist() == [100, 40]
    assert plan.rows_ST[-1].tolist() == [70, 70]
    assert plan.rows_ST[5].tolist() == [85, 55]


def test_each_item_once_per_pass() -> None:
    plan = planner()
    # Four rows of each task per step: 50 steps are 2 passes over 100 items and 5 over 40.
    counts = Counter((row.task, row.item) for row in rows_of(plan, range(WINDOW_STEPS)))
    assert counts == {**{(0, i): 2 for i in range(100)}, **{(1, i): 5 for i in range(40)}}
    # The 25 steps after them are 1 pass and 2.5.
    rest = Counter((row.task, row.item) for row in rows_of(plan, range(50, 75)))
    assert all(rest[0, i] == 1 for i in range(100))
    assert sorted(rest[1, i] for i in range(40)) == [2] * 20 + [3] * 20


def test_each_pass_has_its_own_order() -> None:
    plan = planner()
    first, second = plan._stream(0, 0, 100), plan._stream(0, 100, 100)
    assert sorted(first) == sorted(second) == list(range(100))
    assert first != second and first != list(range(100))
    assert plan._stream(0, 90, 20) == first[90:] + second[:10]
    assert plan._stream(1, 0, 40) != plan._stream(0, 0, 40)


def test_items_of_one_length_are_dealt_to_random_steps() -> None:
    # Sorted lengths in order of the steps would teach short texts first.
    plan = planner(items=[items_of(np.arange(100)), items_of(np.arange(100))], total_steps=50,
                   donors=None)
    means = [np.mean([row.length for row in rows_of(plan, [at])]) for at in range(50)]
    assert abs(np.corrcoef(means, np.arange(50))[0, 1]) < 0.5


@pytest.mark.parametrize("options", [{}, {"noise": 0.5, "attach_context": 0.5}])
def test_a_plan_is_a_function_of_seed_and_position(options: dict) -> None:
    plan = planner(**options)
    in_order = [plan.step(at) for at in range(len(plan))]
    for position in (74, 3, 50, 49):
        assert planner(**options).step(position) == in_order[position]
    assert [plan.step(at) for at in (60, 0, 74)] == [in_order[at] for at in (60, 0, 74)]


def test_another_seed_is_another_plan() -> None:
    one, other = rows_of(planner()), rows_of(planner(seed=1))
    assert [row.item for row in one] != [row.item for row in other]


def test_another_seed_attaches_other_passages() -> None:
    # Texts of one length: without the seed the same passages would only go to other rows.
    items = [items_of(np.full(100, 10)), items_of(np.full(40, 10), 30)]
    options = {"items": items, "noise": 0.5, "attach_context": 0.5}
    passages = [Counter((row.donor, row.donor_first, row.noised) for row in rows_of(plan))
                for plan in (planner(**options), planner(**options), planner(**options, seed=1))]
    assert passages[0] == passages[1] != passages[2]


def test_a_longer_training_begins_alike() -> None:
    assert planner(total_steps=75).step(20) == planner(total_steps=150).step(20)


# --- micro-batches ----------------------------------------------------------------------------


def realistic_items() -> list[TrainingItems]:
    random = np.random.default_rng(0)
    short = np.clip(random.lognormal(2.4, 0.6, 3000), 2, 94).astype(int)
    question = np.clip(random.lognormal(2.5, 0.3, 3000), 4, 40).astype(int)
    passage = np.clip(random.lognormal(5.0, 0.4, 3000), 30, 300).astype(int)
    return [items_of(short), items_of(question, passage)]


def padding_share(plan: StepPlanner) -> float:
    groups = [g for at in range(len(plan)) for g in plan.step(at).micro_batches]
    processed = sum(len(group) * max(row.length for row in group) for group in groups)
    return 1 - sum(row.length for group in groups for row in group) / processed


def test_padding_stays_within_its_limit() -> None:
    options = {"items": realistic_items(), "batch_size": 128, "total_steps": 60,
               "max_length": 384, "max_tokens": 8192, "attach_context": 0.1, "noise": 0.1}
    tight, loose = (planner(**options, max_padding=p) for p in (0.05, 0.5))
    assert padding_share(tight) <= 0.05
    assert padding_share(loose) > 0.05
    count = {p: sum(len(p.step(at).micro_batches) for at in range(60)) for p in (tight, loose)}
    assert count[loose] < count[tight] <= 6 * 60  # and not one row at a time


def test_rows_of_one_task_in_a_step_are_about_equally_long() -> None:
    plan = planner(items=realistic_items(), batch_size=128, total_steps=50, max_length=384,
                   attach_context=0.1)
    processed = real = 0
    for position in range(50):
        rows = rows_of(plan, [position])
        for group in ([r for r in rows if r.task == 0 and r.donor < 0],
                      [r for r in rows if r.task == 1]):
            processed += len(group) * max(row.length for row in group)
            real += sum(row.length for row in group)
    assert 1 - real / processed < 0.05


@pytest.mark.parametrize("max_tokens", [100, 300])
def test_tokens_stay_within_their_limit(max_tokens: int) -> None:
    plan = planner(max_tokens=max_tokens, max_padding=0.9)
    sizes = [len(group) * max(row.length for row in group)
             for at in range(75) for group in plan.step(at).micro_batches]
    assert max_tokens / 2 < max(sizes) <= max_tokens


# --- routing rows -----------------------------------------------------------------------------


def test_routing_rows_come_on_top_of_the_step() -> None:
    # A quarter of 8 rows are 2 more; every item of 30 once in 15 steps.
    plan = planner(routing=items_of(np.arange(5, 35)), routing_share=0.25)
    for position in range(len(plan)):
        step = plan.step(position)
        counts = Counter(row.task for group in step.micro_batches for row in group)
        assert counts == {0: 4, 1: 4, 2: 2}  # the number of tasks stands for routing rows
        assert step.rows_T == (4, 4)
    drawn = Counter(row.item for row in rows_of(plan) if row.task == 2)
    assert drawn == dict.fromkeys(range(30), 5)


@pytest.mark.parametrize(("share", "expected"), [
    (0.2, [2, 1, 2, 1, 2]),  # 1.6 a step: due 1.6, 3.2, 4.8, 6.4, 8, rounded 2, 3, 5, 6, 8
    (0.01, [1, 1, 1, 1, 1]),
])
def test_routing_rows_follow_their_share(share: float, expected: list[int]) -> None:
    plan = planner(routing=items_of([5]), routing_share=share, total_steps=5)
    assert plan.rows_ST.tolist() == [[4, 4, count] for count in expected]


@pytest.mark.parametrize("options", [{}, {"noise": 0.5, "attach_context": 0.5}])
def test_routing_rows_leave_the_tasks_rows_as_they_were(options: dict) -> None:
    extra = {"routing": items_of(np.full(30, 20)), "routing_share": 0.25}
    plain, more = planner(**options), planner(**options, **extra)
    for position in (0, 49, 50, 74):
        own = [row for row in rows_of(more, [position]) if row.task < 2]
        assert Counter(own) == Counter(rows_of(plain, [position]))
        assert more.step(position).rows_T == plain.step(position).rows_T
    routed = [row for row in rows_of(more) if row.task == 2]
    assert all(row.donor == -1 for row in routed)  # a foreign passage could change the task
    assert any(row.noised for row in routed) == bool(options)


@pytest.mark.parametrize("options", [{"routing_share": 0.25}, {"routing": items_of([5])}])
def test_without_rows_or_share_there_is_no_stream(options: dict) -> None:
    assert planner(**options).rows_ST.shape == (75, 2)
    assert len(planner(**options).items) == 2


# --- passages and noise -----------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 1.0])
def test_share_of_attached_passages(share: float) -> None:
    # 4 intent rows in each of 75 steps; every one has room for a passage.
    rows = rows_of(planner(attach_context=share))
    attached = [row for row in rows if row.donor >= 0]
    assert len(attached) == 300 * share
    assert all(row.task == 0 for row in attached)
    early = [row for row in rows_of(planner(attach_context=share), range(50)) if row.donor >= 0]
    assert len(early) == 200 * share


def test_attached_passages_are_pieces_of_donors_that_fit() -> None:
    donors = np.arange(30, 70)
    plan = planner(attach_context=1.0, total_steps=300)
    attached = [row for row in rows_of(plan) if row.task == 0]
    for row in attached:
        text = int(plan.items[0].text[row.item])
        assert row.donor_first >= 0
        assert row.donor_first + row.donor_length <= donors[row.donor]
        assert MIN_PASSAGE <= row.donor_length <= min(donors[row.donor], MAX_PASSAGE)
        assert row.length == text + row.donor_length + 3 <= plan.max_length
    assert {row.donor for row in attached} == set(range(40))
    assert len({row.donor_length for row in attached}) > 30
    # Not all of them from the first token of the passage.
    assert np.mean([row.donor_first > 0 for row in attached]) > 0.3


def test_long_passages_are_cut() -> None:
    plan = planner(attach_context=1.0, donors=np.full(5, 1000), max_length=384)
    lengths = [row.donor_length for row in rows_of(plan) if row.task == 0]
    assert MAX_PASSAGE - 20 < max(lengths) <= MAX_PASSAGE


def test_texts_without_room_get_no_passage() -> None:
    # 96 - 3 - 86 = 7 tokens are left, a passage has at least 8; with 85 there are 8.
    plan = planner(items=[items_of([85, 86]), items_of([5], 30)], attach_context=1.0)
    for row in rows_of(plan):
        if row.task == 0:
            assert (row.donor_length, row.length) == ((8, 96) if row.item == 0 else (0, 88))


@pytest.mark.parametrize("changes", [{"donors": None}, {"can_attach": (False, False)}])
def test_no_passages_where_there_can_be_none(changes: dict) -> None:
    assert all(row.donor == -1 for row in rows_of(planner(attach_context=1.0, **changes)))


@pytest.mark.parametrize(("noise", "low", "high"), [
    (0.0, 0, 0), (1.0, 600, 600),
    (0.3, 136, 224),  # 600 * 0.3 = 180, four standard deviations of 11 to each side
])
def test_share_of_noise(noise: float, low: int, high: int) -> None:
    plan = planner(noise=noise)
    rows = rows_of(plan)
    assert low <= sum(row.noised for row in rows) <= high
    for row in rows:
        items = plan.items[row.task]
        text = items.text[row.item] + 2 * row.noised
        context = items.context[row.item]
        assert row.length == text + (context + 3 if context else 2)


# --- several ranks ----------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [2, 3, 5])
def test_ranks_share_the_rows_of_a_step(ranks: int) -> None:
    plan = planner(batch_size=16, attach_context=0.3)
    for position in (0, 40, 74):
        whole = plan.step(position)
        parts = [plan.step(position, rank, ranks) for rank in range(ranks)]
        assert {part.rows_T for part in parts} == {whole.rows_T}  # of the whole step
        shared = [row for part in parts for group in part.micro_batches for row in group]
        rows = [row for group in whole.micro_batches for row in group]
        assert sorted(shared, key=repr) == sorted(rows, key=repr)
        tokens = [sum(row.length for group in part.micro_batches for row in group)
                  for part in parts]
        # Graham's rule: no rank is ahead by more than one row.
        assert max(tokens) - min(tokens) <= max(row.length for row in rows)


def test_all_ranks_encode_as_often_as_the_one_that_must_most_often() -> None:
    # One question of 10 + 60 + 3 tokens a step beside one text of 5 + 2: the rank with the
    # question needs a group for itself, and with 73 tokens at once so does the text.
    items = [items_of([5, 5]), items_of([10, 10], [60, 60])]
    plan = planner(items, batch_size=2, max_tokens=73, total_steps=2)
    assert plan.step(0).rounds == 2
    assert [plan.step(0, rank, 2).rounds for rank in (0, 1)] == [1, 1]
    # Two questions and two texts on two ranks: 73 + 7 each.
    plan = planner(items, batch_size=4, max_tokens=73, total_steps=2)
    assert (plan.step(0).rounds, plan.step(0, 1, 2).rounds) == (3, 2)


def test_the_fewest_rows_of_a_step() -> None:
    assert planner(batch_size=8).smallest_step == 8
    # A share of 1 in 10 of two rows is due every fifth step, but a step has one at least.
    mixing = MixingConfig(kind="fixed", shares={"intent": 9, "qa": 1})
    assert planner(batch_size=2, mixing=mixing).smallest_step == 2


def test_neighbours_are_encoded_together_up_to_the_limit() -> None:
    assert neighbours([4, 4, 4, 9, 1], 8) == [[0, 1], [2], [3], [4]]
    assert neighbours([4, 4, 4, 9, 1], 100) == [[0, 1, 2, 3, 4]]
