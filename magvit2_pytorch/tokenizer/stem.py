"""Where pixels become features, and features pixels again."""

import torch
from einops import rearrange
from torch import nn

from magvit2_pytorch.layers.conv import CausalConv3d, PadMode, Triple, triple
from magvit2_pytorch.layers.norm import ChannelNorm
from magvit2_pytorch.layers.resample import DepthToSpace
from magvit2_pytorch.layers.stateful import Chain, Pointwise, StatefulLayer
from magvit2_pytorch.types import Context, Past


class SpaceToDepth(nn.Module):
    """Blocks of `size` x `size` pixels to channels, in the order that DepthToSpace undoes."""

    def __init__(self, size: int):
        super().__init__()
        self.size = size

    def forward(self, x):
        x = rearrange(x, "b c t (h p) (w q) -> b t h w (p q c)", p=self.size, q=self.size)
        return rearrange(x, "b t h w c -> b c t h w")


class FirstFrameApart(StatefulLayer):
    """A causal convolution, but the first frame of a video goes through one of its own."""

    def __init__(self, rest: CausalConv3d, first: CausalConv3d):
        super().__init__()
        self.rest, self.first = rest, first

    def forward(self, x, past: Past = None, context: Context = Context()):
        if past is not None:
            return self.rest(x, past, context)
        first, _ = self.first(x[:, :, :1], None, context)
        out, past = self.rest(x, None, context)
        return torch.cat((first, out[:, :, 1:]), dim=2), past


def _conv(dim: int, dim_out: int, kernel: int | Triple, pad_mode: PadMode, first_apart: bool):
    rest = CausalConv3d(dim, dim_out, kernel, pad_mode=pad_mode)
    if not first_apart:
        return rest
    flat = (1, *triple(kernel)[1:])
    return FirstFrameApart(rest, CausalConv3d(dim, dim_out, flat, pad_mode=pad_mode))


def input_stem(
    channels: int,
    dim: int,
    kernel: int | Triple,
    patch_size: int = 1,
    pad_mode: PadMode = "constant",
    first_apart: bool = False,
) -> StatefulLayer:
    """Pixels in blocks of `patch_size`, then the first convolution."""
    conv = _conv(channels * patch_size**2, dim, kernel, pad_mode, first_apart)
    return conv if patch_size == 1 else Chain((Pointwise(SpaceToDepth(patch_size)), conv))


def output_stem(
    dim: int,
    channels: int,
    kernel: int | Triple,
    patch_size: int = 1,
    pad_mode: PadMode = "constant",
    first_apart: bool = False,
) -> StatefulLayer:
    """Norm, activation, the last convolution, and blocks back to pixels. No squashing: linear."""
    conv = _conv(dim, channels * patch_size**2, kernel, pad_mode, first_apart)
    unpatch = () if patch_size == 1 else (DepthToSpace(space=patch_size),)
    return Chain((Pointwise(ChannelNorm(dim)), Pointwise(nn.SiLU()), conv, *unpatch))
