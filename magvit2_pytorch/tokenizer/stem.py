"""Where pixels become features, and features pixels again."""

import torch
from torch import nn

from magvit2_pytorch.layers.conv import CausalConv3d, PadMode, Triple, triple
from magvit2_pytorch.layers.norm import NormSpec
from magvit2_pytorch.layers.patch import DepthToSpace, SpaceToDepth
from magvit2_pytorch.layers.stateful import Chain, Pointwise, ReceptiveField, StatefulLayer
from magvit2_pytorch.types import Context, Past

Patch = tuple[int, int]


class FirstFrameApart(StatefulLayer):
    """A layer for video whose first output frame comes from a layer of its own.

    The layer for the rest sees the first frame too, as the past of the second.
    """

    def __init__(self, rest: StatefulLayer, first: StatefulLayer):
        super().__init__()
        self.rest, self.first = rest, first

    def forward(self, x, past: Past = None, context: Context = Context()):
        if past is not None:
            return self.rest(x, past, context)
        first, _ = self.first(x[:, :, :1], None, context)
        out, past = self.rest(x, None, context)
        return torch.cat((first, out[:, :, 1:]), dim=2), past

    @property
    def receptive_field(self) -> ReceptiveField | None:
        return self.rest.receptive_field  # the other has the same kernel in space


def input_stem(
    channels: int,
    dim: int,
    kernel: int | Triple,
    patch: Patch = (1, 1),
    pad_mode: PadMode = "constant",
    first_apart: bool = False,
) -> StatefulLayer:
    """Pixels in blocks of `patch` (frames, pixels to a side), then the first convolution."""

    def stem(time: int, space: int, kernel: int | Triple) -> StatefulLayer:
        conv = CausalConv3d(channels * time * space**2, dim, kernel, pad_mode=pad_mode)
        return conv if time * space == 1 else Chain((SpaceToDepth(time, space), conv))

    rest = stem(*patch, kernel)
    if not first_apart:
        return rest
    return FirstFrameApart(rest, stem(1, patch[1], (1, *triple(kernel)[1:])))


def output_stem(
    dim: int,
    channels: int,
    kernel: int | Triple,
    patch: Patch = (1, 1),
    pad_mode: PadMode = "constant",
    first_apart: bool = False,
    norm: NormSpec = NormSpec(),
) -> StatefulLayer:
    """Norm, activation, the last convolution, and blocks back to pixels. No squashing: linear."""

    def stem(time: int, space: int, kernel: int | Triple) -> StatefulLayer:
        conv = CausalConv3d(dim, channels * time * space**2, kernel, pad_mode=pad_mode)
        return conv if time * space == 1 else Chain((conv, DepthToSpace(time, space)))

    last = stem(*patch, kernel)
    if first_apart:
        last = FirstFrameApart(last, stem(1, patch[1], (1, *triple(kernel)[1:])))
    return Chain((norm.layer(dim), Pointwise(nn.SiLU()), last))
