"""A transformer over sequences, for generators and 1-D tokenizers.

Keys and values of earlier tokens go in and come out. What a token sees is decided by the caller's
`attend`, which takes queries, keys and values and knows about order, windows or packed samples.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from magvit2_pytorch.layers.arithmetic import LayerNorm, Linear, half_precision, has_kernels
from magvit2_pytorch.layers.rotary import turn

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Attention of queries `b h n d` over keys and values `b h m d`."""

KeyValues = tuple[Float[Tensor, "b g _ d"], Float[Tensor, "b g _ d"]]
"""Keys, turned to their positions, and values of earlier tokens in one block."""


class Memory:
    """Keys and values of a block's earlier tokens, with room for more.

    It is a value: `extended` returns another one and leaves this one as it was. Both share memory
    if no other extension has taken the room; so a stream does not copy its past at every step, and
    a copy of the past can go on another way.
    """

    def __init__(self, buffer: Float[Tensor, "2 b g r d"], start: int, stop: int, taken: list[int]):
        self.buffer, self.start, self.stop = buffer, start, stop
        self.taken = taken
        """Rows of the buffer that any of its users have written; one list for all of them."""

    @classmethod
    def of(cls, keys_values: KeyValues) -> "Memory":
        """A memory of given keys and values."""
        buffer = torch.stack(keys_values)
        return cls(buffer, 0, buffer.shape[3], [buffer.shape[3]])

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.buffer[:, :, :, self.start : self.stop].unbind())

    def __len__(self) -> int:
        return self.stop - self.start

    def without(self, number: int) -> "Memory":
        """This memory without its first tokens."""
        return Memory(self.buffer, self.start + number, self.stop, self.taken)

    def extended(self, keys_values: KeyValues) -> "Memory":
        """This memory with further tokens at its end."""
        stop = self.stop + keys_values[0].shape[2]
        buffer, start, taken = self.buffer, self.start, self.taken
        if taken[0] != self.stop or stop > buffer.shape[3]:
            shape = (*buffer.shape[:3], 2 * (stop - start), buffer.shape[4])
            buffer = torch.empty(shape, dtype=buffer.dtype, device=buffer.device)
            buffer[:, :, :, : len(self)] = self.buffer[:, :, :, start : self.stop]
            start, stop, taken = 0, stop - start, [0]
        for place, value in zip(buffer, keys_values, strict=True):
            place[:, :, stop - value.shape[2] : stop] = value
        taken[0] = stop
        return Memory(buffer, start, stop, taken)


def attend_all(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Each token sees all."""
    return F.scaled_dot_product_attention(q, k, v)


def attend_causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Each token sees itself and those before it."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def attend_masked(mask: Tensor) -> Attend:
    """Each token sees by a mask, bool or added to scores."""
    return partial(F.scaled_dot_product_attention, attn_mask=mask)


Span = tuple[int, int]
"""First token and the one after the last of a run of tokens."""


def attend_spans(pairs: Sequence[tuple[Span, Span]]) -> Attend:
    """Queries of consecutive spans see keys of spans of their own.

    Pairs of equal lengths share one call: a call costs as much as the work of some dozen tokens,
    and a mask over all pairs would cost the square of the sum of their lengths.
    """
    queries, keys = zip(*pairs, strict=True)
    num_queries = [stop - start for start, stop in queries]
    groups: dict[tuple[int, int], list[int]] = {}
    for number, (start, stop) in enumerate(keys):
        groups.setdefault((num_queries[number], stop - start), []).append(number)

    def cut(x: Tensor) -> Sequence[Tensor]:
        # By a split if possible: the gradient of a slice is as large as `x`.
        if keys == queries:
            return x.split(num_queries, dim=2)
        return [x[:, :, start:stop] for start, stop in keys]

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        dtype = half_precision(q)
        if dtype is not None and not has_kernels(dtype):
            with torch.autocast("cpu", enabled=False):
                return attend(q.float(), k.float(), v.float()).to(dtype)
        q_parts = q.split(num_queries, dim=2)
        k_parts, v_parts = cut(k), cut(v)
        outs: list[Tensor] = list(q_parts)
        for numbers in groups.values():
            stacked = (
                torch.cat([parts[number] for number in numbers])
                for parts in (q_parts, k_parts, v_parts)
            )
            out = F.scaled_dot_product_attention(*stacked).chunk(len(numbers))
            for number, part in zip(numbers, out, strict=True):
                outs[number] = part
        return torch.cat(outs, dim=2)

    return attend


Rotation = tuple[Float[Tensor, "*batch 1 n f"], Float[Tensor, "*batch 1 n f"]]
"""Cosines and sines of positions, the same for all heads."""


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
    """Gated feed-forward over the last axis. Source: GLU variants (arXiv 2002.05202).

    With GELU it is GEGLU, with SiLU SwiGLU, which takes a third of the activation's time on a CPU.
    """

    def __init__(self, dim: int, activation: Callable[[Tensor], Tensor] = F.gelu):
        super().__init__()
        self.activation = activation
        dim_inner = dim * 8 // 3
        self.to_inner = Linear(dim, dim_inner * 2)
        self.to_out = Linear(dim_inner, dim)

    def forward(self, x: Float[Tensor, "... c"]) -> Float[Tensor, "... c"]:
        x, gate = self.to_inner(x).chunk(2, dim=-1)
        return self.to_out(x * self.activation(gate))


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
        rotation: Rotation | None,
        attend: Attend,
        past: KeyValues | Memory | None = None,
    ) -> tuple[Float[Tensor, "b n c"], KeyValues | Memory]:
        qkv = rearrange(self.to_qkv(x), "b n (g d) -> b g n d", g=self.heads + 2 * self.kv_heads)
        q, k, v = qkv.split((self.heads, self.kv_heads, self.kv_heads), dim=1)
        q, k = self.query_norm(q), self.key_norm(k)
        if rotation is not None:
            q, k = turn(q, *rotation), turn(k, *rotation)
        present = k, v
        if isinstance(past, Memory):
            present = past.extended(present)
        elif past is not None:
            present = tuple(torch.cat(pair, dim=2) for pair in zip(past, present, strict=True))
        k, v = present
        shared = self.heads // self.kv_heads
        if shared > 1:
            k, v = k.repeat_interleave(shared, 1), v.repeat_interleave(shared, 1)
        out = attend(q, k, v)
        return self.to_out(rearrange(out, "b g n d -> b n (g d)")), present


class CrossAttention(nn.Module):
    """Attention over tokens of a context, all alike near."""

    def __init__(self, size: TransformerSize):
        super().__init__()
        self.heads = size.heads
        self.to_q = Linear(size.dim, size.dim, bias=False)
        self.to_kv = Linear(size.dim, 2 * size.dim, bias=False)
        self.query_norm = LayerNorm(size.dim_head)
        self.key_norm = LayerNorm(size.dim_head)
        self.to_out = Linear(size.dim, size.dim, bias=False)

    def forward(
        self, x: Float[Tensor, "b n c"], context: Float[Tensor, "b m c"]
    ) -> Float[Tensor, "b n c"]:
        q = rearrange(self.to_q(x), "b n (g d) -> b g n d", g=self.heads)
        k, v = rearrange(self.to_kv(context), "b m (s g d) -> s b g m d", s=2, g=self.heads)
        out = attend_all(self.query_norm(q), self.key_norm(k), v)
        return self.to_out(rearrange(out, "b g n d -> b n (g d)"))


class TransformerBlock(nn.Module):
    """Pre-norm attention and gated feed-forward, each added to its input.

    With `has_context` there is attention over a context between them.
    """

    def __init__(self, size: TransformerSize, dropout: float = 0.0, has_context: bool = False):
        super().__init__()
        self.attention_norm = LayerNorm(size.dim)
        self.attention = SelfAttention(size)
        self.cross_norm = LayerNorm(size.dim) if has_context else None
        self.cross_attention = CrossAttention(size) if has_context else None
        self.feed_forward_norm = LayerNorm(size.dim)
        self.feed_forward = GatedFeedForward(size.dim, activation=F.silu)
        self.dropout = nn.Dropout(dropout)
        # A sum of 2 * depth terms begins with the variance of one.
        for part in (self.attention, self.cross_attention, self.feed_forward):
            if part is not None:
                out = part.to_out
                nn.init.normal_(out.weight, std=(2 * size.depth * out.in_features) ** -0.5)

    def forward(self, x, rotation, attend, past=None, context=None):
        mixed, past = self.attention(self.attention_norm(x), rotation, attend, past)
        x = x + self.dropout(mixed)
        if self.cross_attention is not None:
            x = x + self.dropout(self.cross_attention(self.cross_norm(x), context))
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x))), past


class Transformer(nn.Module):
    """Blocks of attention and feed-forward with a norm at the end."""

    def __init__(self, size: TransformerSize, dropout: float = 0.0, has_context: bool = False):
        super().__init__()
        self.blocks = nn.ModuleList(
            TransformerBlock(size, dropout, has_context) for _ in range(size.depth)
        )
        self.norm = LayerNorm(size.dim)

    def forward(
        self,
        x: Float[Tensor, "b n c"],
        angles: Float[Tensor, "*batch n f"] | None,
        attend: Attend,
        past: Sequence[KeyValues | Memory] | None = None,
        context: Float[Tensor, "b m c"] | None = None,
    ) -> tuple[Float[Tensor, "b n c"], tuple[KeyValues | Memory, ...]]:
        """Output, and keys and values of all blocks, the past's in front.

        `angles` are those of `position_angles`, for all samples alike or for each. `context` are
        tokens that all tokens see, such as conditions; they have no positions.
        """
        rotation, pasts = None, []
        if angles is not None:
            angles = angles.unsqueeze(-3)  # the heads
            rotation = angles.cos(), angles.sin()
        for block, block_past in zip(self.blocks, past or [None] * len(self.blocks), strict=True):
            x, keys_values = block(x, rotation, attend, block_past, context)
            pasts.append(keys_values)
        return self.norm(x), tuple(pasts)
