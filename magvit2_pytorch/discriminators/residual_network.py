"""Anti-aliased residual network for frames (2 axes) and clips (3 axes)."""

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
        # Losses need logits in at least float32, also under autocast.
        return logits.to(torch.promote_types(logits.dtype, torch.float32)), (*features, x)


def initialize(module: nn.Module) -> None:
    """Initializes weights Xavier-uniform with gain sqrt(2), biases with zeros."""
    if isinstance(module, nn.Conv2d | nn.Conv3d | nn.Linear):
        nn.init.xavier_uniform_(module.weight, gain=2**0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
