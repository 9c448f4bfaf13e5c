"""Anti-aliased residual network for images (2 axes) and clips (3)."""

from itertools import pairwise
from math import comb, prod
from typing import Literal, get_args

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from magvit2_pytorch.functional import at_least_float32
from magvit2_pytorch.layers.arithmetic import CONVS, Linear


class BlurPool(nn.Module):
    """Subsamples every axis after the first two, behind a binomial low-pass filter.

    An axis of n positions becomes one of ceil(n / `stride`); an axis of one position is unchanged.
    The padding is by reflection. The filter is a row of Pascal's triangle, the same for all axes:
    3 taps are [1, 2, 1] / 4 and 4 taps [1, 3, 3, 1] / 8. One tap is plain subsampling without a
    filter, for comparison.
    Source: Making Convolutional Networks Shift-Invariant Again (arXiv 1904.11486).
    """

    taps: Tensor

    def __init__(self, num_taps: int = 3, stride: int = 2):
        super().__init__()
        if num_taps < 1:
            raise ValueError(f"a blur of {num_taps} taps: use 3 or 4, or 1 for no blur")
        self.stride = stride
        row = [comb(num_taps - 1, k) / 2 ** (num_taps - 1) for k in range(num_taps)]
        self.register_buffer("taps", torch.tensor(row), persistent=False)

    def forward(self, x: Float[Tensor, "b c ..."]) -> Float[Tensor, "b c ..."]:
        if len(self.taps) == 1:
            return x[(..., *(slice(None, None, self.stride),) * (x.ndim - 2))]
        # One matrix product per axis. Forward and backward take 3/5 of the time of strided slices
        # and half that of a depthwise convolution (32 channels, 5 x 256 x 256, one core). It works
        # on axes of any length and can be differentiated any number of times.
        channels_last = x.stride(1) == 1 and not x.is_contiguous()
        if channels_last:
            x = x.movedim(1, -1)
        first = 1 if channels_last else 2
        for axis in range(first, x.ndim - channels_last):
            if x.shape[axis] > 1:
                x = matmul_along_axis(axis, self.matrix(x.shape[axis]).to(x.dtype), x)
        return x.movedim(-1, 1) if channels_last else x

    def matrix(self, size: int) -> Float[Tensor, "n size"]:
        """Matrix of padding, filter and subsampling for an axis of this size."""
        device, num_taps = self.taps.device, len(self.taps)
        position = torch.arange(size, device=device)
        offset = torch.arange(num_taps, device=device) - (num_taps - 1) // 2
        # Reflected at both ends, an axis has the period 2 (size - 1).
        period = 2 * (size - 1)
        source = (position[None, :: self.stride] + offset[:, None]) % period
        source = torch.minimum(source, period - source)
        return (self.taps[:, None, None] * (source[..., None] == position)).sum(0)


def matmul_along_axis(
    axis: int, matrix: Float[Tensor, "n m"], x: Float[Tensor, "..."]
) -> Float[Tensor, "..."]:
    """Multiplies `x` by the matrix along one axis."""
    if axis == x.ndim - 1:
        return x @ matrix.T
    return (matrix @ x.flatten(axis + 1)).unflatten(-1, x.shape[axis + 1 :])


HeadName = Literal["pooled", "patch", "fixed"]


class PooledHead(nn.Module):
    """One logit from the mean of a map of any size."""

    def __init__(self, dim: int):
        super().__init__()
        self.to_logit = build_mlp(dim, dim)

    def forward(self, x: Float[Tensor, "b d ..."]) -> Float[Tensor, " b"]:
        return self.to_logit(x.flatten(2).mean(2)).squeeze(1)


class PatchHead(nn.Module):
    """One logit at every position of the map: PatchGAN (arXiv 1611.07004)."""

    def __init__(self, num_axes: int, dim: int):
        super().__init__()
        self.to_logits = CONVS[num_axes](dim, 1, 1)

    def forward(self, x: Float[Tensor, "b d ..."]) -> Float[Tensor, "b ..."]:
        return self.to_logits(x).squeeze(1)


class FixedHead(nn.Module):
    """One logit from a full map of one size, as in O2-MAGVIT2."""

    def __init__(self, dim: int, input_size: tuple[int, ...], num_halvings: int):
        super().__init__()
        self.input_size = input_size
        self.map_size = input_size
        for _ in range(num_halvings):
            self.map_size = tuple(-(-size // 2) for size in self.map_size)
        self.to_logit = build_mlp(prod(self.map_size) * dim, dim)

    def forward(self, x: Float[Tensor, "b d ..."]) -> Float[Tensor, " b"]:
        if x.shape[2:] != self.map_size:
            raise ValueError(
                f"the map has size {tuple(x.shape[2:])}, but head 'fixed' has weights for "
                f"{self.map_size}: give views of size {self.input_size}, or use head 'pooled'"
            )
        return self.to_logit(rearrange(x, "b ... -> b (...)")).squeeze(1)


def build_mlp(dim_in: int, dim: int) -> nn.Sequential:
    """Builds a hidden layer of `dim` channels and a logit."""
    return nn.Sequential(Linear(dim_in, dim), nn.LeakyReLU(0.2), Linear(dim, 1))


def build_head(
    head: HeadName, num_axes: int, dim: int, input_size: tuple[int, ...] | None, num_halvings: int
) -> nn.Module:
    """Builds a head by name; only "fixed" takes, and needs, an `input_size`."""
    if head not in get_args(HeadName):
        raise ValueError(f"head {head!r}: use one of {get_args(HeadName)}")
    if head != "fixed":
        if input_size is not None:
            raise ValueError(f"input_size {input_size} is for head 'fixed', not for {head!r}")
        return PatchHead(num_axes, dim) if head == "patch" else PooledHead(dim)
    axes = ("frames", "height", "width")[-num_axes:]
    if input_size is None or len(input_size) != num_axes or min(input_size) < 1:
        raise ValueError(f"input_size {input_size}: head 'fixed' needs ({', '.join(axes)})")
    return FixedHead(dim, tuple(input_size), num_halvings)


BlockOrder = Literal["o2", "paper"]
CHANNELS = (1, 3, 4)
MEMORY_FORMATS = {2: torch.channels_last, 3: torch.channels_last_3d}
NEGATIVE_SLOPE = 0.2


def leaky_relu(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Leaky ReLU in place: no backward pass needs the overwritten values."""
    return F.leaky_relu(x, NEGATIVE_SLOPE, inplace=True)


class DownBlock(nn.Module):
    """Residual block of two convolutions that halves the size by `BlurPool`.

    The output is (main + shortcut) / sqrt(2), which keeps the variance. With `block_order` "o2"
    the second convolution changes the number of channels, as in MAGVIT and O2-MAGVIT2. With
    "paper" the first one does, at the higher resolution, as in MAGVIT-v2 (arXiv 2310.05737).
    """

    def __init__(
        self, num_axes: int, dim: int, dim_out: int, block_order: BlockOrder, blur_taps: int
    ):
        super().__init__()
        conv = CONVS[num_axes]
        dim_hidden = dim if block_order == "o2" else dim_out
        self.conv_in = conv(dim, dim_hidden, 3, padding=1)
        self.conv_out = conv(dim_hidden, dim_out, 3, padding=1)
        self.shortcut = conv(dim, dim_out, 1, bias=False)
        self.pool = BlurPool(blur_taps)

    def forward(self, x: Float[Tensor, "b c ..."]) -> Float[Tensor, "b d ..."]:
        main = self.pool(leaky_relu(self.conv_in(x)))
        main = leaky_relu(self.conv_out(main))
        return (main + self.shortcut(self.pool(x))) * 2**-0.5


class ResidualNetwork(nn.Module):
    """Convolution, one `DownBlock` for each of `dim_mults`, convolution and head.

    There are no norms. Inputs may have any size: axes of one position are not halved further.
    Weights start Xavier-uniform with gain sqrt(2), biases at zero.
    Source: the discriminator of MAGVIT-v2, with details from the code of O2-MAGVIT2.
    """

    def __init__(
        self,
        num_axes: int,
        channels: int,
        dim: int,
        dim_mults: tuple[int, ...],
        head: HeadName,
        input_size: tuple[int, ...] | None,
        block_order: BlockOrder,
        blur_taps: int,
    ):
        super().__init__()
        if channels not in CHANNELS:
            raise ValueError(f"{channels} channels: use one of {CHANNELS}")
        if block_order not in get_args(BlockOrder):
            raise ValueError(f"block_order {block_order!r}: use one of {get_args(BlockOrder)}")
        if dim < 1 or not dim_mults or min(dim_mults) < 1:
            raise ValueError(f"dim {dim} and dim_mults {dim_mults}: give positive integers")
        conv, dims = CONVS[num_axes], (dim, *(dim * mult for mult in dim_mults))
        self.memory_format = MEMORY_FORMATS[num_axes]
        self.stem = conv(channels, dim, 3, padding=1)
        self.blocks = nn.ModuleList(
            DownBlock(num_axes, dim_in, dim_out, block_order, blur_taps)
            for dim_in, dim_out in pairwise(dims)
        )
        self.conv_out = conv(dims[-1], dims[-1], 3, padding=1)
        self.head = build_head(head, num_axes, dims[-1], input_size, len(dim_mults))
        self.apply(initialize)
        self.to(memory_format=self.memory_format)

    def forward(
        self, x: Float[Tensor, "b c ..."]
    ) -> tuple[Float[Tensor, "b ..."], tuple[Float[Tensor, "b d ..."], ...]]:
        """Returns logits and the maps after each block and the last convolution."""
        x = x.to(self.stem.weight.dtype).contiguous(memory_format=self.memory_format)
        x = leaky_relu(self.stem(x))
        features = []
        for block in self.blocks:
            x = block(x)
            features.append(x)
        x = leaky_relu(self.conv_out(x))
        logits = self.head(x)
        return at_least_float32(logits), (*features, x)


def initialize(module: nn.Module) -> None:
    """Initializes weights Xavier-uniform with gain sqrt(2), biases with zeros."""
    if isinstance(module, nn.Conv2d | nn.Conv3d | nn.Linear):
        nn.init.xavier_uniform_(module.weight, gain=2**0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
