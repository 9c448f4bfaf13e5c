import pytest
import torch

from magvit2_pytorch.layers.norm import AdaptiveNorm, ChannelNorm
from magvit2_pytorch.layers.resample import DepthToSpace, SpaceToDepth
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
