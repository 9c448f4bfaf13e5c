"""Spatial attention with a cost linear in the number of cells."""

import torch
from einops import rearrange
from torch import einsum

from magvit2_pytorch.layers.arithmetic import Linear
from magvit2_pytorch.layers.stateful import StatefulLayer
from magvit2_pytorch.types import Context, Past


class LinearSpaceAttention(StatefulLayer):
    """Linear attention between the cells of a frame.

    A `dim_head` x `dim_head` summary of the frame replaces n x n weights. Queries have a softmax
    over channels, keys over cells, in float32 or float64.
    Source: Efficient Attention (arXiv 1812.01243).
    """

    def __init__(self, dim: int, dim_head: int = 8, heads: int = 16):
        super().__init__()
        self.heads = heads
        self.to_qkv = Linear(dim, heads * dim_head * 3, bias=False)
        self.to_out = Linear(heads * dim_head, dim, bias=False)

    def forward(self, x, past: Past = None, context: Context = Context()):
        batch, _, _, height, _ = x.shape
        tokens = rearrange(x, "b c t h w -> (b t) (h w) c")
        q, k, v = rearrange(self.to_qkv(tokens), "b n (s g d) -> s b g n d", s=3, g=self.heads)
        dtype = torch.promote_types(x.dtype, torch.float32)
        q = q.softmax(dim=-1, dtype=dtype).to(v.dtype)
        k = k.softmax(dim=-2, dtype=dtype).to(v.dtype)
        summary = einsum("b g n d, b g n e -> b g d e", k, v)
        out = einsum("b g n d, b g d e -> b g n e", q, summary)
        out = self.to_out(rearrange(out, "b g n d -> b n (g d)"))
        return rearrange(out, "(b t) (h w) c -> b c t h w", b=batch, h=height), ()
