"""Causal 3D convolution."""

from fractions import Fraction
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from magvit2_pytorch.functional import own_copy
from magvit2_pytorch.layers.arithmetic import Conv3d, convolve
from magvit2_pytorch.layers.stateful import ReceptiveField, StatefulLayer
from magvit2_pytorch.types import Context, Past

PadMode = Literal["constant", "replicate", "reflect", "first_frame"]
Triple = tuple[int, int, int]


def triple(size: int | tuple[int, ...]) -> Triple:
    """Returns a size for (time, height, width) from one number or three."""
    sizes = (size,) * 3 if isinstance(size, int) else tuple(size)
    if len(sizes) != 3 or any(s < 1 for s in sizes):
        raise ValueError(f"size {size}: give one positive number or (time, height, width)")
    return sizes


class CausalConv3d(StatefulLayer):
    """Convolution whose output depends on the current and earlier frames only.

    Before the first frame, time is padded with zeros (`pad_mode="constant"`) or with the first
    frame (the other modes, as a reflection in time would show it later frames). Space is padded
    by `pad_mode`, with zeros for "first_frame". With a stride in time, the window of output j ends
    on frame j * stride: the first output depends on the first frame alone, and 1 + k * stride
    frames give 1 + k outputs. `time_pad` puts fewer frames in front: with kernel - stride of them,
    k * stride frames give k outputs. A chunk of no frames changes nothing.
    Source: MAGVIT-v2 (arXiv 2310.05737), the causal 3D CNN.
    """

    def __init__(
        self,
        dim: int,
        dim_out: int,
        kernel_size: int | Triple = 3,
        stride: int | Triple = 1,
        pad_mode: PadMode = "constant",
        bias: bool = True,
        time_pad: int | None = None,
        groups: int = 1,
    ):
        super().__init__()
        kernel_size = triple(kernel_size)
        if any(size % 2 == 0 for size in kernel_size[1:]):
            raise ValueError(f"kernel {kernel_size}: height and width must be odd")
        if pad_mode not in get_args(PadMode):
            raise ValueError(f"pad_mode {pad_mode!r}: use one of {get_args(PadMode)}")
        self.time_stride = triple(stride)[0]
        if self.time_stride > kernel_size[0]:
            raise ValueError(
                f"a stride of {self.time_stride} frames with a kernel of {kernel_size[0]} skips "
                f"frames: give a kernel of {self.time_stride} frames or more"
            )
        self.time_pad = kernel_size[0] - 1 if time_pad is None else time_pad
        self.zero_start = pad_mode == "constant"
        self.conv = Conv3d(
            dim,
            dim_out,
            kernel_size,
            stride,
            padding=(0, kernel_size[1] // 2, kernel_size[2] // 2),
            padding_mode="zeros" if pad_mode in ("constant", "first_frame") else pad_mode,
            bias=bias,
            groups=groups,
        )
        space_stride, halo = self.conv.stride[1], max(kernel_size[1:]) // 2
        self.receptive_field = ReceptiveField(Fraction(space_stride), Fraction(halo), space_stride)

    def forward(self, x, past: Past = None, context: Context = Context()):
        if not x.shape[2]:
            return self._no_frames(x), () if past is None else past
        if past is None and self.time_pad and x.shape[2] == 1:
            return self._convolve_first(x), () if context.last else self._past_after_first(x)
        if past is None:
            past = self._first_past(x)
        if self.time_pad:
            x = torch.cat((past, x), dim=2)
        out = self.conv(x)
        if context.last or not self.time_pad:
            return out, ()
        # Strides need not divide the chunk: keep every frame from the next window's start.
        return out, own_copy(x[:, :, out.shape[2] * self.time_stride :])

    def _first_past(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c p h w"]:
        """Padding before the first frame."""
        # In channels-last memory. An expanded tensor has no memory format: concatenated with one
        # that has, it would cost a copy of the video into another layout, and a second one back.
        if self.zero_start:
            size = (x.shape[0], self.time_pad, *x.shape[3:], x.shape[1])
            return x.new_zeros(size).movedim(-1, 1)
        padding = x[:, :, :1].expand(-1, -1, self.time_pad, -1, -1)
        return padding.contiguous(memory_format=torch.channels_last_3d)

    def _convolve_first(self, x: Float[Tensor, "b c 1 h w"]):
        """Convolves a single frame at a third of the work.

        With zeros before it only the last tap in time counts, with copies the sum of all taps.
        """
        conv, padding = self.conv, self.conv.padding
        weight = conv.weight[:, :, -1:] if self.zero_start else conv.weight.sum(2, keepdim=True)
        if conv.padding_mode != "zeros":
            _, height, width = padding
            x = F.pad(x, (width, width, height, height, 0, 0), mode=conv.padding_mode)
            padding = (0, 0, 0)
        return convolve(x, weight, conv.bias, (1, *conv.stride[1:]), padding, conv.groups)

    def _no_frames(self, x: Float[Tensor, "b c 0 h w"]) -> Float[Tensor, "b d 0 y x"]:
        conv = self.conv
        sides = (
            (side + 2 * padding - kernel) // stride + 1
            for side, padding, kernel, stride in zip(
                x.shape[3:], conv.padding[1:], conv.kernel_size[1:], conv.stride[1:], strict=True
            )
        )
        return x.new_empty(x.shape[0], conv.out_channels, 0, *sides)

    def _past_after_first(self, x: Float[Tensor, "b c 1 h w"]) -> Float[Tensor, "b c p h w"]:
        return own_copy(torch.cat((self._first_past(x), x), dim=2)[:, :, self.time_stride :])
