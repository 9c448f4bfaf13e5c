import pytest
import torch

from magvit2_pytorch.layers.norm import AdaptiveNorm, ChannelNorm
from magvit2_pytorch.layers.resample import (
    DepthToSpace,
    LappedFilter,
    SpaceToDepth,
    lapped_matrix,
)
from magvit2_pytorch.types import Context


def test_channel_norm_by_its_formula():
    norm = ChannelNorm(6).double()
    torch.nn.init.normal_(norm.norm.weight)
    torch.nn.init.normal_(norm.norm.bias)
    x = torch.randn(2, 6, 3, 4, 5, dtype=torch.float64)
    centred = x - x.mean(dim=1, keepdim=True)
    expected = centred / (centred.square().mean(dim=1, keepdim=True) + 1e-5).sqrt()
    gain, shift = (v.view(1, -1, 1, 1, 1) for v in (norm.norm.weight, norm.norm.bias))
    torch.testing.assert_close(norm(x), expected * gain + shift, atol=1e-12, rtol=1e-12)


def test_adaptive_norm_scales_and_shifts_each_sample_by_its_condition():
    norm = AdaptiveNorm(4, 3).double()
    x, cond = (torch.randn(s, dtype=torch.float64) for s in ((2, 4, 3, 2, 2), (2, 3)))
    out, _ = norm(x, None, Context(cond=cond))
    gamma, beta = norm.to_gamma_beta(cond)[..., None, None, None].chunk(2, dim=1)
    torch.testing.assert_close(out, norm.module(x) * (1 + gamma) + beta)


@pytest.mark.parametrize(("time", "space"), [(1, 2), (2, 1), (4, 8), (2, 3)])
def test_space_to_depth_and_back_is_the_same(time, space):
    x = torch.randn(2, 3, 1 + 2 * time, 2 * space, space)
    blocks, _ = SpaceToDepth(time, space)(x)
    assert blocks.shape == (2, 3 * time * space**2, 3, 2, 1)
    assert torch.equal(DepthToSpace(time, space)(blocks)[0], x)


def test_the_first_block_is_the_first_frame_repeated():
    x = torch.arange(5.0).view(1, 1, 5, 1, 1)
    assert SpaceToDepth(4)(x)[0][0, :, :, 0, 0].T.tolist() == [[0, 0, 0, 0], [1, 2, 3, 4]]


def test_depth_to_space_is_block_major():
    channels = torch.arange(8.0).view(1, 8, 1, 1, 1)  # dt, dh, dw of one channel each
    out, _ = DepthToSpace(2, 2)(channels, ())
    assert out[0, 0].tolist() == [[[0, 1], [2, 3]], [[4, 5], [6, 7]]]


def test_channel_norm_sees_one_position():
    norm, x = ChannelNorm(6), torch.randn(2, 6, 3, 4, 5)
    changed = x.clone()
    changed[:, :, 1, 2, 3] += torch.randn(2, 6)
    moved = (norm(changed) - norm(x)).abs().amax(dim=(0, 1))
    assert moved.nonzero().tolist() == [[1, 2, 3]]


@pytest.mark.parametrize(("time", "space"), [(1, 2), (2, 1), (4, 8), (2, 3)])
def test_later_chunks_are_whole_blocks(time, space):
    x = torch.randn(2, 3, 2 * time, 2 * space, space)
    blocks, past = SpaceToDepth(time, space)(x, ())
    assert past == ()
    assert blocks.shape[2] == 2
    assert torch.equal(DepthToSpace(time, space)(blocks, ())[0], x)


def test_the_first_latent_makes_one_frame_the_newest_of_its_block():
    channels = torch.arange(8.0).view(1, 4, 2, 1, 1)
    out, _ = DepthToSpace(4)(channels)
    assert out.flatten().tolist() == [6, 1, 3, 5, 7]


@pytest.mark.parametrize("period", [4, 6, 8])
def test_lapped_filter_is_undone_by_the_lapped_transform(period):
    x = torch.randn(2, 3, 2, 2 * period, 3 * period, dtype=torch.float64)
    layer, half = LappedFilter(period), period // 2
    filtered, past = layer(x)
    assert past == ()
    again = filtered.clone()
    for start in range(half, x.shape[3] - period, period):
        rows = again[:, :, :, start : start + period]
        rows.copy_(torch.einsum("ij,bctjw->bctiw", lapped_matrix(period), rows))
    for start in range(half, x.shape[4] - period, period):
        columns = again[..., start : start + period]
        columns.copy_(torch.einsum("ij,bcthj->bcthi", lapped_matrix(period), columns))
    torch.testing.assert_close(again, x, atol=1e-12, rtol=0)
    torch.testing.assert_close(filtered.square().sum(), x.square().sum())
    assert not torch.allclose(filtered[..., half:-half, half:-half], x[..., half:-half, half:-half])
    flat = torch.full((1, 1, 1, 2 * period, 2 * period), 0.3, dtype=torch.float64)
    torch.testing.assert_close(layer(flat)[0], flat, atol=1e-12, rtol=0)


@pytest.mark.parametrize(("period", "blocks_db", "lapped_db"), [(4, 7.57, 7.95), (8, 8.83, 9.22)])
def test_lapped_filters_have_the_coding_gain_of_the_lapped_transform(period, blocks_db, lapped_db):
    """Of a first-order process with correlation 0.95; figures of Malvar's book, within 0.03 dB."""
    number = torch.arange(9 * period)
    covariance = 0.95 ** (number[:, None] - number).abs().double()
    for matrix, wanted in ((torch.eye(period), blocks_db), (lapped_matrix(period), lapped_db)):
        filters = torch.eye(len(number), dtype=torch.float64)
        for start in range(period // 2, len(number) - period, period):
            border = slice(start, start + period)
            filters[border, border] = matrix.double()
        block = slice(4 * period, 5 * period)
        variances = torch.linalg.eigvalsh((filters @ covariance @ filters.T)[block, block])
        gain = 10 * (variances.mean() / variances.log().mean().exp()).log10()
        assert abs(float(gain) - wanted) < 0.03


@pytest.mark.parametrize("period", [2, 3, 5])
def test_lapped_filters_need_even_blocks(period):
    with pytest.raises(ValueError, match="even number of 4"):
        LappedFilter(period)
