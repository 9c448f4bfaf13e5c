import itertools

import pytest
import torch
from torch.nn import functional as F

from magvit2_pytorch.discriminators.network import BlurPool

LENGTHS = [1, 2, 3, 4, 5, 8, 9, 17]
TAPS = {2: [1, 1], 3: [1, 2, 1], 4: [1, 3, 3, 1], 5: [1, 4, 6, 4, 1]}


def reflected(position, size):
    """Step by step between the mirrors."""
    while not 0 <= position < size:
        position = -position if position < 0 else 2 * (size - 1) - position
    return position


def one_line(line, taps, stride):
    """The definition, a value at a time."""
    if len(line) == 1:
        return line
    before = (len(taps) - 1) // 2
    return [
        sum(
            tap * line[reflected(start + k - before, len(line))] for k, tap in enumerate(taps)
        ) / sum(taps)
        for start in range(0, len(line), stride)
    ]  # fmt: skip


def looped(x, taps, stride):
    for axis in range(2, x.ndim):
        lines = x.movedim(axis, -1)
        done = [one_line(line.tolist(), taps, stride) for line in lines.flatten(0, -2)]
        x = torch.tensor(done, dtype=x.dtype).unflatten(0, lines.shape[:-1]).movedim(-1, axis)
    return x


def dense(x, num_axes):
    """O2-MAGVIT2's way: reflect, then one strided depthwise convolution."""
    taps = torch.tensor([1.0, 2, 1], dtype=x.dtype) / 4
    kernel = taps
    for _ in range(num_axes - 1):
        kernel = kernel[..., None] * taps
    kernel = kernel.expand(x.shape[1], 1, *kernel.shape)
    conv = F.conv2d if num_axes == 2 else F.conv3d
    padded = F.pad(x, (1,) * 2 * num_axes, mode="reflect")
    return conv(padded, kernel, stride=2, groups=x.shape[1])


def layouts(x):
    last = torch.channels_last if x.ndim == 4 else torch.channels_last_3d
    return x, x.contiguous(memory_format=last), x.transpose(-1, -2).contiguous().transpose(-1, -2)


@pytest.mark.parametrize("taps", TAPS.values(), ids=str)
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("stride", [1, 2])
def test_it_is_the_filter_written_out(taps, length, stride):
    for shape in [(2, 3, length), (1, 2, length, 3), (2, 3, 4, length, 5), (2, 1, 1, 2, length)]:
        x = torch.randn(shape, dtype=torch.float64)
        out = BlurPool(len(taps), stride)(x)
        torch.testing.assert_close(out, looped(x, taps, stride), atol=1e-12, rtol=0)


@pytest.mark.parametrize("size", itertools.product([2, 5, 8], repeat=3), ids=str)
def test_three_taps_are_the_depthwise_convolution_of_open_magvit2(size):
    for num_axes in (2, 3):
        x = torch.randn(2, 3, *size[:num_axes], dtype=torch.float64)
        for layout in layouts(x):
            out = BlurPool()(layout)
            torch.testing.assert_close(out, dense(x, num_axes), atol=1e-12, rtol=0)


@pytest.mark.parametrize("num_taps", [1, 3, 4])
def test_the_layout_of_memory_is_kept(num_taps):
    x = torch.randn(2, 4, 4, 6, 8)
    plain, last, _ = layouts(x)
    out = BlurPool(num_taps)(last)
    assert torch.allclose(out, BlurPool(num_taps)(plain), atol=1e-6)
    if num_taps > 1:
        assert BlurPool(num_taps)(plain).is_contiguous()
        assert out.is_contiguous(memory_format=torch.channels_last_3d)


def test_one_tap_is_plain_subsampling():
    x = torch.randn(2, 3, 5, 4, 1)
    assert torch.equal(BlurPool(1)(x), x[:, :, ::2, ::2, ::2])
    assert torch.equal(BlurPool(1, stride=1)(x), x)


@pytest.mark.parametrize("num_taps", [1, 2, 3, 4, 7])
def test_a_constant_stays_the_constant_and_an_axis_of_one_stays_as_it_is(num_taps):
    for size in itertools.product([1, 2, 3, 6], repeat=2):
        out = BlurPool(num_taps)(torch.full((1, 2, 1, *size), 3.0))
        assert out.shape == (1, 2, 1, *(-(-n // 2) for n in size))
        torch.testing.assert_close(out, torch.full_like(out, 3.0))


@pytest.mark.parametrize("num_taps", [3, 4])
def test_it_differentiates_twice(num_taps):
    x = torch.randn(1, 2, 3, 2, 4, dtype=torch.float64, requires_grad=True)
    blur = BlurPool(num_taps)
    assert torch.autograd.gradcheck(lambda x: blur(x).square(), x)
    assert torch.autograd.gradgradcheck(lambda x: blur(x).square(), x)


def test_it_has_no_state():
    blur = BlurPool()
    assert not list(blur.parameters())
    assert not blur.state_dict()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_type_is_kept(dtype):
    x = torch.randn(1, 2, 3, 4, 5)
    out = BlurPool()(x.to(dtype))
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), BlurPool()(x), atol=2e-2, rtol=2e-2)


def test_blurs_without_taps_are_refused():
    with pytest.raises(ValueError, match="a blur of 0 taps: use 3 or 4, or 1 for no blur"):
        BlurPool(0)
