"""Changes of the grid: blocks of pixels as channels, strided and block-wise resampling."""

from fractions import Fraction

import torch
from einops import rearrange

from magvit2_pytorch.layers.conv import CausalConv3d, PadMode, Triple
from magvit2_pytorch.layers.stateful import Chain, ReceptiveField, StatefulLayer
from magvit2_pytorch.types import Context, Past


class SpaceToDepth(StatefulLayer):
    """Blocks of `time` x `space` x `space` pixels to channels; inverts `DepthToSpace`.

    The first frame of a video is repeated to fill a block: 1 + k * time frames become 1 + k.
    """

    def __init__(self, time: int = 1, space: int = 1):
        super().__init__()
        self.time, self.space = time, space

    def forward(self, x, past: Past = None, context: Context = Context()):
        if past is None and self.time > 1:
            x = torch.cat((x[:, :, :1].expand(-1, -1, self.time - 1, -1, -1), x), dim=2)
        x = rearrange(
            x,
            "b c (t r) (h p) (w q) -> b t h w (r p q c)",
            r=self.time,
            p=self.space,
            q=self.space,
        )
        return rearrange(x, "b t h w c -> b c t h w"), ()

    @property
    def receptive_field(self) -> ReceptiveField:
        return ReceptiveField(Fraction(self.space), align=self.space)


class DepthToSpace(StatefulLayer):
    """Channels to blocks of `time` x `space` x `space` pixels.

    The first `time - 1` frames of a video are dropped. The first latent has one frame, each later
    one `time` frames. Dropping the leading frames aligns latent j with the frames that the encoder
    made it from. Channels are block-major, ((dt * space + dh) * space + dw) * C + c. Source:
    MAGVIT-v2 (arXiv 2310.05737), upsampler.
    """

    def __init__(self, time: int = 1, space: int = 1):
        super().__init__()
        self.time, self.space = time, space

    def forward(self, x, past: Past = None, context: Context = Context()):
        # One copy, directly into channels-last memory, which the next convolution reads fastest.
        x = rearrange(
            x,
            "b (r p q c) t h w -> b (t r) (h p) (w q) c",
            r=self.time,
            p=self.space,
            q=self.space,
        )
        x = rearrange(x, "b t h w c -> b c t h w")
        return x[:, :, self.time - 1 :] if past is None else x, ()

    @property
    def receptive_field(self) -> ReceptiveField:
        return ReceptiveField(Fraction(1, self.space))


def space_downsample(dim: int, dim_out: int, pad_mode: PadMode = "constant") -> StatefulLayer:
    """Halves height and width with a strided 3x3 convolution of each frame."""
    return CausalConv3d(dim, dim_out, (1, 3, 3), stride=(1, 2, 2), pad_mode=pad_mode)


def time_downsample(dim: int, dim_out: int, pad_mode: PadMode = "constant") -> StatefulLayer:
    """Reduces 1 + 2k frames to 1 + k; windows end on even frames."""
    return CausalConv3d(dim, dim_out, (3, 1, 1), stride=(2, 1, 1), pad_mode=pad_mode)


def upsample(
    dim: int,
    dim_out: int,
    time: int = 1,
    space: int = 1,
    kernel_size: int | Triple = 1,
    pad_mode: PadMode = "constant",
) -> StatefulLayer:
    """Convolution to `dim_out * time * space**2` channels, then depth to space."""
    conv = CausalConv3d(dim, dim_out * time * space**2, kernel_size, pad_mode=pad_mode)
    return Chain((conv, DepthToSpace(time, space)))
