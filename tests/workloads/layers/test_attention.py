"""Attention, blocks and positions, each worked out in numpy from the paper's formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from workloads.layers.attention import Block, Positions, SelfAttention, draw_normal, sinusoids

ROWS, TOKENS, WIDTH, HEADS = 3, 6, 12, 4


def softmax(scores: np.ndarray) -> np.ndarray:
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def by_hand(layer: SelfAttention, x: np.ndarray, valid: np.ndarray, *, causal: bool) -> tuple[np.ndarray, np.ndarray]:
    """softmax(Q K' / sqrt(K)) V, one row, one head and one query after another, over the keys that may be seen; (output, weights)."""
    matrix, bias = (parameter.detach().double().numpy() for parameter in layer.query_key_value.parameters())
    size = WIDTH // HEADS
    joined, weights = np.zeros_like(x), np.zeros((len(x), HEADS, TOKENS, TOKENS))
    for row in range(len(x)):
        queries, keys, values = np.split(x[row] @ matrix.T + bias, 3, axis=1)
        for head in range(HEADS):
            part = slice(head * size, (head + 1) * size)
            for query in range(TOKENS):
                seen = [key for key in range(TOKENS) if valid[row, key] and not (causal and key > query)]
                weights[row, head, query, seen] = softmax(keys[seen, part] @ queries[query, part] / math.sqrt(size))
                joined[row, query, part] = weights[row, head, query] @ values[:, part]
    matrix, bias = (parameter.detach().double().numpy() for parameter in layer.output.parameters())
    return joined @ matrix.T + bias, weights


@pytest.mark.parametrize(("lengths", "causal"), [((6, 6, 6), False), ((6, 2, 1), False), ((6, 6, 6), True)])
def test_attention_is_the_softmax_of_scaled_products(lengths: tuple[int, ...], causal: bool) -> None:
    torch.manual_seed(0)
    layer = SelfAttention(WIDTH, HEADS, causal=causal)
    x = torch.randn(ROWS, TOKENS, WIDTH)
    valid = np.arange(TOKENS) < np.array(lengths)[:, None]
    mask = None if valid.all() else torch.from_numpy(valid)
    expected, weights = by_hand(layer, x.double().numpy(), valid, causal=causal)
    np.testing.assert_allclose(layer(x, mask).detach().numpy(), expected, atol=1e-5)
    np.testing.assert_allclose(layer.weights(x, mask).detach().numpy(), weights, atol=1e-6)


def test_the_weights_that_are_drawn_are_those_that_forward_uses() -> None:
    torch.manual_seed(1)
    layer, x, mask = SelfAttention(WIDTH, HEADS), torch.randn(ROWS, TOKENS, WIDTH), torch.arange(TOKENS) < torch.tensor([[3], [6], [1]])
    values = layer.query_key_value(x)[:, :, 2 * WIDTH :].unflatten(2, (HEADS, -1))
    mixed = torch.einsum("bhqk,bkhd->bqhd", layer.weights(x, mask), values).flatten(2)
    torch.testing.assert_close(layer(x, mask), layer.output(mixed), rtol=0, atol=1e-6)


@pytest.mark.parametrize("pre_norm", [True, False])
def test_a_block_is_attention_and_a_hidden_part_each_added_to_what_came_in(pre_norm: bool) -> None:
    torch.manual_seed(2)
    block = Block(WIDTH, HEADS, 20, pre_norm=pre_norm, activation="relu")
    for norm in (block.attention_norm, block.feed_forward_norm):  # away from one and zero, or a norm in the wrong place would hide
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)
    x = torch.randn(ROWS, TOKENS, WIDTH)
    (inner, inner_bias), (outer, outer_bias) = ((part.weight, part.bias) for part in (block.feed_forward[0], block.feed_forward[2]))

    def normal(y: torch.Tensor, norm: torch.nn.LayerNorm) -> torch.Tensor:
        return (y - y.mean(2, keepdim=True)) / (y.var(2, keepdim=True, correction=0) + norm.eps).sqrt() * norm.weight + norm.bias

    def hidden(y: torch.Tensor) -> torch.Tensor:
        return (y @ inner.T + inner_bias).clamp(min=0) @ outer.T + outer_bias

    if pre_norm:
        middle = x + block.attention(normal(x, block.attention_norm))
        expected = middle + hidden(normal(middle, block.feed_forward_norm))
    else:
        middle = normal(x + block.attention(x), block.attention_norm)
        expected = normal(middle + hidden(middle), block.feed_forward_norm)
    torch.testing.assert_close(block(x), expected, rtol=0, atol=1e-5)
    seen = block.attention.weights(normal(x, block.attention_norm) if pre_norm else x)
    torch.testing.assert_close(block.attention_weights(x), seen, rtol=0, atol=1e-6)


def test_what_padding_holds_changes_nothing() -> None:
    torch.manual_seed(3)
    layer, x, mask = SelfAttention(WIDTH, HEADS), torch.randn(ROWS, TOKENS, WIDTH), torch.arange(TOKENS) < torch.tensor([[3], [5], [1]])
    other = torch.where(mask[:, :, None], x, 100 * torch.randn(ROWS, TOKENS, WIDTH))
    torch.testing.assert_close(layer(x, mask)[mask], layer(other, mask)[mask], rtol=0, atol=1e-6)


def test_a_causal_token_sees_nothing_behind_it() -> None:
    torch.manual_seed(4)
    layer, x = SelfAttention(WIDTH, HEADS, causal=True), torch.randn(1, TOKENS, WIDTH)
    other = torch.cat([x[:, :4], torch.randn(1, TOKENS - 4, WIDTH)], 1)
    torch.testing.assert_close(layer(x)[:, :4], layer(other)[:, :4], rtol=0, atol=1e-6)
    assert (layer(x)[:, 4:] - layer(other)[:, 4:]).abs().max() > 1e-3


def test_attention_drops_weights_while_training_only() -> None:
    torch.manual_seed(5)
    layer, x = SelfAttention(WIDTH, HEADS, dropout=0.5), torch.randn(ROWS, TOKENS, WIDTH)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


@pytest.mark.parametrize("width", [6, 7])
def test_the_sines_are_those_of_the_paper(width: int) -> None:
    table = sinusoids(5, width)
    for place in range(5):
        for column in range(width):
            angle = place / 10_000 ** ((column - column % 2) / width)
            assert table[place, column].item() == pytest.approx(math.cos(angle) if column % 2 else math.sin(angle), abs=1e-6)


def test_learnt_positions_are_added_and_sines_are_not_learnt() -> None:
    x = torch.zeros(2, 3, 4)
    learnt = Positions("learned", 5, 4)
    assert torch.equal(learnt(x), learnt.table[:3].expand(2, 3, 4))
    fixed = Positions("sinusoidal", 5, 4)
    assert torch.equal(fixed(x), sinusoids(5, 4)[:3].expand(2, 3, 4))
    assert list(fixed.parameters()) == list(fixed.state_dict()) == []
    assert Positions("none", 5, 4)(x) is x


def test_branches_end_in_smaller_weights_the_more_of_them_there_are() -> None:
    torch.manual_seed(6)
    block = Block(64, 4, 256)
    draw_normal(block, layers=8)
    assert block.attention.query_key_value.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert block.attention.output.weight.std().item() == pytest.approx(0.02 / 4, rel=0.05)
    assert block.feed_forward[2].weight.std().item() == pytest.approx(0.02 / 4, rel=0.05)
    assert not block.feed_forward[2].bias.any()
