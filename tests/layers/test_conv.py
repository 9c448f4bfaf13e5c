from typing import get_args

import pytest
import torch
from torch.nn import functional as F

from magvit2_pytorch.layers.conv import CausalConv3d, PadMode, triple

MODES = get_args(PadMode)
SHAPES = [
    (kernel, stride)
    for kernel in (1, 3, (3, 1, 1), (1, 3, 3), (7, 7, 7), (2, 3, 5))
    for stride in (1, (1, 2, 2), (2, 1, 1), (2, 2, 1))
    if triple(kernel)[0] >= triple(stride)[0]
]


def padded_conv(layer, x):
    """The same, written out: pad the whole video, then one plain convolution."""
    conv, before = layer.conv, layer.time_pad
    if layer.zero_start:
        x = F.pad(x, (0, 0, 0, 0, before, 0))
    else:
        x = torch.cat((x[:, :, :1].repeat(1, 1, before, 1, 1), x), dim=2)
    height, width = (size // 2 for size in conv.kernel_size[1:])
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    sides = (width, width, height, height, 0, 0)
    x = F.pad(x, sides, mode=mode)
    return F.conv3d(x, conv.weight, conv.bias, conv.stride)


@pytest.mark.parametrize("pad_mode", MODES)
@pytest.mark.parametrize(("kernel", "stride"), SHAPES, ids=str)
def test_it_is_a_convolution_of_the_padded_video(pad_mode, kernel, stride):
    layer = CausalConv3d(3, 4, kernel, stride, pad_mode=pad_mode).double()
    for num_frames in (1, 2, 5):
        x = torch.randn(2, 3, num_frames, 8, 8, dtype=torch.float64)
        out, _ = layer(x)
        torch.testing.assert_close(out, padded_conv(layer, x), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("pad_mode", MODES)
@pytest.mark.parametrize("stride", [1, (2, 1, 1)])
def test_one_frame_leaves_the_past_that_the_general_way_leaves(pad_mode, stride):
    layer = CausalConv3d(3, 4, 3, stride, pad_mode=pad_mode).double()
    x = torch.randn(1, 3, 5, 4, 4, dtype=torch.float64)
    _, past = layer(x[:, :, :1])
    rest, _ = layer(x[:, :, 1:], past)
    torch.testing.assert_close(rest, padded_conv(layer, x)[:, :, 1:], atol=1e-12, rtol=1e-12)


def test_a_strided_window_ends_on_the_newest_frame():
    layer = CausalConv3d(1, 1, (3, 1, 1), (2, 1, 1), bias=False)
    torch.nn.init.ones_(layer.conv.weight)
    frames = torch.tensor([1.0, 10, 100, 1000, 10000]).view(1, 1, 5, 1, 1)
    assert layer(frames)[0].flatten().tolist() == [1, 111, 11100]


@pytest.mark.parametrize(
    ("pad_mode", "sums"), [("constant", [11, 11110]), ("first_frame", [12, 11110])]
)
def test_with_one_frame_in_front_windows_end_on_the_second(pad_mode, sums):
    layer = CausalConv3d(1, 1, (3, 1, 1), (2, 1, 1), pad_mode, bias=False, time_pad=1)
    torch.nn.init.ones_(layer.conv.weight)
    frames = torch.tensor([1.0, 10, 100, 11000]).view(1, 1, 4, 1, 1)
    assert layer(frames)[0].flatten().tolist() == sums
    _, past = layer(frames[:, :, :2])
    assert layer(frames[:, :, 2:], past)[0].flatten().tolist() == sums[1:]


def test_sizes_without_a_middle_are_refused(without_type_checks):
    with pytest.raises(ValueError, match="odd"):
        CausalConv3d(1, 1, (3, 2, 3))
    with pytest.raises(ValueError, match="give one positive number or"):
        CausalConv3d(1, 1, (3, 3))


@pytest.mark.parametrize("pad_mode", MODES)
@pytest.mark.parametrize("kernel", [3, (3, 1, 1), (2, 3, 5)])
@pytest.mark.parametrize("stride", [1, (2, 1, 1), (2, 2, 2)])
def test_one_frame_takes_a_shorter_way_to_the_same_place(pad_mode, kernel, stride):
    layer = CausalConv3d(3, 4, kernel, stride, pad_mode=pad_mode).double()
    x = torch.randn(2, 3, 1, 6, 8, dtype=torch.float64)
    out, past = layer(x)
    # Told what lies before the first frame, it goes the way of every other chunk.
    general, general_past = layer(x, layer._first_past(x))
    torch.testing.assert_close(out, general, atol=1e-12, rtol=1e-12)
    assert torch.equal(past, general_past)


@pytest.mark.parametrize("pad_mode", MODES)
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (1, 1), (2, 2), (3, 2), (3, 3), (5, 2)])
def test_strides_need_not_divide_the_chunks(kernel, stride, pad_mode):
    layer = CausalConv3d(3, 4, (kernel, 3, 3), (stride, 1, 1), pad_mode=pad_mode).double()
    x = torch.randn(1, 3, 11, 4, 4, dtype=torch.float64)
    expected = padded_conv(layer, x)
    for sizes in ((1, 3, 4, 3), (4, 3, 4), (3, 8)):
        past, parts = None, []
        for chunk in x.split(sizes, dim=2):
            out, past = layer(chunk, past)
            parts.append(out)
        torch.testing.assert_close(torch.cat(parts, dim=2), expected, atol=1e-12, rtol=1e-12)


def test_a_stride_that_would_skip_frames_is_refused():
    with pytest.raises(ValueError, match="stride of 3 frames with a kernel of 2 skips frames"):
        CausalConv3d(1, 1, (2, 3, 3), (3, 1, 1))


@pytest.mark.parametrize("pad_mode", ["zeros", "circular"])
def test_pad_modes_of_pytorch_that_are_none_here_are_refused(pad_mode, without_type_checks):
    with pytest.raises(ValueError, match=f"pad_mode '{pad_mode}': use one of"):
        CausalConv3d(1, 1, pad_mode=pad_mode)
