"""What layers are put together with: chains, residuals, units and changes of the grid."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from magvit2_pytorch.layers.attention import TokenShift
from magvit2_pytorch.layers.conv import CausalConv3d
from magvit2_pytorch.layers.resample import (
    EndPaddedDownsample,
    LinearTimeUpsample,
    Mix,
    NearestUpsample,
    TimeAverage,
    space_downsample,
    time_downsample,
    upsample,
)
from magvit2_pytorch.layers.residual import factorized_residual_block, residual_block
from magvit2_pytorch.layers.stateful import Chain, Pointwise, Residual
from magvit2_pytorch.types import Context
from tests.conftest import build


def random_features(dim=4, num_frames=5):
    return torch.randn(2, dim, num_frames, 4, 6, dtype=torch.float64)


def test_a_chain_hands_each_layer_its_own_past():
    chain = Chain((TokenShift(), Pointwise(nn.Tanh()), TokenShift()))
    x = random_features()
    first, past = chain(x[:, :, :2])
    assert len(past) == 3
    assert past[1] == ()
    rest, _ = chain(x[:, :, 2:], past)
    whole = TokenShift()(TokenShift()(x)[0].tanh())[0]
    assert torch.equal(torch.cat((first, rest), dim=2), whole)


def test_a_past_of_another_chain_is_refused():
    with pytest.raises(ValueError, match="zip"):
        Chain((Pointwise(nn.Tanh()), Pointwise(nn.Tanh())))(random_features(), ((),))


def test_a_residual_adds_and_passes_the_past_through():
    x = random_features()
    out, past = Residual(TokenShift())(x)
    shifted, expected_past = TokenShift()(x)
    assert torch.equal(out, x + shifted)
    assert torch.equal(past, expected_past)


@pytest.mark.parametrize("dim_cond", [None, 3])
def test_a_residual_unit_is_norm_convolution_pointwise_convolution(dim_cond):
    unit, x = residual_block(4, dim_cond=dim_cond).double(), random_features()
    cond = None if dim_cond is None else torch.randn(2, dim_cond, dtype=torch.float64)
    out, _ = unit(x, None, Context(cond=cond))
    norm, _, conv, _, conv_out = unit.layer.layers
    hidden, _ = norm(x, None, Context(cond=cond))
    hidden, _ = conv(F.silu(hidden))
    weight = conv_out.conv.weight[:, :, 0, 0, 0]
    mixed = torch.einsum("d c, b c t h w -> b d t h w", weight, F.silu(hidden))
    expected = x + mixed + conv_out.conv.bias[:, None, None, None]
    torch.testing.assert_close(out, expected, atol=1e-10, rtol=1e-10)
    assert conv.conv.kernel_size == (3, 3, 3)


def test_a_factorized_unit_starts_as_the_identity_and_learns():
    unit, x = factorized_residual_block(4).double(), random_features()
    with torch.no_grad():
        unit.layer.layers[-1].conv.bias.zero_()
    assert torch.equal(unit(x)[0], x)
    unit(x)[0].square().sum().backward()
    assert unit.layer.layers[-1].conv.weight.grad.abs().sum() > 0
    kernels = [m.kernel_size for m in unit.modules() if isinstance(m, nn.Conv3d)]
    assert kernels == [(1, 3, 3), (3, 1, 1)]


@pytest.mark.parametrize("pad_mode", ["constant", "replicate", "reflect"])
def test_grids_shrink_and_grow_by_two(pad_mode):
    x = random_features()
    smaller, _ = space_downsample(4, 8, pad_mode).double()(x)
    assert smaller.shape == (2, 8, 5, 2, 3)
    assert upsample(8, 4, space=2).double()(smaller)[0].shape == x.shape
    slower, _ = time_downsample(4, 8, pad_mode).double()(x)
    assert slower.shape == (2, 8, 3, 4, 6)
    assert upsample(8, 4, time=2).double()(slower)[0].shape == x.shape


def test_frames_come_back_in_the_place_they_were_made_from():
    """Output frame t of the upsampler is made by the latent that covers frame t."""
    x = random_features(num_frames=3)
    layer = upsample(4, 4, time=2).double()
    out, _ = layer(x)
    for latent in range(3):
        changed = x.clone()
        changed[:, :, latent] += 1
        moved = (layer(changed)[0] - out).abs().amax(dim=(0, 1, 3, 4)).gt(0)
        frames = [max(0, 2 * latent - 1), 2 * latent] if latent else [0]
        assert moved.nonzero().flatten().tolist() == frames


def test_linear_doubling_is_interpolation_of_the_first_frames_and_of_the_rest():
    x = random_features(num_frames=7)
    layer, linear = LinearTimeUpsample(num_first=2), dict(scale_factor=(2, 1, 1), mode="trilinear")
    parts = [F.interpolate(part, **linear) for part in x.split([2, 5], dim=2)]
    expected = torch.cat(parts, dim=2)
    close = dict(atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(layer(x, None, Context(last=True))[0], expected, **close)
    found, past, sizes = [], None, [2, 1, 3, 1, 0]
    for number, piece in enumerate(x.split(sizes, dim=2)):
        out, past = layer(piece, past, Context(last=number == 4))
        found.append(out)
    assert [out.shape[2] for out in found] == [4, 1, 6, 2, 1]
    torch.testing.assert_close(torch.cat(found, dim=2), expected, **close)


def test_halving_and_doubling_space_see_what_they_say():
    """Of ones with zeros below and on the right; every pixel four times."""
    x, down = torch.ones(1, 2, 1, 4, 4, dtype=torch.float64), EndPaddedDownsample(2).double()
    weight, bias = down.conv.weight.sum(1), down.conv.bias
    corner, inside = weight[..., :2, :2].sum((-1, -2, -3)), weight.sum((-1, -2, -3))
    out, _ = down(x)
    torch.testing.assert_close(out[0, :, 0, 0, 0], inside + bias, atol=1e-12, rtol=0)
    torch.testing.assert_close(out[0, :, 0, 1, 1], corner + bias, atol=1e-12, rtol=0)
    x = random_features()
    expected = x.repeat_interleave(2, 3).repeat_interleave(2, 4).repeat_interleave(3, 2)
    assert torch.equal(NearestUpsample(time=3, space=2)(x)[0], expected)


def test_a_mix_begins_with_most_of_the_plain_layer():
    x = random_features(num_frames=4)
    mix = Mix(TimeAverage("first_frame"), time_downsample(4, 4)).double()
    mix.conv = CausalConv3d(4, 4, 3, (2, 1, 1), "first_frame", time_pad=1).double()
    first = x[:, :, :1]
    means = F.avg_pool3d(torch.cat((first, x), dim=2), (3, 1, 1), (2, 1, 1))
    share = torch.tensor(2.0).double().sigmoid()
    expected = share * means + (1 - share) * mix.conv(x)[0]
    torch.testing.assert_close(mix(x)[0], expected, atol=1e-12, rtol=0)
    zeros = F.avg_pool3d(F.pad(x, (0, 0, 0, 0, 1, 0)), (3, 1, 1), (2, 1, 1))
    torch.testing.assert_close(TimeAverage()(x)[0], zeros, atol=1e-12, rtol=0)


def test_groups_of_channels_do_not_see_each_other_within_a_frame():
    block = build(("factorized_residual", {"group_width": 4})).encoder.layers[1].layers[0]
    space = block.layer.layers[1]
    x = random_features(8).float()
    moved = torch.cat((x[:, :4] + 1, x[:, 4:]), dim=1)
    before, after = (space(features)[0] for features in (x, moved))
    assert torch.equal(before[:, 4:], after[:, 4:])
    assert not torch.equal(before[:, :4], after[:, :4])
    with pytest.raises(ValueError, match="8 channels do not divide into groups of 3"):
        factorized_residual_block(8, group_width=3)
