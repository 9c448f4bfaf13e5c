import pytest
import torch

from magvit2_pytorch.layers.rotary import axis_pairs, position_angles, rotate
from magvit2_pytorch.layers.transformer import (
    SelfAttention,
    Transformer,
    TransformerSize,
    attend_all,
    attend_causal,
    attend_masked,
)

EXACT = dict(atol=1e-12, rtol=1e-12)
PAIRS = axis_pairs(4, (2, 3, 3))


def double(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def cell_angles(positions):
    return position_angles(positions, PAIRS, theta=100.0, dtype=torch.float64)


def transformer(kv_heads=None):
    return Transformer(TransformerSize(16, 2, 2, kv_heads), dropout=0.5).double().eval()


def test_pairs_are_split_by_weight():
    assert axis_pairs(16, (2, 3, 3)) == (4, 6, 6)
    assert axis_pairs(8, (1, 1, 1)) == (2, 3, 3)
    assert sum(axis_pairs(13, (1, 5))) == 13


def test_scores_depend_on_distances_along_each_axis():
    q, k, positions = double(1, 8), double(1, 8), double(1, 3) * 5
    other, shift = double(1, 3), torch.tensor([[1e6, -2.0, 7.5]])

    def score(move):
        turned = rotate(q, cell_angles(positions + move))
        return turned @ rotate(k, cell_angles(positions + other + move)).T

    # Angles of a million have lost ten digits of sixteen.
    torch.testing.assert_close(score(shift), score(0), atol=1e-8, rtol=1e-8)
    assert (score(0) - rotate(q, cell_angles(positions)) @ k.T).abs() > 1e-6


def test_attention_equals_plain_formulas():
    attention, x = SelfAttention(TransformerSize(16, 1, 2, 1)).double(), double(1, 5, 16)
    angles = cell_angles(double(5, 3))
    q, k, v = attention.to_qkv(x)[0].split((16, 8, 8), dim=-1)
    k = rotate(attention.key_norm(k), angles)
    heads = []
    for head in q.chunk(2, dim=-1):
        scores = rotate(attention.query_norm(head), angles) @ k.T / 8**0.5
        heads.append((scores + torch.full((5, 5), -torch.inf).triu(1)).softmax(-1) @ v)
    wanted = attention.to_out(torch.cat(heads, dim=-1))
    torch.testing.assert_close(
        attention(x, (angles.cos()[None], angles.sin()[None]), attend_causal)[0][0], wanted, **EXACT
    )


@pytest.mark.parametrize("kv_heads", [None, 1])
def test_chunks_with_past_equal_the_whole(kv_heads):
    model, x, angles = transformer(kv_heads), double(2, 7, 16), cell_angles(double(7, 3))
    whole, keys = model(x, angles, attend_causal)
    past, parts = None, []
    for start, stop in ((0, 3), (3, 4), (4, 7)):
        mask = torch.arange(stop) <= torch.arange(start, stop)[:, None]
        part, past = model(x[:, start:stop], angles[start:stop], attend_masked(mask), past)
        parts.append(part)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, **EXACT)
    torch.testing.assert_close(past, keys, **EXACT)


def test_without_order_tokens_may_be_permuted():
    model, x, angles = transformer(), double(2, 7, 16), cell_angles(double(7, 3))
    order = torch.randperm(7)
    whole, _ = model(x, angles, attend_all)
    permuted, _ = model(x[:, order], angles[order], attend_all)
    torch.testing.assert_close(permuted, whole[:, order], **EXACT)


@pytest.mark.parametrize("sizes", [(15, 1, 2), (12, 1, 4), (16, 1, 4, 3)])
def test_sizes_that_do_not_divide(sizes):
    with pytest.raises(ValueError, match="multiple of"):
        TransformerSize(*sizes)
