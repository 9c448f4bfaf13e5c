"""A transformer over sequences `b n c`: the trunk of generators and 1-D tokenizers.

Keys and values of earlier tokens go in and come out. What a token sees is decided by the caller's
`attend`, which takes queries, keys and values and knows about order, windows or packed samples.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from magvit2_pytorch.layers.arithmetic import LayerNorm, Linear
from magvit2_pytorch.layers.rotary import rotate

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Attention of queries `b h n d` over keys and values `b h m d`."""

KeyValues = tuple[Float[Tensor, "b g _ d"], Float[Tensor, "b g _ d"]]
"""Keys, turned to their positions, and values of earlier tokens in one block."""


def attend_all(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Each token sees all."""
    return F.scaled_dot_product_attention(q, k, v)


def attend_causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Each token sees itself and those before it; queries are as many as keys."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def attend_masked(mask: Tensor) -> Attend:
    """Each token sees what a mask is true for, or with a float `mask` added to its scores."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    return attend


@dataclass(frozen=True)
class TransformerSize:
    """Width, number of blocks and attention heads of a transformer."""

    dim: int
    depth: int
    heads: int
    kv_heads: int | None = None
    """Heads of keys and values, each shared by several queries; None for as many as `heads`."""

    def __post_init__(self):
        if self.dim % (2 * self.heads):
            raise ValueError(
                f"dim {self.dim} does not divide into {self.heads} heads of pairs of channels: "
                f"use a multiple of {2 * self.heads}"
            )
        if self.heads % self.num_kv_heads:
            raise ValueError(f"heads {self.heads} must be a multiple of kv_heads {self.kv_heads}")

    @property
    def dim_head(self) -> int:
        return self.dim // self.heads

    @property
    def num_kv_heads(self) -> int:
        return self.kv_heads or self.heads


class GatedFeedForward(nn.Module):
    """Gated feed-forward over the last axis. Source: GLU variants (arXiv 2002.05202), GEGLU."""

    def __init__(self, dim: int, expansion: int = 4):
        super().__init__()
        dim_inner = dim * expansion * 2 // 3
        self.to_inner = Linear(dim, dim_inner * 2)
        self.to_out = Linear(dim_inner, dim)

    def forward(self, x: Float[Tensor, "... c"]) -> Float[Tensor, "... c"]:
        x, gate = self.to_inner(x).chunk(2, dim=-1)
        return self.to_out(x * F.gelu(gate))


class SelfAttention(nn.Module):
    """Attention with rotary positions, and norms of queries and keys.

    Norms keep scores in range at any learning rate. Source: QK norm (arXiv 2302.05442).
    """

    def __init__(self, size: TransformerSize):
        super().__init__()
        self.heads, self.kv_heads = size.heads, size.num_kv_heads
        self.to_qkv = Linear(
            size.dim, (size.heads + 2 * size.num_kv_heads) * size.dim_head, bias=False
        )
        self.query_norm = LayerNorm(size.dim_head)
        self.key_norm = LayerNorm(size.dim_head)
        self.to_out = Linear(size.dim, size.dim, bias=False)

    def forward(
        self,
        x: Float[Tensor, "b n c"],
        angles: Float[Tensor, "*batch n f"] | None,
        attend: Attend,
        past: KeyValues | None = None,
    ) -> tuple[Float[Tensor, "b n c"], KeyValues]:
        qkv = rearrange(self.to_qkv(x), "b n (g d) -> b g n d", g=self.heads + 2 * self.kv_heads)
        q, k, v = qkv.split((self.heads, self.kv_heads, self.kv_heads), dim=1)
        q, k = self.query_norm(q), self.key_norm(k)
        if angles is not None:
            angles = angles.unsqueeze(-3)  # the heads
            q, k = rotate(q, angles), rotate(k, angles)
        if past is not None:
            k, v = torch.cat((past[0], k), dim=2), torch.cat((past[1], v), dim=2)
        shared = self.heads // self.kv_heads
        if shared > 1:
            out = attend(q, k.repeat_interleave(shared, 1), v.repeat_interleave(shared, 1))
        else:
            out = attend(q, k, v)
        return self.to_out(rearrange(out, "b g n d -> b n (g d)")), (k, v)


class TransformerBlock(nn.Module):
    """Pre-norm attention and gated feed-forward, each added to its input."""

    def __init__(self, size: TransformerSize, dropout: float = 0.0):
        super().__init__()
        self.attention_norm = LayerNorm(size.dim)
        self.attention = SelfAttention(size)
        self.feed_forward_norm = LayerNorm(size.dim)
        self.feed_forward = GatedFeedForward(size.dim)
        self.dropout = nn.Dropout(dropout)
        # A sum of 2 * depth terms begins with the variance of one.
        for out in (self.attention.to_out, self.feed_forward.to_out):
            nn.init.normal_(out.weight, std=(2 * size.depth * out.in_features) ** -0.5)

    def forward(self, x, angles, attend, past=None):
        mixed, past = self.attention(self.attention_norm(x), angles, attend, past)
        x = x + self.dropout(mixed)
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x))), past


class Transformer(nn.Module):
    """Blocks of attention and feed-forward with a norm at the end."""

    def __init__(self, size: TransformerSize, dropout: float = 0.0):
        super().__init__()
        self.blocks = nn.ModuleList(TransformerBlock(size, dropout) for _ in range(size.depth))
        self.norm = LayerNorm(size.dim)

    def forward(
        self,
        x: Float[Tensor, "b n c"],
        angles: Float[Tensor, "*batch n f"] | None,
        attend: Attend,
        past: Sequence[KeyValues] | None = None,
    ) -> tuple[Float[Tensor, "b n c"], tuple[KeyValues, ...]]:
        """Output and the keys and values of all blocks, the past's in front.

        `angles` are those of `position_angles`, for all samples alike or for each.
        """
        pasts = []
        for block, block_past in zip(self.blocks, past or [None] * len(self.blocks), strict=True):
            x, keys_values = block(x, angles, attend, block_past)
            pasts.append(keys_values)
        return self.norm(x), tuple(pasts)
