"""A gate brick parts rows by the direction of their class, and old tasks come first."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from moe.bricks.scorer import (
    FORMS,
    LOWEST,
    MEDIAN,
    BrickData,
    _border,
    fit_brick,
    similar_forms,
)
from moe.gate import Gate
from moe.gate_brick import RIGHT_OF_WAY, GateBrick
from moe.types import BrickSpec, ExpertSpec, InputError


def cloud(centre: list[float], count: int, seed: int, spread: float = 0.12) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(centre, spread, (count, len(centre)))
    return rows.astype(np.float32)


OLD = {"mood": cloud([1, 0, 0, 0], 200, 1), "qa": cloud([0, 1, 0, 0], 200, 2)}
NEW = np.concatenate([cloud([0, 0, 1, 0], 100, 3), cloud([0, 0, 0, 1], 100, 4)])
CLASSES = np.repeat([0, 1], 100)


def fitted(own: np.ndarray, classes: np.ndarray, limited: list[str]) -> tuple:
    data = BrickData(own_XP=own, classes_X=classes, others=OLD, limited=limited)
    brick = GateBrick(dim=4, layers=1, own=data.num_own(), others=data.num_others())
    return brick, fit_brick(brick, data)


def test_two_classes_have_a_prototype_each() -> None:
    brick, fit = fitted(NEW, CLASSES, ["mood", "qa"])
    assert brick.own.out_features == 2
    assert fit.kept == 1.0 and fit.moved == {"mood": 0.0, "qa": 0.0}
    new = [cloud([0, 0, 1, 0], 50, 8), cloud([0, 0, 0, 1], 50, 9)]
    fresh = torch.from_numpy(np.concatenate(new))
    assert (brick(fresh) > 0).all()
    assert (brick(torch.from_numpy(cloud([1, 0, 0, 0], 50, 10))) < 0).all()


def test_a_typical_own_row_has_the_same_odds_whatever_the_data() -> None:
    brick, _ = fitted(NEW, CLASSES, ["mood", "qa"])
    assert torch.median(brick(torch.from_numpy(NEW))).item() == pytest.approx(MEDIAN, rel=0.2)


def test_classes_with_few_rows_have_no_prototype_of_their_own() -> None:
    classes = np.array([0] * 195 + [1] * 5)
    assert BrickData(own_XP=NEW, classes_X=classes, others=OLD).num_own() == 1
    assert BrickData(own_XP=NEW, classes_X=np.arange(200), others=OLD).num_own() == 1  # all few


def test_every_class_with_rows_enough_has_its_prototype() -> None:
    rows = np.concatenate([cloud([0, 0, 1, 0], 20, seed) for seed in range(6)])
    classes = np.repeat(np.arange(12), 10)  # exactly as many as are needed, before the split
    brick, fit = fitted(rows, classes, ["mood", "qa"])
    assert brick.own.out_features == 12 and fit.kept == 1.0
    assert all(torch.isfinite(p).all() for p in brick.parameters())


def test_every_form_of_an_old_task_has_its_prototype() -> None:
    # The mean of the two forms points where the new rows are: one prototype could not part them.
    forms = np.concatenate([cloud([1, 0, 0, 1], 200, 5), cloud([-1, 0, 0, 1], 200, 6)])
    found = similar_forms(forms)
    assert found.shape == (400,) and 2 <= found.max() + 1 <= FORMS
    assert not set(found[:200]) & set(found[200:])
    data = BrickData(own_XP=cloud([0, 0, 0, 1], 200, 7, 0.05), classes_X=np.zeros(200, np.int64),
                     others={"old": forms, **OLD}, limited=["old"])
    brick = GateBrick(dim=4, layers=1, own=1, others=data.num_others())
    fit = fit_brick(brick, data)
    assert fit.kept > 0.99 and fit.moved["old"] <= 0.005


@pytest.mark.parametrize("count", [1, 5, 39, 81, 2000])
def test_forms_are_numbered_from_zero_and_none_is_empty(count: int) -> None:
    found = similar_forms(cloud([0, 0, 0, 1], count, 1, 1.0))
    sizes = np.bincount(found, minlength=1)
    assert len(found) == count and len(sizes) <= FORMS and (sizes > 0).all()
    assert (similar_forms(np.zeros((count, 4), np.float32)) == 0).all()


def test_the_border_lies_between_the_nearest_old_row_and_equal_odds() -> None:
    odds = np.linspace(-10, -4, 1001)  # of which 99.9 % lie at most at -4.006
    assert _border([odds - 50, odds]) == pytest.approx(-4.006 * 2 / 3)
    assert _border([odds - 50]) == LOWEST
    assert _border([odds + 6]) == pytest.approx(1.994)  # one in a thousand may be beyond it
    assert _border([]) == 0.0


@pytest.mark.parametrize("seed", range(4))
def test_one_old_row_among_many_does_not_place_the_border(seed: int) -> None:
    # With 2,000 rows two may be beyond it; wherever the folds put the one, the next ones decide.
    borders = []
    for stray in (OLD["mood"][:1], NEW[:1]):
        others = {"mood": np.concatenate([cloud([1, 0, 0, 0], 1999, 6), stray]), "qa": OLD["qa"]}
        data = BrickData(own_XP=NEW, classes_X=CLASSES, others=others, limited=["mood", "qa"])
        brick = GateBrick(dim=4, layers=1, own=2, others=data.num_others())
        fit = fit_brick(brick, data, seed)
        borders.append(-float(brick.offset / brick.scale))
        assert fit.kept == 1.0
    assert fit.moved["mood"] == 1 / 2000
    assert borders[1] == pytest.approx(borders[0], abs=2.0)


def test_rows_like_an_old_task_stay_there_unless_the_task_is_the_own_one() -> None:
    like_mood = cloud([1, 0, 0, 0], 200, 5)
    _, strict = fitted(like_mood, np.zeros(200, dtype=int), ["mood", "qa"])
    assert strict.moved["mood"] <= 0.005  # of 200 rows the quantile lies at the highest
    assert strict.kept < 0.2
    _, free = fitted(like_mood, np.zeros(200, dtype=int), ["qa"])
    assert free.kept > 0.3 and free.moved["qa"] == 0.0


def test_length_of_a_piece_says_nothing() -> None:
    brick, _ = fitted(NEW, CLASSES, ["mood"])
    row = torch.from_numpy(NEW[:1])
    longer = brick.centre + 3 * (row - brick.centre)
    assert brick(longer).item() == pytest.approx(brick(row).item(), abs=1e-4)


def gate(experts: list[ExpertSpec] | None) -> Gate:
    torch.manual_seed(0)
    made = Gate(dim=8, num_experts=3, kind="linear", experts=experts, layer_dim=4)
    with torch.no_grad():
        for brick in made.bricks.values():
            brick.offset.fill_(0.7)  # type: ignore[operator]
    return made


def spec(name: str, order: int) -> BrickSpec:
    return BrickSpec(name=name, order=order, layers=3, own=1, others=1)


def test_an_added_expert_takes_its_share_from_all_alike() -> None:
    pooled, early, ids = torch.randn(6, 8), torch.randn(6, 12), torch.arange(6)
    old = gate(None)(pooled, ids)
    trained = [ExpertSpec(name=str(row), rows=(row,)) for row in range(3)]
    grown = gate([*trained, ExpertSpec(name="new", bricks=(spec("new", 0),))])
    grown.scores.load_state_dict(gate(None).scores.state_dict())
    logits = grown(pooled, ids, early)
    assert torch.equal(logits[:, :3], old)
    s = grown.bricks["new"](early)
    torch.testing.assert_close(logits.softmax(-1)[:, 3], s.sigmoid())
    share = logits.softmax(-1)[:, :3] / old.softmax(-1)
    torch.testing.assert_close(share, (1 - s.sigmoid())[:, None].expand(-1, 3))


def test_earlier_bricks_have_the_right_of_way_and_merged_rows_keep_their_mass() -> None:
    pooled, early, ids = torch.randn(6, 8), torch.randn(6, 12), torch.arange(6)
    both = ExpertSpec(name="both", rows=(0, 2))
    experts = [ExpertSpec(name="b", bricks=(spec("b", 5),)), both,
               ExpertSpec(name="a", bricks=(spec("a", 2),))]
    made = gate(experts)
    assert list(made.bricks) == ["a", "b"] and made.rows == [0, 2]  # row 1 is removed
    b, _, a = made(pooled, ids, early).softmax(-1).T
    odds = {name: made.bricks[name](early).exp() for name in "ab"}
    # Where a claims nothing b keeps its odds; where a claims all they are divided by e^5.
    late = odds["b"] * (1 + odds["a"]) / (1 + odds["a"] * math.exp(RIGHT_OF_WAY))
    torch.testing.assert_close(a, odds["a"] / (1 + odds["a"] + late))
    torch.testing.assert_close(b, late / (1 + odds["a"] + late))
    rows = made.scores(pooled) / made.temperature
    torch.testing.assert_close(made(pooled, ids, early)[:, 1], rows[:, [0, 2]].logsumexp(-1))


def test_the_bias_inside_a_task_is_that_of_the_expert() -> None:
    both, new = ExpertSpec(name="both", rows=(0, 2)), ExpertSpec(name="n", bricks=(spec("n", 0),))
    made = gate([both, new])
    made.selection_bias += torch.tensor([1.0, 5.0, 2.0])
    assert made.expert_bias.tolist() == [2.0, 0.0]  # the largest of 1 and 2; none


def test_a_brick_of_an_older_program_is_refused() -> None:
    old = {"name": "new", "rows": [], "bricks": [{"name": "new", "order": 0, "own": 1}]}
    with pytest.raises(InputError, match="expert 'new' is of an older program: add it again"):
        ExpertSpec.from_dict(old)
