"""One contract for every expert, and parity with the heads of transformers."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    DistilBertConfig,
    DistilBertForQuestionAnswering,
    DistilBertForSequenceClassification,
    DistilBertForTokenClassification,
    DistilBertModel,
)

from moe.encoder import encode
from moe.experts import EXPERT_TYPES, Classifier, Expert, Span, Tagger, Trunk, build_expert
from moe.types import Batch, TaskSpec

DIM, HEADS, HIDDEN, LENGTH = 32, 4, 64, 7
TRUNKS = ("none", "ffn", "transformer")
SHAPE: dict[str, Any] = {"dim": DIM, "num_heads": HEADS, "hidden_dim": HIDDEN, "dropout": 0.0,
                         "pooling": "first"}


def spec(kind: Any) -> TaskSpec:
    return TaskSpec(name="t", type=kind, num_experts=1,
                    labels=() if kind == "span" else ("a", "b", "c"))


def trunk_of(kind: Any, dropout: float = 0.0) -> Trunk:
    return Trunk(kind=kind, dim=DIM, num_heads=HEADS, hidden_dim=HIDDEN, dropout=dropout)


def rows() -> tuple[Tensor, Batch]:
    """Token states (4, 7, 32) and a batch with a class, a span and tags for every row."""
    torch.manual_seed(0)
    sizes = torch.tensor([7, 5, 6, 7])
    attention_mask = torch.arange(LENGTH) < sizes[:, None]
    context_mask = attention_mask.clone()
    context_mask[:, :2] = False
    batch = Batch(
        input_ids=torch.randint(4, 100, (4, LENGTH)), attention_mask=attention_mask,
        context_mask=context_mask, request_ids=torch.arange(4), task_ids=torch.zeros(4).long(),
        labels=torch.tensor([0, 2, 1, 0]), spans=torch.tensor([[2, 3], [4, 4], [0, 0], [3, 6]]),
        tags=torch.tensor([[-1, 0, 1, -1, 2, 0, -1], [-1, 2, -1, -1, -1, -1, -1],
                           [-1, 1, 2, -1, 0, -1, -1], [-1, 0, 0, 0, -1, -1, -1]]),
    )
    return torch.randn(4, LENGTH, DIM), batch


def loss_of(expert: Expert, hidden: Tensor, batch: Batch) -> Tensor:
    logits = expert(hidden, batch.attention_mask, batch.context_mask)
    return -expert.log_likelihood(logits, batch).mean()


def train(expert: Expert, hidden: Tensor, batch: Batch, steps: int) -> list[float]:
    optimizer = torch.optim.Adam(expert.parameters(), lr=3e-3, fused=True)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = loss_of(expert, hidden, batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


# --- the contract -----------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "trunk"), list(itertools.product(EXPERT_TYPES, TRUNKS)))
def test_contract(kind: str, trunk: Any) -> None:
    hidden, batch = rows()
    expert = build_expert(spec(kind), trunk=trunk, **SHAPE)
    assert isinstance(expert, Expert)

    loss_of(expert, hidden, batch).backward()
    for name, parameter in expert.named_parameters():
        assert parameter.grad is not None, name
        # The same number on every key changes no attention, so its bias has none.
        assert name.endswith("key.bias") or parameter.grad.abs().max() > 0, name

    losses = train(expert, hidden, batch, steps=30)
    assert losses[-1] < 0.7 * losses[0]

    loaded = build_expert(spec(kind), trunk=trunk, **SHAPE)
    loaded.load_state_dict(expert.state_dict())
    inputs = (hidden, batch.attention_mask, batch.context_mask)
    assert torch.equal(loaded.eval()(*inputs), expert.eval()(*inputs))
    assert train(loaded.train(), hidden, batch, steps=10)[-1] < losses[-1]


@pytest.mark.parametrize(("kind", "trunk"), list(itertools.product(EXPERT_TYPES, TRUNKS)))
def test_an_answer_does_not_depend_on_neighbours_or_padding(kind: str, trunk: Any) -> None:
    hidden, batch = rows()
    expert = build_expert(spec(kind), trunk=trunk, **SHAPE | {"pooling": "mean"}).eval()
    together = expert(hidden, batch.attention_mask, batch.context_mask)
    for row, size in enumerate(batch.attention_mask.sum(1).tolist()):
        cut = (slice(row, row + 1), slice(size))
        alone = expert(hidden[cut], batch.attention_mask[cut], batch.context_mask[cut])[0]
        beside = together[row] if kind == "classifier" else together[row, :size]
        torch.testing.assert_close(beside, alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", list(EXPERT_TYPES))
def test_dropout_is_used_in_training_only(kind: str) -> None:
    hidden, batch = rows()
    for trunk in TRUNKS:
        expert = build_expert(spec(kind), trunk=trunk, **SHAPE | {"dropout": 0.5})
        inputs = (hidden, batch.attention_mask, batch.context_mask)
        assert not torch.equal(expert(*inputs), expert(*inputs))
        assert torch.equal(expert.eval()(*inputs), expert(*inputs))


@pytest.mark.parametrize(("trunk", "count"), [("ffn", 1), ("transformer", 2)])
def test_every_block_of_a_trunk_has_dropout(trunk: Any, count: int) -> None:
    hidden, batch = rows()
    block = trunk_of(trunk, 0.3)
    dropouts = [module for module in block.modules() if isinstance(module, nn.Dropout)]
    assert [dropout.p for dropout in dropouts] == [0.3] * count
    for used in dropouts:
        for dropout in dropouts:
            dropout.p = 0.5 if dropout is used else 0.0
        outputs = [block(hidden, batch.attention_mask) for _ in range(2)]
        assert not torch.equal(*outputs)


@pytest.mark.parametrize("kind", TRUNKS)
def test_the_first_token_of_a_trunk_alone_is_that_of_all(kind: Any) -> None:
    torch.manual_seed(0)
    block, hidden = trunk_of(kind), torch.randn(3, 7, DIM)
    mask = torch.arange(7) < torch.tensor([[7], [4], [2]])
    alone = block(hidden, mask, first_only=True)
    torch.testing.assert_close(alone, block(hidden, mask)[:, :1], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("trunk", "expected"), [
    ("none", (False, False)), ("ffn", (False, True)), ("transformer", (True, True)),
])
def test_a_trunk_has_the_blocks_of_its_kind(trunk: Any, expected: tuple[bool, bool]) -> None:
    block = build_expert(spec("span"), trunk=trunk, **SHAPE).trunk
    assert (block.attention is not None, block.feed_forward is not None) == expected


def test_initialisation_is_distilberts() -> None:
    torch.manual_seed(0)
    expert = build_expert(spec("classifier"), trunk="transformer", **SHAPE)
    for module in expert.modules():
        if isinstance(module, nn.Linear):
            assert module.bias.abs().max() == 0
            # At least 96 draws of N(0, 0.02): within five standard errors, 0.02 / sqrt(192).
            assert abs(module.weight.std().item() - 0.02) < 0.008


def test_out_of_scope_is_one_more_class() -> None:
    task = TaskSpec(name="t", type="classifier", num_experts=1, labels=("a", "b"),
                    out_of_scope="oos")
    hidden, batch = rows()
    expert = build_expert(task, trunk="none", **SHAPE)
    assert expert(hidden, batch.attention_mask, batch.context_mask).shape == (4, 3)


# --- parity -----------------------------------------------------------------------------------


def reference_config(layers: int, num_labels: int = 2) -> DistilBertConfig:
    return DistilBertConfig(
        vocab_size=100, dim=DIM, n_layers=layers, n_heads=HEADS, hidden_dim=HIDDEN,
        num_labels=num_labels, max_position_embeddings=64, initializer_range=0.2,
    )


def copy_layer(trunk: Trunk, layer: nn.Module) -> None:
    """The weights of a DistilBERT layer; with `ffn` its second half."""
    pairs = [(trunk.feed_forward.inner, layer.ffn.lin1), (trunk.feed_forward.outer, layer.ffn.lin2),
             (trunk.feed_forward.norm, layer.output_layer_norm)]
    if trunk.attention is not None:
        of, to = layer.attention, trunk.attention
        pairs += [(to.query, of.q_lin), (to.key, of.k_lin), (to.value, of.v_lin),
                  (to.output, of.out_lin), (to.norm, layer.sa_layer_norm)]
    for mine, theirs in pairs:
        mine.load_state_dict(theirs.state_dict())


def parity_pair(reference: nn.Module, trunk: Any, expert: Expert) -> DistilBertModel:
    """Randomises the reference, copies it into encoder and trunk, returns the encoder."""
    for parameter in reference.parameters():
        nn.init.normal_(parameter, std=0.3)
    encoder = DistilBertModel(reference_config(2))
    state = reference.distilbert.state_dict()
    kept = {k: v for k, v in state.items() if not k.startswith("transformer.layer.2.")}
    encoder.load_state_dict(kept)
    if trunk == "transformer":
        copy_layer(expert.trunk, reference.distilbert.transformer.layer[2])
    return encoder.eval()


def random_mask() -> Tensor:
    mask = torch.rand(4, LENGTH) < 0.7
    mask[:, 0] = True
    return mask


def assert_same_gradients(reference: nn.Module, encoder: nn.Module, trunk: Trunk) -> None:
    theirs = {n: p.grad for n, p in reference.distilbert.named_parameters()}
    for name, parameter in encoder.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs[name], atol=1e-5, rtol=1e-4)
    if trunk.feed_forward is not None:
        layer = reference.distilbert.transformer.layer[2]
        for mine, ours in ((trunk.feed_forward.inner, layer.ffn.lin1),
                           (trunk.feed_forward.norm, layer.output_layer_norm),
                           (trunk.attention.query, layer.attention.q_lin),
                           (trunk.attention.value, layer.attention.v_lin)):
            for a, b in zip(mine.parameters(), ours.parameters(), strict=True):
                torch.testing.assert_close(a.grad, b.grad, atol=1e-5, rtol=1e-4)


def assert_same_training(
    reference: nn.Module, encoder: nn.Module, expert: Any, expected: Any, logits: Tensor,
    batch: Batch,
) -> None:
    loss = -expert.log_likelihood(logits, batch).mean()
    torch.testing.assert_close(logits, expected.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(loss, expected.loss, atol=1e-5, rtol=1e-5)
    expected.loss.backward()
    loss.backward()
    assert_same_gradients(reference, encoder, expert.trunk)
    torch.testing.assert_close(expert.classifier.weight.grad, reference.classifier.weight.grad)


@pytest.mark.parametrize("trunk", ["none", "transformer"])
def test_classifier_equals_distilberts(trunk: Any) -> None:
    _, batch = rows()
    mask = random_mask()
    layers = 3 if trunk == "transformer" else 2
    reference = DistilBertForSequenceClassification(reference_config(layers, num_labels=3)).eval()
    expert = Classifier(trunk=trunk_of(trunk), dim=DIM, num_classes=3, pooling="first", dropout=0.2)
    encoder = parity_pair(reference, trunk, expert.eval())
    expert.pre_classifier.load_state_dict(reference.pre_classifier.state_dict())
    expert.classifier.load_state_dict(reference.classifier.state_dict())
    expected = reference(batch.input_ids, mask, labels=batch.labels)
    logits = expert(encode(encoder, batch.input_ids, mask), mask, batch.context_mask)
    assert_same_training(reference, encoder, expert, expected, logits, batch)


@pytest.mark.parametrize("trunk", ["none", "transformer"])
def test_span_equals_distilberts(trunk: Any) -> None:
    _, batch = rows()
    mask = random_mask()
    layers = 3 if trunk == "transformer" else 2
    reference = DistilBertForQuestionAnswering(reference_config(layers)).eval()
    expert = Span(trunk=trunk_of(trunk), dim=DIM, dropout=0.2).eval()
    encoder = parity_pair(reference, trunk, expert)
    expert.qa_outputs.load_state_dict(reference.qa_outputs.state_dict())
    starts, ends = batch.spans.T
    expected = reference(batch.input_ids, mask, start_positions=starts, end_positions=ends)
    everywhere = torch.ones_like(mask)  # the reference lets a span lie anywhere
    logits = expert(encode(encoder, batch.input_ids, mask), mask, everywhere)
    # Theirs is the mean of start and end, ours their sum: log p(start) + log p(end).
    loss = -expert.log_likelihood(logits, batch).mean() / 2
    torch.testing.assert_close(logits[..., 0], expected.start_logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits[..., 1], expected.end_logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(loss, expected.loss, atol=1e-5, rtol=1e-5)
    expected.loss.backward()
    loss.backward()
    assert_same_gradients(reference, encoder, expert.trunk)
    torch.testing.assert_close(expert.qa_outputs.weight.grad, reference.qa_outputs.weight.grad)


@pytest.mark.parametrize("trunk", ["none", "transformer"])
def test_tagger_equals_distilberts(trunk: Any) -> None:
    _, batch = rows()
    batch = batch.select(torch.tensor([0]))
    mask = torch.ones(1, LENGTH, dtype=torch.bool)
    layers = 3 if trunk == "transformer" else 2
    reference = DistilBertForTokenClassification(reference_config(layers, num_labels=3)).eval()
    expert = Tagger(trunk=trunk_of(trunk), dim=DIM, num_classes=3, dropout=0.2).eval()
    encoder = parity_pair(reference, trunk, expert)
    expert.classifier.load_state_dict(reference.classifier.state_dict())
    # Theirs leaves out -100 and is the mean over the words of the batch: here of one row.
    labels = batch.tags.masked_fill(batch.tags < 0, -100)
    expected = reference(batch.input_ids, mask, labels=labels)
    logits = expert(encode(encoder, batch.input_ids, mask), mask, batch.context_mask)
    assert_same_training(reference, encoder, expert, expected, logits, batch)


def test_ffn_trunk_is_the_second_half_of_a_layer() -> None:
    hidden, batch = rows()
    layer = DistilBertModel(reference_config(1)).eval().transformer.layer[0]
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.3)
    trunk = trunk_of("ffn").eval()
    copy_layer(trunk, layer)
    expected = layer.output_layer_norm(layer.ffn(hidden) + hidden)
    torch.testing.assert_close(trunk(hidden, batch.attention_mask), expected)


# --- heads ------------------------------------------------------------------------------------


def test_pooling_of_a_classifier() -> None:
    expert = Classifier(trunk=trunk_of("none"), dim=2, num_classes=2, pooling="mean", dropout=0.0)
    with torch.no_grad():
        for linear in (expert.pre_classifier, expert.classifier):
            linear.weight.copy_(torch.eye(2))
            linear.bias.zero_()
    hidden = torch.tensor([[[1.0, -4.0], [5.0, 2.0], [9.0, 9.0]]])
    mask = torch.tensor([[True, True, False]])
    # Mean of two tokens (3, -1), first token (1, -4); the ReLU keeps 3 and 1.
    assert expert(hidden, mask, mask).tolist() == [[3.0, 0.0]]
    expert.pooling = "first"
    assert expert(hidden, mask, mask).tolist() == [[1.0, 0.0]]


def test_span_logits_are_finite_in_the_context_and_at_cls() -> None:
    hidden, batch = rows()
    expert = build_expert(spec("span"), trunk="none", **SHAPE)
    kept_mask = batch.context_mask.clone()
    logits = expert(hidden, batch.attention_mask, batch.context_mask)
    allowed = batch.context_mask.clone()
    allowed[:, 0] = True
    assert torch.equal(logits.isfinite(), allowed[:, :, None].expand_as(logits))
    assert (logits[~allowed] == -torch.inf).all()
    assert torch.equal(batch.context_mask, kept_mask)  # the batch is not written to


def test_span_likelihood_by_hand() -> None:
    expert = Span(trunk=trunk_of("none"), dim=DIM, dropout=0.0)
    # p(start) = 1/2, 1/4, 1/4 and p(end) = 1/8, 1/8, 3/4 at positions 0, 1, 2.
    logits = torch.tensor([[[4.0, 1.0], [2.0, 1.0], [2.0, 6.0]]]).log().repeat(2, 1, 1)
    _, batch = rows()
    batch = batch.select(torch.tensor([0, 1]))
    batch.spans.copy_(torch.tensor([[1, 2], [0, 0]]))
    expected = torch.tensor([1 / 4 * 3 / 4, 1 / 2 * 1 / 8])
    torch.testing.assert_close(expert.log_likelihood(logits, batch).exp(), expected)


def test_class_likelihood_by_hand() -> None:
    expert = Classifier(trunk=trunk_of("none"), dim=DIM, num_classes=3, pooling="first",
                        dropout=0.0)
    _, batch = rows()  # labels 0, 2, 1, 0
    logits = torch.tensor([[1.0, 2.0, 5.0]]).log().repeat(4, 1)
    expected = torch.tensor([1 / 8, 5 / 8, 2 / 8, 1 / 8])
    torch.testing.assert_close(expert.log_likelihood(logits, batch).exp(), expected)


def test_tag_likelihood_by_hand() -> None:
    expert = Tagger(trunk=trunk_of("none"), dim=DIM, num_classes=2, dropout=0.0)
    _, batch = rows()
    batch = batch.select(torch.tensor([0, 1, 2]))
    batch.tags.copy_(torch.tensor([[-1, 0, -1, 1, -1, -1, -1], [-1, 1, -1, -1, -1, -1, -1],
                                   [-1, -1, -1, -1, -1, -1, -1]]))
    # p(1) = 3/4 at every token: of a row with the tags 0 and 1 the geometric mean of 1/4 and 3/4.
    logits = torch.tensor([1.0, 3.0]).log().repeat(3, LENGTH, 1)
    expected = torch.tensor([(1 / 4 * 3 / 4) ** 0.5, 3 / 4, 1.0])  # 1 without words
    torch.testing.assert_close(expert.log_likelihood(logits, batch).exp(), expected)
