"""The model as a whole: sparse as dense, each row for itself, and the contract of training."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from moe.build import build_model
from moe.decision import task_experts_matrix
from moe.encoder import encode, pool
from moe.experts.trunk import Trunk, copy_layer
from moe.losses import gate_sums, mixture_loss, routing_loss, switch_balance
from moe.model import Mixture
from moe.model_config import EncoderConfig, ExpertConfig, ModelConfig
from moe.types import Batch, InputError, MixtureOutput, TaskSpec

LINEAR = {"kind": "linear", "temperature": 1.0}


def run_own(model: Mixture, batch: Batch) -> MixtureOutput:
    return model(batch, tasks_BT=model.own_tasks(batch))


def count_calls(model: Mixture) -> Counter:
    """Rows that each expert gets from now on."""
    calls: Counter = Counter()
    for name, expert in model.experts.items():
        expert.register_forward_hook(
            lambda module, inputs, output, name=name: calls.update({name: len(inputs[0])}))
    return calls


def set_scores(model: Mixture, scores: list[float]) -> Mixture:
    """Makes a linear gate say the same scores of every text."""
    with torch.no_grad():
        model.gate.scores.weight.zero_()
        model.gate.scores.bias.copy_(torch.tensor(scores))
    return model


def widen(batch: Batch, columns: int) -> Batch:
    names = ("input_ids", "attention_mask", "context_mask")
    pad = nn.functional.pad
    return replace(batch, **{name: pad(getattr(batch, name), (0, columns)) for name in names})


# --- sparse is dense --------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
def test_sparse_equals_running_all_experts_and_masking(
    tiny_model, hand_batch: Batch, training: bool
) -> None:
    model = tiny_model(gate={"train_top_k": 3}).train(training)
    output = run_own(model, hand_batch)
    hidden = encode(model.encoder, hand_batch.input_ids, hand_batch.attention_mask)
    # A span task's rows have the label -1, which a classifier cannot look up: any class will do
    # where the result is masked.
    answers = replace(hand_batch, labels=hand_batch.labels.clamp_min(0) % 2)
    own_E = torch.repeat_interleave(torch.arange(3), torch.tensor(model.task_sizes))
    likelihood = torch.full_like(output.routing.logits_BE, -torch.inf)
    sparse = {entry.expert: entry for entry in output.experts}
    for number, expert in enumerate(model.experts.values()):
        logits = expert(hidden, hand_batch.attention_mask, hand_batch.context_mask)
        mine = output.routing.chosen_BE[:, number]
        if mine.any():
            assert torch.equal(sparse[number].rows_N, mine.nonzero().flatten())
            torch.testing.assert_close(sparse[number].logits, logits[mine], atol=1e-5, rtol=1e-5)
        own = hand_batch.task_ids == own_E[number]
        rows = torch.where(own, hand_batch.labels, answers.labels)
        value = expert.log_likelihood(logits, replace(hand_batch, labels=rows))
        likelihood[:, number] = torch.where(mine, value, -torch.inf)
    assert set(sparse) == set(output.routing.chosen_BE.any(0).nonzero().flatten().tolist())
    expected = mixture_loss(output.routing.log_weights_BE, likelihood)
    assert expected.isfinite().all()
    own_BT = model.own_tasks(hand_batch)  # the loss of other tasks is 0
    torch.testing.assert_close(model.answer_loss(output, hand_batch), expected[:, None] * own_BT)


def test_an_expert_without_rows_does_not_run_and_gets_no_gradient(
    tiny_model, hand_batch: Batch
) -> None:
    model = tiny_model().train()
    calls = count_calls(model)
    sentiment = hand_batch.select(torch.tensor([0, 1]))
    output = run_own(model, sentiment)
    assert calls == {"sentiment-0": 2, "sentiment-1": 2}  # both experts, K = 2
    model.answer_loss(output, sentiment).sum().backward()
    for name, expert in model.experts.items():
        for parameter in expert.parameters():
            assert (parameter.grad is not None) == name.startswith("sentiment")


def test_the_encoder_runs_once(tiny_model, hand_batch: Batch) -> None:
    model = tiny_model()
    calls = []
    model.encoder.transformer.layer[0].ffn.lin1.register_forward_hook(lambda *_: calls.append(1))
    run_own(model, hand_batch)
    assert len(calls) == 1


@pytest.mark.parametrize(("gate", "training", "expected"), [
    ({}, False, (1, 1, 1)), ({}, True, (2, 1, 2)),
    ({"top_k": 3}, False, (2, 1, 3)), ({"top_k": 3}, True, (2, 1, 2)),
    ({"train_top_k": 1}, True, (1, 1, 1)), ({"train_top_k": 4}, True, (2, 1, 4)),
])
def test_number_of_experts(
    tiny_model, hand_batch: Batch, gate: dict, training: bool, expected: tuple[int, ...]
) -> None:
    model = tiny_model(gate=gate).train(training)
    calls = count_calls(model)
    chosen = run_own(model, hand_batch).routing.chosen_BE
    # Two rows of each task, in order of the tasks.
    assert chosen.sum(1).tolist() == [k for k in expected for _ in range(2)]
    assert sum(calls.values()) == 2 * sum(expected)


# --- each row for itself ----------------------------------------------------------------------


@pytest.mark.parametrize("trunk", ["none", "transformer"])
@pytest.mark.parametrize("learned", [True, False])
def test_an_answer_does_not_depend_on_the_rest_of_the_batch(
    tiny_model, hand_batch: Batch, trunk: str, learned: bool
) -> None:
    # Of a request's two windows one is left out: they do share their routing.
    batch = hand_batch.select(torch.tensor([0, 1, 2, 4, 5]))
    model = tiny_model(gate={"top_k": 2}, expert={"trunk": trunk}).eval()

    def run(rows: Batch) -> tuple[MixtureOutput, dict[tuple[int, int], Tensor]]:
        output = model(rows) if learned else run_own(model, rows)
        logits = {(row, entry.expert): entry.logits[at] for entry in output.experts
                  for at, row in enumerate(entry.rows_N.tolist())}
        return output, logits

    output, together = run(widen(batch, 5))
    for row in range(len(batch)):
        size = int(batch.attention_mask[row].sum())
        single = batch.select(torch.tensor([row]))
        single = replace(single, request_ids=torch.zeros(1, dtype=torch.long),
                         **{name: getattr(single, name)[:, :size]
                            for name in ("input_ids", "attention_mask", "context_mask")})
        alone, logits = run(single)
        torch.testing.assert_close(
            output.routing.logits_BE[row], alone.routing.logits_BE[0], atol=1e-5, rtol=1e-5)
        assert {e for r, e in together if r == row} == {e for _, e in logits}
        for (_, expert), expected in logits.items():
            actual = together[row, expert]
            actual = actual[:size] if actual.ndim == 2 else actual
            torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def test_windows_of_one_request_share_one_routing(tiny_model, hand_batch: Batch) -> None:
    model = tiny_model().eval()
    logits = model(hand_batch).routing.logits_BE
    assert torch.equal(logits[2], logits[3])
    apart = model(replace(hand_batch, request_ids=torch.arange(6))).routing.logits_BE
    assert not torch.allclose(apart[2], apart[3])
    torch.testing.assert_close(logits[2], (apart[2] + apart[3]) / 2)
    torch.testing.assert_close(logits[[0, 1, 4, 5]], apart[[0, 1, 4, 5]])


def test_a_request_without_context_cannot_go_to_a_span_task(
    tiny_model, hand_batch: Batch
) -> None:
    # Expert 2 answers questions and is by far the best; then sentiment, then intent.
    model = set_scores(tiny_model(gate=LINEAR), [1.0, 1, 9, 0, 0, 0, 0]).eval()
    with_context = [False, False, True, True, False, False]
    expected = [[not context, context, False] for context in with_context]
    assert model(hand_batch).routing.tasks_BT.tolist() == expected
    # A request has a context if one of its windows has.
    emptied = hand_batch.context_mask.clone()
    emptied[3] = False
    assert model(replace(hand_batch, context_mask=emptied)).routing.tasks_BT.tolist() == expected
    assert model.answerable(hand_batch).tolist() == [[True, c, True] for c in with_context]


def test_allowed_tasks(tiny_model, hand_batch: Batch) -> None:
    model = set_scores(tiny_model(gate=LINEAR), [1.0, 1, 9, 0, 0, 0, 0]).eval()
    allowed = torch.tensor([[False, False, True]]).expand(6, 3)
    tasks = model(hand_batch, allowed_BT=allowed).routing.tasks_BT
    assert torch.equal(tasks, allowed)


def test_multi_task_threshold(tiny_model, hand_batch: Batch) -> None:
    # Masses: sentiment 2/7 = 0.286, qa 1/7 = 0.143, intent 4/7 = 0.571.
    equal = [0.0] * 7
    chosen = {}
    for threshold in (None, 0.2, 0.1):
        gate = {**LINEAR, "multi_task_threshold": threshold}
        model = set_scores(tiny_model(gate=gate), equal).eval()
        routing = model(hand_batch).routing
        chosen[threshold] = routing.tasks_BT[2].tolist()
        assert routing.chosen_BE[2].sum() == sum(chosen[threshold])
    assert chosen == {None: [False, False, True], 0.2: [True, False, True], 0.1: [True] * 3}


@pytest.mark.parametrize("training", [True, False])
def test_selection_bias_is_used(tiny_model, hand_batch: Batch, training: bool) -> None:
    model = tiny_model(gate={"train_top_k": 1}).train(training)
    for expert in (3, 6):
        model.gate.selection_bias.zero_()
        model.gate.selection_bias[expert] = 100.0
        assert run_own(model, hand_batch).routing.chosen_BE[4:, expert].all()


@pytest.mark.parametrize("top_k", [1, 2])
def test_the_choice_at_inference_is_known_in_training(
    tiny_model, hand_batch: Batch, top_k: int
) -> None:
    model = tiny_model(gate={"top_k": top_k, "train_top_k": 4})
    model.gate.selection_bias[5] = 100.0
    for training in (True, False):
        routing = run_own(model.train(training), hand_batch).routing
        choice = model.inference_choice(routing)
    assert torch.equal(choice, routing.chosen_BE)  # the last was at inference
    training_routing = run_own(model.train(), hand_batch).routing
    assert torch.equal(model.inference_choice(training_routing), choice)
    assert choice[4:, 5].all()


def test_balance_has_a_gradient_where_all_experts_of_a_task_run(
    tiny_model, hand_batch: Batch
) -> None:
    model = set_scores(tiny_model(gate={**LINEAR, "train_top_k": 4}), [0.0] * 7).train()
    with torch.no_grad():
        model.gate.scores.bias[3] = 2.0  # the first of four is best everywhere
    routing = run_own(model, hand_batch).routing
    choice = model.inference_choice(routing)
    sums = gate_sums(routing, choice, hand_batch.task_ids, model.task_experts_TE)
    switch_balance(sums, model.task_experts_TE)[2].backward()
    assert model.gate.scores.bias.grad[3] > 0.1  # descending makes it less attractive


# --- gradients --------------------------------------------------------------------------------


@pytest.mark.parametrize("reaches", [True, False])
def test_whether_the_routing_gradient_reaches_the_encoder(
    tiny_model, hand_batch: Batch, reaches: bool
) -> None:
    model = tiny_model(gate={"update_encoder": reaches}).train()
    own = model.own_tasks(hand_batch).float()
    logits = run_own(model, hand_batch).routing.logits_BE
    routing_loss(logits, own, model.task_experts_TE).sum().backward()
    assert all(p.grad is not None for p in model.gate.parameters())
    weight = model.encoder.embeddings.word_embeddings.weight
    assert (weight.grad is not None and bool(weight.grad.abs().max() > 0)) == reaches
    # The answer always does.
    model.answer_loss(run_own(model, hand_batch), hand_batch).sum().backward()
    assert weight.grad is not None and weight.grad.abs().max() > 0


def test_contract(tiny_model, hand_batch: Batch) -> None:
    model = tiny_model(gate={"train_top_k": 4}).train()

    def loss() -> Tensor:
        output = run_own(model, hand_batch)
        own = model.own_tasks(hand_batch).float()
        routing = routing_loss(output.routing.logits_BE, own, model.task_experts_TE)
        return (model.answer_loss(output, hand_batch).sum(1) + routing).mean()

    def train(steps: int) -> float:
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3, fused=True)
        for _ in range(steps):
            optimizer.zero_grad()
            value = loss()
            value.backward()
            optimizer.step()
        return value.item()

    before = loss()
    with torch.autograd.set_detect_anomaly(True):  # no NaN on the way of the masks
        before.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        # The same number on every key changes no attention, so its bias has none.
        assert name.endswith(("key.bias", "k_lin.bias")) or parameter.grad.abs().max() > 0, name
    after = train(8)
    assert after < 0.5 * before.item()
    loaded = tiny_model(seed=1)
    loaded.load_state_dict(model.state_dict())
    expected, actual = model.eval()(hand_batch), loaded.eval()(hand_batch)
    assert torch.equal(actual.routing.logits_BE, expected.routing.logits_BE)
    for mine, theirs in zip(actual.experts, expected.experts, strict=True):
        assert torch.equal(mine.logits, theirs.logits)
    model = loaded.train()
    assert train(4) < after


# --- rows without a task ----------------------------------------------------------------------


def gradients(model: Mixture, batch: Batch) -> dict[str, Tensor]:
    """Of the sum of the answer losses; they are finite. Parameters that were not met are absent."""
    model.zero_grad(set_to_none=True)
    with torch.autograd.set_detect_anomaly(True):  # no NaN on the way of the masks
        model.answer_loss(run_own(model, batch), batch).sum().backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert all(gradient.isfinite().all() for gradient in found.values())
    return found


def test_rows_without_a_task_have_no_answer_and_change_none(
    tiny_model, hand_batch: Batch
) -> None:
    model = tiny_model(gate={"train_top_k": 4}).train()
    some = replace(hand_batch, task_ids=torch.tensor([0, -1, 1, 1, 2, -1]))
    calls = count_calls(model)
    output = run_own(model, some)
    assert sum(calls.values()) == 2 + 2 + 4  # both sentiment experts, two windows of qa, intent
    loss = model.answer_loss(output, some).sum(1).tolist()
    known = hand_batch.select(torch.tensor([0, 2, 3, 4]))
    alone = model.answer_loss(run_own(model, known), known).sum(1).tolist()
    assert (loss[1], loss[5]) == (0.0, 0.0)
    assert [loss[row] for row in (0, 2, 3, 4)] == pytest.approx(alone, abs=1e-5)
    expected, actual = gradients(model, known), gradients(model, some)
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient, atol=1e-4, rtol=1e-4)


def test_a_batch_of_nothing_but_rows_without_a_task(tiny_model, hand_batch: Batch) -> None:
    model = tiny_model().train()
    batch = replace(hand_batch, task_ids=torch.full((6,), -1))
    output = run_own(model, batch)
    assert output.experts == ()
    assert model.answer_loss(output, batch).tolist() == [[0.0] * 3] * 6
    assert all(gradient.abs().max() == 0 for gradient in gradients(model, batch).values())


def test_a_routing_row_with_two_answers_teaches_both_tasks(tiny_model, hand_batch: Batch) -> None:
    """The question's row, once of sentiment, once of qa, and once a routing row of both."""
    model = tiny_model(gate={"train_top_k": 4}).train()
    question = replace(hand_batch.select(torch.tensor([2])), labels=torch.tensor([1]),
                       request_ids=torch.tensor([0]))
    both = replace(question, task_ids=torch.tensor([-1]),
                   answered_BT=torch.tensor([[True, True, False]]))

    def loss(batch: Batch) -> Tensor:
        output, = model.forward_together([batch])
        return model.answer_loss(output, batch)[0]

    sentiment, qa = (loss(replace(question, task_ids=torch.tensor([task]))) for task in (0, 1))
    assert sentiment[0] > 0 and qa[1] > 0
    torch.testing.assert_close(loss(both), torch.stack([sentiment[0], qa[1], sentiment[2]]))
    loss(both).sum().backward()
    moved = {name for name, expert in model.experts.items()
             if any(p.grad is not None and p.grad.abs().max() > 0 for p in expert.parameters())}
    assert moved == {"sentiment-0", "sentiment-1", "qa-0"}


# --- building ---------------------------------------------------------------------------------


def test_same_seed_same_weights(tiny_model) -> None:
    one, same, other = (tiny_model(seed=seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(one[name], same[name]) for name in one)
    for part in ("gate.scores.prototypes", "experts.qa-0.qa_outputs.weight"):
        assert not torch.equal(one[part], other[part])


def test_experts_of_one_task_differ(tiny_model) -> None:
    weights = [e.classifier.weight for n, e in tiny_model().experts.items() if "intent" in n]
    assert all(not torch.equal(weights[0], other) for other in weights[1:])


def test_the_state_has_the_fitted_bias_and_no_constants(tiny_model) -> None:
    names = set(tiny_model().state_dict())
    assert "gate.selection_bias" in names
    assert "task_experts_TE" not in names


def test_forward_stores_nothing(tiny_model, hand_batch: Batch) -> None:
    model = tiny_model().train()

    def state() -> dict[str, Any]:
        stored = {}
        for name, module in model.named_modules():
            attributes = {**vars(module), **module._parameters, **module._buffers}
            stored[name] = {key: id(value) for key, value in attributes.items()}
        return stored

    before = state()
    run_own(model, hand_batch)
    assert state() == before


def test_expert_names_and_matrix(tiny_model, tiny_tasks: tuple[TaskSpec, ...]) -> None:
    assert tiny_model().expert_names == (
        "sentiment-0", "sentiment-1", "qa-0", "intent-0", "intent-1", "intent-2", "intent-3")
    assert task_experts_matrix([task.num_experts for task in tiny_tasks]).int().tolist() == [
        [1, 1, 0, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0, 0], [0, 0, 0, 1, 1, 1, 1]]


def test_own_tasks(tiny_model, hand_batch: Batch) -> None:
    rows = tiny_model().own_tasks(hand_batch).int().tolist()
    assert rows == [[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 1, 0], [0, 0, 1], [0, 0, 1]]
    unknown = replace(hand_batch, task_ids=torch.tensor([-1, 0, 1, 1, 2, -1]))
    rows = tiny_model().own_tasks(unknown).int().tolist()
    assert rows == [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]]


@pytest.mark.parametrize("pooling", ["both", "text", "mean", "first"])
def test_what_the_gate_reads(tiny_model, hand_batch: Batch, pooling: Any) -> None:
    model = tiny_model(pooling=pooling).eval()
    output = model(hand_batch)
    hidden = encode(model.encoder, hand_batch.input_ids, hand_batch.attention_mask)
    pooled = pool(hidden, hand_batch.attention_mask, hand_batch.context_mask, pooling)
    torch.testing.assert_close(output.pooled_BD, pooled)
    logits = model.gate(pooled, hand_batch.request_ids)
    torch.testing.assert_close(output.routing.logits_BE, logits)


def test_every_field_of_the_config_arrives(tiny_model) -> None:
    model = tiny_model(
        gate={"width": 24, "temperature": 0.7, "noise": 0.3},
        expert={"trunk": "ffn", "pooling": "mean", "dropout": 0.4},
    )
    assert model.gate.scores.prototypes.shape == (7, 24)
    assert (model.gate.temperature, model.gate.noise) == (0.7, 0.3)
    for name, expert in model.experts.items():
        assert expert.trunk.attention is None
        assert expert.trunk.feed_forward.inner.out_features == 64
        assert {m.p for m in expert.modules() if isinstance(m, nn.Dropout)} == {0.4}
        assert name == "qa-0" or expert.pooling == "mean"
    assert tiny_model().experts["qa-0"].trunk.attention.num_heads == 4
    assert isinstance(tiny_model(gate={"kind": "linear"}).gate.scores, nn.Linear)


# --- trunks that start as a layer -------------------------------------------------------------


@pytest.mark.parametrize("layers", [None, 1])
def test_a_trunk_starts_as_the_layer_that_follows_what_it_reads(
    tiny_encoder, tiny_tasks: tuple[TaskSpec, ...], hand_batch: Batch, layers: int | None
) -> None:
    whole = tiny_encoder().eval()
    expected = encode(whole, hand_batch.input_ids, hand_batch.attention_mask)
    if layers is None:  # nothing follows: the last layer once more
        last = whole.transformer.layer[-1]
        pairs = hand_batch.attention_mask[:, None, None, :]
        expected = last(expected, attention_mask=pairs.expand(-1, 1, expected.shape[1], -1))
    config = ModelConfig(encoder=EncoderConfig(layers=layers), expert=ExpertConfig(start="encoder"))
    model = build_model(config, tiny_tasks, tiny_encoder()).eval()
    hidden = encode(model.encoder, hand_batch.input_ids, hand_batch.attention_mask)
    kept = hand_batch.attention_mask
    for expert in model.experts.values():
        states = expert.trunk(hidden, hand_batch.attention_mask)
        torch.testing.assert_close(states[kept], expected[kept], atol=1e-5, rtol=1e-5)
    assert len(model.encoder.transformer.layer) == model.encoder.config.n_layers == (layers or 2)


def test_a_trunk_that_starts_at_random_is_no_layer(tiny_encoder, tiny_tasks) -> None:
    model = build_model(ModelConfig(), tiny_tasks, tiny_encoder())
    last = model.encoder.transformer.layer[-1]
    trunk: Any = model.experts["qa-0"].trunk
    assert not torch.equal(trunk.attention.query.weight, last.attention.q_lin.weight)


def test_a_narrower_trunk_keeps_the_neurons_with_the_largest_weights(tiny_encoder) -> None:
    layer = tiny_encoder().transformer.layer[1]
    with torch.no_grad():
        layer.ffn.lin1.weight[1::2] = 0  # every second one says nothing
        layer.ffn.lin1.bias[1::2] = 0
    trunk = Trunk(kind="transformer", dim=32, num_heads=4, hidden_dim=32, dropout=0.0)
    copy_layer(layer, trunk)
    hidden = torch.randn(2, 5, 32)
    mask = torch.ones(2, 5, dtype=torch.bool)
    expected = layer(hidden, attention_mask=mask[:, None, None, :])
    torch.testing.assert_close(trunk(hidden, mask), expected, atol=1e-5, rtol=1e-5)


def test_more_layers_than_there_are(tiny_encoder, tiny_tasks) -> None:
    config = ModelConfig(encoder=EncoderConfig(layers=3))
    with pytest.raises(InputError, match=r"encoder.layers is 3, the encoder has 2: name"):
        build_model(config, tiny_tasks, tiny_encoder())
