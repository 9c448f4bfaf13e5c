"""The anti-aliased residual network, for pictures (2 axes) and for clips (3)."""

from itertools import pairwise
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from magvit2_pytorch.discriminators.heads import HeadName, build_head
from magvit2_pytorch.layers.arithmetic import CONVS
from magvit2_pytorch.layers.blur import BlurPool

BlockOrder = Literal["o2", "paper"]
CHANNELS = (1, 3, 4)
FORMATS = {2: torch.channels_last, 3: torch.channels_last_3d}
NEGATIVE_SLOPE = 0.2


def leaky_relu(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """In place: neither a convolution nor this needs the values that it overwrites."""
    return F.leaky_relu(x, NEGATIVE_SLOPE, inplace=True)


class DownBlock(nn.Module):
    """Two convolutions with a blur-pool between them, beside a blur-pooled shortcut.

    (main + shortcut) / sqrt(2) keeps the variance. Which convolution changes the width is
    `block_order`: the second ("o2", as in MAGVIT and O2-MAGVIT2) or the first ("paper", as
    drawn in MAGVIT-v2, arXiv 2310.05737), which makes it wide at the higher resolution.
    """

    def __init__(
        self, num_axes: int, dim: int, dim_out: int, block_order: BlockOrder, blur_taps: int
    ):
        super().__init__()
        conv = CONVS[num_axes]
        dim_between = dim if block_order == "o2" else dim_out
        self.conv_in = conv(dim, dim_between, 3, padding=1)
        self.conv_out = conv(dim_between, dim_out, 3, padding=1)
        self.shortcut = conv(dim, dim_out, 1, bias=False)
        self.pool = BlurPool(blur_taps)

    def forward(self, x: Float[Tensor, "b c ..."]) -> Float[Tensor, "b d ..."]:
        main = self.pool(leaky_relu(self.conv_in(x)))
        main = leaky_relu(self.conv_out(main))
        return (main + self.shortcut(self.pool(x))) * 2**-0.5


class ResidualNetwork(nn.Module):
    """Convolution, one `DownBlock` for each of `dim_mults`, head. No norms, any size.

    Axes that have shrunk to one position stay at that, so depth is no question of size. All
    weights start Xavier-uniform with gain sqrt(2), biases at zero.
    Source: the discriminator of MAGVIT-v2, with the details of O2-MAGVIT2's code.
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
            raise ValueError(f"dim {dim} and dim_mults {dim_mults}: give whole numbers from 1 up")
        conv, dims = CONVS[num_axes], (dim, *(dim * mult for mult in dim_mults))
        self.memory_format = FORMATS[num_axes]
        self.stem = conv(channels, dim, 3, padding=1)
        self.blocks = nn.ModuleList(
            DownBlock(num_axes, narrow, wide, block_order, blur_taps)
            for narrow, wide in pairwise(dims)
        )
        self.conv_out = conv(dims[-1], dims[-1], 3, padding=1)
        self.head = build_head(head, num_axes, dims[-1], input_size, len(dim_mults))
        self.apply(initialize)
        self.to(memory_format=self.memory_format)

    def forward(
        self, x: Float[Tensor, "b c ..."]
    ) -> tuple[Float[Tensor, "b ..."], tuple[Float[Tensor, "b d ..."], ...]]:
        """The logits, and the map after every block and after the last convolution."""
        x = x.to(self.stem.weight.dtype).contiguous(memory_format=self.memory_format)
        x = leaky_relu(self.stem(x))
        features = []
        for block in self.blocks:
            x = block(x)
            features.append(x)
        x = leaky_relu(self.conv_out(x))
        logits = self.head(x)
        # Losses of logits are taken in float32 at least, whatever autocast says.
        return logits.to(torch.promote_types(logits.dtype, torch.float32)), (*features, x)


def initialize(module: nn.Module) -> None:
    """Xavier-uniform with gain sqrt(2), biases zero."""
    if isinstance(module, nn.Conv2d | nn.Conv3d | nn.Linear):
        nn.init.xavier_uniform_(module.weight, gain=2**0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
