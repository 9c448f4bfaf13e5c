import pytest
import torch
from torch import nn
from torch.nn import functional as F

from magvit2_pytorch.layers.resample import LappedFilter, SpaceToDepth
from magvit2_pytorch.metrics.quality import block_edges
from magvit2_pytorch.tokenizer.build import input_layer, output_layer
from tests.conftest import build, random_video

PATCHES = [(1, 1), (1, 2), (2, 1), (2, 4)]


def pixels(num_frames=5):
    return torch.randn(2, 3, num_frames, 8, 8, dtype=torch.float64)


def convs_of(layer):
    return [module for module in layer.modules() if isinstance(module, nn.Conv3d)]


@pytest.mark.parametrize("patch", PATCHES)
@pytest.mark.parametrize("kernel", [1, 3])
def test_pixels_enter_by_blocks(patch, kernel):
    layer, x = input_layer(3, 6, kernel, patch).double(), pixels()
    out, _ = layer(x)
    blocks = SpaceToDepth(*patch)(x)[0]
    side = kernel // 2
    padded = F.pad(blocks, (side, side, side, side, kernel - 1, 0))
    (conv,) = convs_of(layer)
    expected = F.conv3d(padded, conv.weight, conv.bias)
    torch.testing.assert_close(out, expected, atol=1e-12, rtol=1e-12)
    assert out.shape == (2, 6, 1 + 4 // patch[0], 8 // patch[1], 8 // patch[1])


@pytest.mark.parametrize("patch", PATCHES)
def test_pixels_leave_by_blocks(patch):
    time, space = patch
    layer = output_layer(6, 3, 3, patch).double()
    x = torch.randn(2, 6, 3, 4, 4, dtype=torch.float64)
    out, _ = layer(x)
    assert out.shape == (2, 3, 1 + 2 * time, 4 * space, 4 * space)
    (conv,) = convs_of(layer)
    hidden = F.silu(F.layer_norm(x.movedim(1, -1), (6,)).movedim(-1, 1))
    blocks = F.conv3d(F.pad(hidden, (1, 1, 1, 1, 2, 0)), conv.weight, conv.bias)
    # Going in as blocks undoes going out, but for the first: it holds its newest frame alone.
    again = SpaceToDepth(*patch)(out)[0]
    torch.testing.assert_close(again[:, :, 1:], blocks[:, :, 1:], atol=1e-12, rtol=1e-12)
    newest = slice(-3 * space**2, None)
    torch.testing.assert_close(again[:, newest, 0], blocks[:, newest, 0], atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("patch", PATCHES)
@pytest.mark.parametrize("make", [input_layer, output_layer])
def test_a_first_frame_apart_has_a_convolution_of_its_own_and_no_other(make, patch):
    sizes = (3, 6) if make is input_layer else (6, 3)
    layer = make(*sizes, 3, patch, separate_first_frame=True).double()
    x = pixels() if make is input_layer else torch.randn(2, 6, 3, 4, 4, dtype=torch.float64)
    last = layer if make is input_layer else layer.layers[-1]
    before, _ = layer(x)
    with torch.no_grad():
        for conv in convs_of(last.first):
            assert conv.kernel_size == (1, 3, 3)
            conv.weight.neg_()
    after, _ = layer(x)
    assert not torch.equal(after[:, :, :1], before[:, :, :1])
    assert torch.equal(after[:, :, 1:], before[:, :, 1:])
    with torch.no_grad():
        for conv in convs_of(last.rest):
            conv.weight.neg_()
    final, _ = layer(x)
    assert torch.equal(final[:, :, :1], after[:, :, :1])
    assert not torch.equal(final[:, :, 1:], after[:, :, 1:])


def test_lapped_patches_show_no_grid():
    """A mosaic of smooth colours, as a decoder that knows little draws it."""
    coarse = torch.randn(1, 3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    colours = F.interpolate(coarse[:, :, 0], size=16, mode="bicubic")[:, :, None]
    mosaic = colours.repeat_interleave(4, dim=3).repeat_interleave(4, dim=4)
    lapped, plain = (
        build("residual", patch_size=4, lapped_patches=lapped).decoder.layers[-1].layers[-1]
        for lapped in (True, False)
    )
    assert isinstance(lapped, LappedFilter)
    assert not isinstance(plain, LappedFilter)
    assert block_edges(mosaic + 1e-6 * torch.rand_like(mosaic), 4) > 1000
    assert block_edges(lapped(mosaic)[0], 4) < 3


@pytest.mark.parametrize("patch", [1, 2, (4, 5)])
def test_lapped_patches_need_even_ones(patch):
    with pytest.raises(ValueError, match="even number of 4"):
        build("residual", patch_size=patch, lapped_patches=True, image_size=20)


@torch.no_grad()
@pytest.mark.parametrize("output_norm", [True, False])
def test_without_a_norm_the_ends_are_linear(output_norm):
    """Of a tokenizer with a strided convolution between them, and nothing else."""
    options = dict(patch_size=4, input_conv_kernel_size=1, lapped_patches=True)
    tokenizer = build("compress_space", output_norm=output_norm, **options)
    for ends, x in ((tokenizer.encode, random_video(1)), (tokenizer.decode, None)):
        if x is None:
            x = torch.randn(tokenizer.encode(random_video(1)).shape)
        rest = ends(torch.zeros_like(x))
        double = ends(2 * x) - rest
        assert torch.allclose(double, 2 * (ends(x) - rest), atol=1e-5) != output_norm
