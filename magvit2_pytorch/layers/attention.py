"""Attention and gated recurrence over the cells of a video."""

from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Bool
from torch import Tensor
from torch.nn import functional as F

from magvit2_pytorch.functional import linear_scan, own_copy
from magvit2_pytorch.layers.arithmetic import Linear
from magvit2_pytorch.layers.norm import AdaptiveNorm, ChannelNorm
from magvit2_pytorch.layers.rotary import axial_angles, rotary_angles, rotate
from magvit2_pytorch.layers.stateful import (
    Chain,
    Pointwise,
    ReceptiveField,
    Residual,
    StatefulLayer,
)
from magvit2_pytorch.layers.transformer import GatedFeedForward
from magvit2_pytorch.types import Context, Past


@dataclass(frozen=True)
class AttentionSize:
    """Attention of `heads` heads with `dim_head` channels each, and dropout."""

    dim_head: int = 32
    heads: int = 8
    dropout: float = 0.0

    def __post_init__(self):
        if self.dim_head % 4:
            raise ValueError(
                f"dim_head {self.dim_head} must be a multiple of 4: rotary embeddings rotate pairs "
                "of channels along two axes"
            )


class SpaceAttention(StatefulLayer):
    """Attention between all cells of a frame, with axial rotary positions."""

    def __init__(self, dim: int, size: AttentionSize, rotary: bool = True, bias: bool = False):
        super().__init__()
        self.size, self.rotary = size, rotary
        self.to_qkv = Linear(dim, size.heads * size.dim_head * 3, bias=bias)
        self.to_out = Linear(size.heads * size.dim_head, dim, bias=bias)

    def forward(self, x, past: Past = None, context: Context = Context()):
        # All of them: of a batch of nothing, einops could not compute any.
        sizes = dict(zip("bthw", (x.shape[0], *x.shape[2:]), strict=True))
        tokens = rearrange(x, "b c t h w -> (b t) (h w) c")
        q, k, v = rearrange(self.to_qkv(tokens), "b n (s g d) -> s b g n d", s=3, g=self.size.heads)
        if self.rotary:
            angles = axial_angles(sizes["h"], sizes["w"], self.size.dim_head, q)
            q, k = rotate(q, angles), rotate(k, angles)
        dropout = self.size.dropout if self.training else 0.0
        out = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        out = self.to_out(rearrange(out, "b g n d -> b n (g d)"))
        return rearrange(out, "(b t) (h w) c -> b c t h w", **sizes), ()


class TimeAttention(StatefulLayer):
    """Causal attention along time at each cell, over this and earlier frames.

    A frame attends to at most `window` frames, itself included. The past is the keys and values
    of earlier frames. Keys are stored before rotation, and rotated by their position among the
    stored ones: rotary attention depends only on distances, so angles stay small, and exact in
    float32, after hours of video.
    """

    receptive_field = ReceptiveField()

    def __init__(self, dim: int, size: AttentionSize, window: int | None = None):
        super().__init__()
        if window is not None and window < 1:
            raise ValueError(f"an attention window of {window} frames is empty: use 1 or more")
        self.size, self.window = size, window
        self.to_qkv = Linear(dim, size.heads * size.dim_head * 3, bias=False)
        self.to_out = Linear(size.heads * size.dim_head, dim, bias=False)

    def forward(self, x, past: Past = None, context: Context = Context()):
        batch, _, num_frames, height, width = x.shape
        tokens = rearrange(x, "b c t h w -> (b h w) t c")
        q, k, v = rearrange(self.to_qkv(tokens), "b n (s g d) -> s b g n d", s=3, g=self.size.heads)
        if past is not None:
            past_k, past_v = past
            k, v = torch.cat((past_k, k), dim=2), torch.cat((past_v, v), dim=2)
        angles = rotary_angles(k.shape[2], self.size.dim_head, k)
        out = F.scaled_dot_product_attention(
            rotate(q, angles[k.shape[2] - num_frames :]),
            rotate(k, angles),
            v,
            attn_mask=self._mask(num_frames, k.shape[2], x.device),
            dropout_p=self.size.dropout if self.training else 0.0,
        )
        out = self.to_out(rearrange(out, "b g n d -> b n (g d)"))
        start = 0 if self.window is None else max(0, k.shape[2] - (self.window - 1))
        out = rearrange(out, "(b h w) t c -> b c t h w", b=batch, h=height, w=width)
        return out, () if context.last else (own_copy(k[:, :, start:]), own_copy(v[:, :, start:]))

    def _mask(self, num_queries: int, num_keys: int, device: torch.device) -> Bool[Tensor, "q k"]:
        query = torch.arange(num_keys - num_queries, num_keys, device=device)[:, None]
        key = torch.arange(num_keys, device=device)
        causal = key <= query
        return causal if self.window is None else causal & (key > query - self.window)


class TokenShift(StatefulLayer):
    """Takes half of the channels from the previous frame.

    Source: RWKV (arXiv 2305.13048), time mixing. magvit2-pytorch puts it before time attention.
    """

    receptive_field = ReceptiveField()

    def forward(self, x, past: Past = None, context: Context = Context()):
        current, shifted = x.chunk(2, dim=1)
        if past is None:
            past = torch.zeros_like(shifted[:, :, :1])
        shifted = torch.cat((past, shifted), dim=2)
        return torch.cat((current, shifted[:, :, :-1]), dim=1), own_copy(shifted[:, :, -1:])


class FeedForward(GatedFeedForward):
    """Gated feed-forward at each position of a video."""

    def forward(self, x):
        x = super().forward(rearrange(x, "b c t h w -> b t h w c"))
        return rearrange(x, "b t h w c -> b c t h w")


def transformer_block(
    dim: int, mixer: StatefulLayer, dim_cond: int | None = None, shift: bool = False
) -> StatefulLayer:
    """Pre-norm residual block of `mixer`, then one of a feed-forward.

    With `dim_cond`, the norm before the mixer is adaptive. `shift` puts a `TokenShift` before
    both parts.
    """
    norm = Pointwise(ChannelNorm(dim)) if dim_cond is None else AdaptiveNorm(dim, dim_cond)
    shifts = (TokenShift(),) if shift else ()
    feed_forward = (Pointwise(ChannelNorm(dim)), *shifts, Pointwise(FeedForward(dim)))
    return Chain((Residual(Chain((norm, *shifts, mixer))), Residual(Chain(feed_forward))))


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
        sizes = dict(zip("bthw", (x.shape[0], *x.shape[2:]), strict=True))
        tokens = rearrange(x, "b c t h w -> (b t) (h w) c")
        # One copy, after which both softmaxes and both products run along contiguous cells: in bf16
        # the whole took 2.3 times as long on the cells' own layout (benchmarks/LOG.md, section 23).
        qkv = rearrange(self.to_qkv(tokens), "b n (s g d) -> s b g d n", s=3, g=self.heads)
        q, k, v = qkv.contiguous()
        dtype = torch.promote_types(x.dtype, torch.float32)
        q = q.softmax(dim=-2, dtype=dtype).to(v.dtype)
        k = k.softmax(dim=-1, dtype=dtype).to(v.dtype)
        summary = k @ v.mT
        out = self.to_out(rearrange(summary.mT @ q, "b g d n -> b n (g d)"))
        return rearrange(out, "(b t) (h w) c -> b c t h w", **sizes), ()


class GateLoop(StatefulLayer):
    """Gated linear recurrence.

    h[t] = a[t] * h[t - 1] + (1 - a[t]) * v[t], with a in (0, 1). The output is a linear map of
    h times a gate, and the past is h. The recurrence runs in float32 or float64.
    Source: GateLoop (arXiv 2311.01927), the real-valued form. The factor 1 - a keeps the state
    within the range of v.
    """

    receptive_field = ReceptiveField()

    def __init__(self, dim: int):
        super().__init__()
        self.to_parts = Linear(dim, dim * 3)
        self.to_out = Linear(dim, dim)

    def forward(self, x, past: Past = None, context: Context = Context()):
        tokens = rearrange(x, "b c t h w -> b t h w c")
        decay, value, gate = self.to_parts(tokens).chunk(3, dim=-1)
        dtype = torch.promote_types(x.dtype, torch.float32)
        decay = decay.to(dtype).sigmoid()
        value = (1 - decay) * value.to(dtype)
        if past is not None:
            value = torch.cat((value[:, :1] + decay[:, :1] * past, value[:, 1:]), dim=1)
        state = linear_scan(decay, value)
        out = self.to_out(state.to(gate.dtype) * F.silu(gate))
        return rearrange(out, "b t h w c -> b c t h w"), own_copy(state[:, -1:])
