import pytest
import torch

from magvit2_pytorch.functional import linear_scan
from magvit2_pytorch.layers.attention import (
    AttentionSize,
    FeedForward,
    GateLoop,
    LinearSpaceAttention,
    SpaceAttention,
    TimeAttention,
    TokenShift,
)
from magvit2_pytorch.layers.rotary import axial_angles, rotary_angles, rotate

SIZE = AttentionSize(dim_head=8, heads=2)
EXACT = dict(atol=1e-10, rtol=1e-10)


def double(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def heads(linear, tokens, num_heads):
    """q, k and v of each head, by plain slices."""
    parts = linear(tokens).chunk(3, dim=-1)
    return [part.unflatten(-1, (num_heads, -1)).transpose(-2, -3) for part in parts]


def test_rotary_scores_depend_on_distance_alone():
    q, k = double(8), double(8)
    angles = rotary_angles(12, 8, q)
    turned_q, turned_k = (rotate(v.expand(12, 8), angles) for v in (q, k))
    scores = turned_q @ turned_k.T
    for offset in range(-11, 12):
        line = scores.diagonal(offset)
        torch.testing.assert_close(line, line[:1].expand_as(line), **EXACT)
    assert scores.diagonal(1)[0] != pytest.approx(float(scores.diagonal(2)[0]))


def test_turning_is_multiplying_complex_numbers():
    x = double(2, 7, 8)
    frequencies = torch.tensor([10_000 ** (-i / 4) for i in range(4)], dtype=torch.float64)
    angles = torch.arange(7)[:, None] * frequencies
    z = torch.complex(x[..., :4], x[..., 4:]) * torch.exp(1j * angles)
    turned = rotate(x, rotary_angles(7, 8, x))
    torch.testing.assert_close(turned, torch.cat((z.real, z.imag), dim=-1), **EXACT)


def test_angles_keep_float32_under_half_precision():
    half = torch.randn(9, 8, dtype=torch.bfloat16)
    assert rotary_angles(9, 8, half).dtype == torch.float32
    assert rotate(half, rotary_angles(9, 8, half)).dtype == torch.bfloat16


def test_axial_scores_depend_on_both_distances_and_on_nothing_else():
    height, width = 3, 4
    q, k = double(8), double(8)
    angles = axial_angles(height, width, 8, q)
    scores = rotate(q.expand(12, 8), angles) @ rotate(k.expand(12, 8), angles).T
    seen = {}
    for i in range(12):
        for j in range(12):
            offset = (j // width - i // width, j % width - i % width)
            seen.setdefault(offset, []).append(float(scores[i, j]))
    for values in seen.values():
        assert values == pytest.approx([values[0]] * len(values))
    assert seen[0, 1][0] != pytest.approx(seen[1, 0][0])


def test_space_attention_is_attention_over_one_frame():
    layer = SpaceAttention(6, SIZE).double()
    x = double(2, 6, 3, 2, 4)
    tokens = x.permute(0, 2, 3, 4, 1).reshape(6, 8, 6)
    q, k, v = heads(layer.to_qkv, tokens, 2)
    angles = axial_angles(2, 4, 8, x)
    scores = rotate(q, angles) @ rotate(k, angles).mT / 8**0.5
    out = layer.to_out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
    expected = out.reshape(2, 3, 2, 4, 6).permute(0, 4, 1, 2, 3)
    torch.testing.assert_close(layer(x)[0], expected, **EXACT)


@pytest.mark.parametrize("window", [None, 1, 3])
def test_time_attention_is_masked_attention_over_one_cell(window):
    layer = TimeAttention(6, SIZE, window).double()
    x = double(1, 6, 7, 2, 2)
    tokens = x.permute(0, 3, 4, 2, 1).reshape(4, 7, 6)
    q, k, v = heads(layer.to_qkv, tokens, 2)
    angles = rotary_angles(7, 8, x)
    scores = rotate(q, angles) @ rotate(k, angles).mT / 8**0.5
    for i in range(7):
        for j in range(7):
            if j > i or (window and j <= i - window):
                scores[..., i, j] = -torch.inf
    out = layer.to_out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
    expected = out.reshape(1, 2, 2, 7, 6).permute(0, 4, 3, 1, 2)
    torch.testing.assert_close(layer(x)[0], expected, **EXACT)


def test_a_window_bounds_what_is_remembered():
    layer = TimeAttention(6, SIZE, window=3)
    past = None
    for _ in range(6):
        _, past = layer(torch.randn(1, 6, 2, 1, 1), past)
    assert [part.shape[2] for part in past] == [2, 2]


@pytest.mark.parametrize("layer", [SpaceAttention, TimeAttention])
def test_weights_are_dropped_only_while_training(layer):
    attention, x = layer(6, AttentionSize(8, 2, dropout=0.5)).double(), double(1, 6, 4, 2, 2)
    assert torch.equal(attention.eval()(x)[0], attention(x)[0])
    assert not torch.equal(attention.train()(x)[0], attention(x)[0])


def test_sizes_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="use 1 or more"):
        TimeAttention(6, SIZE, window=0)
    with pytest.raises(ValueError, match="multiple of 4"):
        AttentionSize(dim_head=6)


def test_linear_attention_by_its_formula():
    layer = LinearSpaceAttention(6, dim_head=4, heads=2).double()
    x = double(2, 6, 3, 2, 4)
    tokens = x.permute(0, 2, 3, 4, 1).reshape(6, 8, 6)
    q, k, v = heads(layer.to_qkv, tokens, 2)
    weights = q.softmax(-1) @ k.softmax(-2).mT  # cells x cells
    out = layer.to_out((weights @ v).transpose(1, 2).flatten(2))
    expected = out.reshape(2, 3, 2, 4, 6).permute(0, 4, 1, 2, 3)
    torch.testing.assert_close(layer(x)[0], expected, **EXACT)


@pytest.mark.parametrize("length", [1, 2, 3, 7, 16])
def test_the_scan_is_the_loop(length):
    decay, value = torch.rand(2, length, 3, dtype=torch.float64), double(2, length, 3)
    state, states = torch.zeros(2, 3, dtype=torch.float64), []
    for t in range(length):
        state = decay[:, t] * state + value[:, t]
        states.append(state)
    torch.testing.assert_close(linear_scan(decay, value), torch.stack(states, 1), **EXACT)


def test_gateloop_is_its_recurrence():
    layer = GateLoop(4).double()
    x = double(1, 4, 5, 2, 2)
    state, outs = 0, []
    for t in range(5):
        decay, value, gate = layer.to_parts(x[:, :, t].movedim(1, -1)).chunk(3, dim=-1)
        state = decay.sigmoid() * state + (1 - decay.sigmoid()) * value
        outs.append(layer.to_out(state * gate * gate.sigmoid()).movedim(-1, 1))
    torch.testing.assert_close(layer(x)[0], torch.stack(outs, dim=2), **EXACT)


def test_gateloop_remembers_one_frame_of_float32():
    layer = GateLoop(6).bfloat16()
    pasts = [layer(torch.randn(1, 6, n, 2, 2, dtype=torch.bfloat16))[1] for n in (1, 9)]
    assert {past.shape for past in pasts} == {(1, 1, 2, 2, 6)}
    assert {past.dtype for past in pasts} == {torch.float32}


def test_feed_forward_is_a_gated_unit_on_every_position():
    layer, x = FeedForward(6).double(), double(1, 6, 1, 1, 2)
    for cell in range(2):
        value, gate = layer.to_inner(x[0, :, 0, 0, cell]).chunk(2)
        gelu = gate * 0.5 * (1 + torch.erf(gate / 2**0.5))
        torch.testing.assert_close(layer(x)[0, :, 0, 0, cell], layer.to_out(value * gelu), **EXACT)


def test_token_shift_moves_half_of_the_channels_by_a_frame():
    x = torch.arange(1.0, 9).view(1, 2, 4, 1, 1)
    assert TokenShift()(x)[0][0, :, :, 0, 0].tolist() == [[1, 2, 3, 4], [0, 5, 6, 7]]
