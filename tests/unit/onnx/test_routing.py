"""The gate's decision in numpy beside the original in torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from moe.decision import route, task_experts_matrix
from moe.onnx.routing import decide


@pytest.mark.parametrize("top_k", [1, 2, 4])
@pytest.mark.parametrize("threshold", [None, 0.2])
@pytest.mark.parametrize("named", [False, True])
def test_the_decision_is_that_of_the_gate(
    top_k: int, threshold: float | None, named: bool
) -> None:
    random = np.random.default_rng(top_k)
    logits = random.normal(size=(200, 7)).astype(np.float32) * 2
    allowed, wanted = random.random((2, 200, 3)) < 0.6
    allowed[:, 1] = wanted[:, 2] = True
    bias = random.normal(size=7)
    expected = route(
        torch.from_numpy(logits), task_experts_matrix((2, 1, 4)),
        tasks_BT=torch.from_numpy(wanted) if named else None,
        allowed_BT=torch.from_numpy(allowed), top_k=top_k, multi_task_threshold=threshold,
        selection_bias_E=torch.from_numpy(bias).float(),
    )
    said = decide(
        logits, (2, 1, 4), named_NT=wanted & named, allowed_NT=allowed, top_k=top_k,
        multi_task_threshold=threshold, selection_bias_E=bias,
    )
    assert (said.tasks_NT == expected.tasks_BT.numpy()).all()
    assert ((said.weight_NE > 0) == expected.chosen_BE.numpy()).all()
    assert np.allclose(said.weight_NE, expected.log_weights_BE.exp().numpy(), atol=1e-6)
    assert np.allclose(said.mass_NT, expected.task_mass_BT.numpy(), atol=1e-6)
    assert np.allclose(said.probability_NE, expected.probabilities_BE.numpy(), atol=1e-6)


def test_by_hand() -> None:
    # Two tasks of two and one experts; g = 0.3, 0.3, 0.4: the task of the best expert loses.
    logits = np.log(np.array([[0.3, 0.3, 0.4]], dtype=np.float32))
    said = decide(
        logits, (2, 1), named_NT=np.array([[False, False]]), allowed_NT=np.array([[True, True]]),
        top_k=1, multi_task_threshold=None, selection_bias_E=np.array([0.0, 1.0, 5.0]),
    )
    np.testing.assert_allclose(said.mass_NT, [[0.6, 0.4]], atol=1e-6)
    assert said.tasks_NT.tolist() == [[True, False]]
    assert said.weight_NE.tolist() == [[0.0, 1.0, 0.0]]  # the bias chooses inside a task alone
