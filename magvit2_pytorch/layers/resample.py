"""Downsampling and upsampling in space and time."""

from magvit2_pytorch.layers.conv import CausalConv3d, PadMode, Triple
from magvit2_pytorch.layers.patch import DepthToSpace
from magvit2_pytorch.layers.stateful import Chain, StatefulLayer


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
