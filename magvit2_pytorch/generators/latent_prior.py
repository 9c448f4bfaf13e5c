"""A small model of a tokenizer's codes, trained with it."""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from magvit2_pytorch.generators.cell_order import (
    NEIGHBOURS,
    NUM_RECENT,
    cell_order,
    neighbour_index,
)
from magvit2_pytorch.generators.code_head import CodeHead
from magvit2_pytorch.generators.code_space import CodeSpace
from magvit2_pytorch.generators.generator import AXIS_WEIGHTS
from magvit2_pytorch.layers.arithmetic import Linear
from magvit2_pytorch.layers.rotary import axis_pairs, position_angles
from magvit2_pytorch.layers.transformer import Transformer, TransformerSize, attend_causal
from magvit2_pytorch.quantizers.quantizer import Quantizer
from magvit2_pytorch.types import Codes, Latents


class LatentPrior(nn.Module):
    """Predicts codes from the quantized latents before them, through which gradients pass.

    Each cell sees the quantized latents of its known neighbours, and all cells before it in the
    order of waves, as in `AutoregressiveGenerator`. The loss then moves an encoder to latents that
    tell more of those to come. Source: LARP (arXiv 2410.21264), section 3.3.
    """

    def __init__(self, quantizer: Quantizer, dim: int = 128, depth: int = 2, heads: int = 4):
        super().__init__()
        size = TransformerSize(dim, depth, heads)
        self.code_space = CodeSpace.of(quantizer)
        self.pairs = axis_pairs(size.dim_head // 2, AXIS_WEIGHTS)
        self.stem = Linear(len(NEIGHBOURS) * quantizer.quantized_dim, dim)
        self.first_frame = nn.Parameter(torch.zeros(dim))
        self.transformer = Transformer(size)
        self.head = CodeHead(dim, self.code_space)

    def forward(self, quantized: Latents, codes: Codes) -> Float[Tensor, ""]:
        """Mean negative log likelihood of a position's codes in nats."""
        return self.nll(quantized, codes).mean()

    def nll(self, quantized: Latents, codes: Codes) -> Float[Tensor, "b j y x"]:
        """Negative log likelihood of codes, given the quantized latents before.

        Codes are targets without gradient; the gradient reaches what made `quantized`.
        """
        num_frames, height, width = quantized.shape[2:]
        order = cell_order("wave", height, width, quantized.device)
        time = torch.arange(num_frames, device=quantized.device).repeat_interleave(order.num_cells)
        places = torch.cat((time[:, None], order.cells.repeat(num_frames, 1)), dim=-1)
        index = neighbour_index(places, NEIGHBOURS, height, width)
        # Zeros stand for neighbours outside of the video.
        frames = F.pad(quantized, (1, 1, 1, 1, NUM_RECENT, 0))
        frames = rearrange(frames, "b d j y x -> b (j y x) d")
        x = self.stem(frames[:, index].flatten(2))
        x = x + (time == 0)[:, None] * self.first_frame.to(x.dtype)
        angles = position_angles(places, self.pairs, 100.0)
        x, _ = self.transformer(x, angles, attend_causal)
        target = order.to_sequence(self.code_space.to_sub_tokens(codes))
        return order.to_grid(self.head.nll(x, target).sum(dim=-1))
