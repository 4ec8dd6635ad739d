"""The figures show the numbers that they are given."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest

from moe import plots


def _texts(axes):
    return {(t.get_position()[1], t.get_position()[0]): t.get_text() for t in axes.texts}


def test_import_needs_no_matplotlib():
    # Not by blocking the import: torchmetrics imports matplotlib itself where it is installed.
    top = ast.parse(Path(plots.__file__).read_text(encoding="utf-8")).body
    imported = [ast.unparse(node) for node in top if isinstance(node, ast.Import | ast.ImportFrom)]
    assert imported and not any("matplotlib" in line for line in imported)


def test_routing_matrix_numbers_misrouting_and_unused_experts():
    share_TE = np.array([[0.9, 0.0, 0.1], [0.002, 0.0, 0.998], [0.5, 0.25, 0.25]])
    figure = plots.routing_matrix(
        share_TE, ["mood", "intent", "intent\noos"], ["mood-0", "mood-1", "intent-0"]
    )
    axes = figure.axes[0]
    texts = _texts(axes)
    assert texts[0, 0] == "90" and texts[0, 2] == "10"
    assert texts[1, 0] == "<1" and texts[1, 2] == "100"
    assert (0, 1) not in texts
    # mood loses 10 %, intent 0.2 %; the group that belongs nowhere does not count, and its use
    # of mood-1 is no use by mood.
    assert "at most 10.0% astray" in axes.get_title()
    assert axes.get_title().endswith("unused experts: mood-1")
    colours = axes.images[0].get_array()
    blue, red = colours[0, 0], colours[0, 2]
    assert blue[2] > blue[0] and red[0] > red[2]
    assert np.ptp(colours[2, 0]) < 1e-6  # grey


def test_confusion_shares_are_of_the_expected_class():
    # Class 0: 1 of 2 right. Class 1: its one row is taken for 2. Class 2 has no rows.
    shares = plots.confusion_shares(np.array([0, 0, 1]), np.array([0, 2, 2]), 3)
    np.testing.assert_allclose(shares, [[0.5, 0, 0.5], [0, 0, 1], [0, 0, 0]])


@pytest.mark.parametrize(("classes", "panels"), [(2, 1), (12, 2), (40, 2)])
def test_confusion_matrix_by_size(classes, panels):
    label_N = np.arange(classes).repeat(4)
    predicted_N = label_N.copy()
    predicted_N[0] = 1  # a quarter of class 0
    names = [f"class{i}" for i in range(classes)]
    figure = plots.confusion_matrix(label_N, predicted_N, names)
    assert len(figure.axes) == panels
    wrong = f"{100 * (1 - 1 / (4 * classes)):.1f}% of {4 * classes} rows right"
    assert wrong in figure.get_suptitle()
    texts = _texts(figure.axes[0])
    if classes <= 30:
        assert texts[0, 1] == "25" and texts[0, 0] == "75"
    else:
        assert not texts
        assert figure.axes[0].collections[0].get_offsets().tolist() == [[1.0, 0.0]]
    if panels == 2:
        assert "25% class0\n  as class1" in figure.axes[1].texts[0].get_text()


def test_reliability_bars_are_the_share_right():
    # Bin [0.5, 1]: confidences 0.6, 0.8, one of two right: share 0.5, mean confidence 0.7.
    figure = plots.reliability_diagram(np.array([0.6, 0.8]), np.array([True, False]), bins=2)
    assert figure.axes[0].patches[0].get_height() == 0.5
    assert [p.get_height() for p in figure.axes[1].patches] == [0, 2]
    assert "ECE 0.200" in figure.get_suptitle() and "+0.200" in figure.get_suptitle()


def test_reliability_of_no_rows_and_of_full_confidence():
    plots.pixels(plots.reliability_diagram(np.zeros(0), np.zeros(0, dtype=bool)))
    figure = plots.reliability_diagram(np.ones(3), np.ones(3, dtype=bool))
    assert figure.axes[1].patches[-1].get_height() == 3  # 1.0 is in the last bin


def test_out_of_scope_tradeoff_by_hand():
    # Refused in this order: out, in and wrong, in and right, out, in and right.
    score = np.array([4.0, 1, 5, 3, 2])
    inside = np.array([True, True, False, True, False])
    right = np.array([False, True, False, True, True])
    rejected = score > 3.5
    axes = plots.out_of_scope_tradeoff(score, inside, right, rejected).axes[0]
    curve, point = axes.lines
    np.testing.assert_allclose(curve.get_xdata(), [50, 50, 50, 100, 100])
    np.testing.assert_allclose(curve.get_ydata(), np.array([2, 2, 1, 1, 0]) * 100 / 3)
    np.testing.assert_allclose(point.get_xydata(), [[50, 200 / 3]])
    assert axes.get_title() == "66.7 % right at 50 % out-of-scope recall"


def test_pixels_have_the_size_that_tensorboard_shows():
    image = plots.pixels(plots.routing_matrix(np.eye(2), ["a", "b"], ["a-0", "b-0"]))
    assert image.shape == (450, 600, 3) and image.dtype == np.uint8
