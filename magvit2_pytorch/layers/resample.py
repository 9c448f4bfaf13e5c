"""Changes of the grid: space and time, down in the encoder and up in the decoder."""

from einops import rearrange
from torch import nn

from magvit2_pytorch.layers.conv import CausalConv3d, PadMode
from magvit2_pytorch.layers.stateful import Chain, Pointwise, StatefulLayer
from magvit2_pytorch.types import Context, Past


def space_downsample(dim: int, dim_out: int, pad_mode: PadMode = "constant") -> StatefulLayer:
    """Halves height and width with a strided 3x3 convolution per frame."""
    return CausalConv3d(dim, dim_out, (1, 3, 3), stride=(1, 2, 2), pad_mode=pad_mode)


def time_downsample(dim: int, dim_out: int, pad_mode: PadMode = "constant") -> StatefulLayer:
    """1 + 2k frames to 1 + k: windows of three frames that end on frames 0, 2, 4, ..."""
    return CausalConv3d(dim, dim_out, (3, 1, 1), stride=(2, 1, 1), pad_mode=pad_mode)


class DepthToSpace(StatefulLayer):
    """Channels to pixels and frames, the first `time - 1` frames of a video dropped.

    The first latent stands for one frame, every other one for `time`; dropping the leading ones
    keeps latent j on the frames that the encoder made it from. Channels are block-major,
    ((dt * space + dh) * space + dw) * C + c. Source: MAGVIT-v2 (arXiv 2310.05737), upsampler.
    """

    def __init__(self, time: int = 1, space: int = 1):
        super().__init__()
        self.time, self.space = time, space

    def forward(self, x, past: Past = None, context: Context = Context()):
        # One copy, straight into channels-last memory: what the next convolution reads fastest.
        x = rearrange(
            x,
            "b (r p q c) t h w -> b (t r) (h p) (w q) c",
            r=self.time,
            p=self.space,
            q=self.space,
        )
        x = rearrange(x, "b t h w c -> b c t h w")
        return x[:, :, self.time - 1 :] if past is None else x, ()


def upsample(dim: int, dim_out: int, time: int = 1, space: int = 1) -> StatefulLayer:
    """A 1x1x1 convolution to `time * space**2` times `dim_out` channels, then depth to space."""
    return Chain(
        (
            CausalConv3d(dim, dim_out * time * space**2, 1),
            Pointwise(nn.SiLU()),
            DepthToSpace(time, space),
        )
    )
