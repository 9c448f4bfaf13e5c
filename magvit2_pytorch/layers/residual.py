"""Residual blocks, plain and conditioned."""

from torch import nn

from magvit2_pytorch.layers.conv import CausalConv3d, PadMode, Triple
from magvit2_pytorch.layers.norm import AdaptiveNorm, ChannelNorm
from magvit2_pytorch.layers.stateful import Chain, Pointwise, Residual, StatefulLayer


def residual_block(
    dim: int,
    kernel_size: int | Triple = 3,
    pad_mode: PadMode = "constant",
    dim_cond: int | None = None,
) -> StatefulLayer:
    """x + conv1(silu(conv3(silu(norm(x))))), the norm adaptive if there is a condition.

    The unit of magvit2-pytorch and SoundStream (one wide convolution, one 1x1x1), with the norm
    in front: the residual stream stays unnormalised and gradients reach every depth.
    """
    norm = Pointwise(ChannelNorm(dim)) if dim_cond is None else AdaptiveNorm(dim, dim_cond)
    return Residual(
        Chain(
            (
                norm,
                Pointwise(nn.SiLU()),
                CausalConv3d(dim, dim, kernel_size, pad_mode=pad_mode),
                Pointwise(nn.SiLU()),
                CausalConv3d(dim, dim, 1),
            )
        )
    )
