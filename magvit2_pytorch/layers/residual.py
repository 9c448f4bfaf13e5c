"""Residual blocks, with and without a condition."""

from torch import nn
from torch.nn import init

from magvit2_pytorch.layers.conv import CausalConv3d, PadMode, Triple
from magvit2_pytorch.layers.norm import AdaptiveNorm, NormSpec
from magvit2_pytorch.layers.stateful import Chain, Pointwise, Residual, StatefulLayer


def residual_block(
    dim: int,
    kernel_size: int | Triple = 3,
    pad_mode: PadMode = "constant",
    dim_cond: int | None = None,
    norm: NormSpec = NormSpec(),
) -> StatefulLayer:
    """x + conv1(silu(conv3(silu(norm(x))))), with an adaptive norm if there is a condition.

    The residual unit of magvit2-pytorch and SoundStream (a 3x3x3 and a 1x1x1 convolution), with
    a norm before them: the residual stream is not normalized and gradients reach every depth.
    """
    first_norm = norm.layer(dim) if dim_cond is None else AdaptiveNorm(dim, dim_cond, norm)
    return Residual(
        Chain(
            (
                first_norm,
                Pointwise(nn.SiLU()),
                CausalConv3d(dim, dim, kernel_size, pad_mode=pad_mode),
                Pointwise(nn.SiLU()),
                CausalConv3d(dim, dim, 1),
            )
        )
    )


def factorized_residual_block(
    dim: int,
    pad_mode: PadMode = "constant",
    norm: NormSpec = NormSpec(),
    group_width: int | None = None,
) -> StatefulLayer:
    """x + conv3x1x1(silu(conv1x3x3(norm(x)))): 12 weights per pair of channels instead of 27.

    With `group_width` the convolution over space connects that many channels with each other, and
    the one over time, which sees all, mixes the groups. The last convolution starts at zero, so
    that the block starts as the identity and a deep stack trains at high learning rates. Sources:
    R(2+1)D (arXiv 1711.11248); for groups, ResNeXt (arXiv 1611.05431); for the zero, Fixup
    (arXiv 1901.09321). Raises `ValueError` if the groups do not divide `dim`.
    """
    if group_width is not None and (group_width < 1 or dim % group_width):
        raise ValueError(f"{dim} channels do not divide into groups of {group_width}")
    groups = 1 if group_width is None else dim // group_width
    time = CausalConv3d(dim, dim, (3, 1, 1), pad_mode=pad_mode)
    init.zeros_(time.conv.weight)
    space = CausalConv3d(dim, dim, (1, 3, 3), pad_mode=pad_mode, groups=groups)
    return Residual(Chain((norm.layer(dim), space, Pointwise(nn.SiLU()), time)))


def basic_residual_block(
    dim: int,
    dim_out: int,
    kernel_size: int | Triple = 3,
    pad_mode: PadMode = "constant",
    norm: NormSpec = NormSpec(),
    bias: bool = False,
) -> StatefulLayer:
    """x + conv3(silu(norm(conv3(silu(norm(x)))))), with a 1x1x1 shortcut where `dim` changes.

    Nothing is scaled. No convolution has a bias in the source, MAGVIT-v2 (arXiv 2310.05737),
    figure 7, with the details of O2-MAGVIT2's code; all have one in VidTok (arXiv 2412.13061).
    """

    def half(dim: int, dim_out: int) -> tuple[StatefulLayer, ...]:
        conv = CausalConv3d(dim, dim_out, kernel_size, pad_mode=pad_mode, bias=bias)
        return norm.layer(dim), Pointwise(nn.SiLU()), conv

    shortcut = None if dim == dim_out else CausalConv3d(dim, dim_out, 1, bias=bias)
    return Residual(Chain((*half(dim, dim_out), *half(dim_out, dim_out))), shortcut)
