"""Spatial, linear and temporal attention, with rotary positions."""

from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, einsum, nn
from torch.nn import functional as F

from magvit2_pytorch.functional import own_copy
from magvit2_pytorch.layers.arithmetic import Linear
from magvit2_pytorch.layers.norm import AdaptiveNorm, ChannelNorm
from magvit2_pytorch.layers.stateful import (
    Chain,
    Pointwise,
    ReceptiveField,
    Residual,
    StatefulLayer,
)
from magvit2_pytorch.types import Context, Past


def rotary_angles(
    num_positions: int, dim: int, like: Tensor, theta: float = 10_000.0
) -> Float[Tensor, "n f"]:
    """Angle of each position and frequency, in radians.

    `dim` channels have dim / 2 frequencies. On the device of `like`; in float32, or in float64 if
    `like` is.
    Source: RoFormer (arXiv 2104.09864).
    """
    dtype = torch.promote_types(like.dtype, torch.float32)
    exponents = torch.arange(0, dim, 2, device=like.device, dtype=dtype) / dim
    positions = torch.arange(num_positions, device=like.device, dtype=dtype)
    return torch.outer(positions, theta**-exponents)


def axial_angles(height: int, width: int, dim: int, like: Tensor) -> Float[Tensor, "n f"]:
    """Angles of cells, half of the frequencies by row, half by column."""
    rows = rotary_angles(height, dim // 2, like)
    columns = rotary_angles(width, dim // 2, like)
    # Not repeat_interleave: torch exports it to ONNX wrongly if the width is dynamic.
    rows = rows[:, None].expand(-1, width, -1).flatten(0, 1)
    return torch.cat((rows, columns.repeat(height, 1)), dim=-1)


def rotate(x: Float[Tensor, "... n d"], angles: Float[Tensor, "n f"]) -> Float[Tensor, "... n d"]:
    """Rotates channel pairs i, i + d / 2 in the type of `angles`."""
    cos, sin = angles.cos(), angles.sin()
    real, imaginary = x.to(angles.dtype).chunk(2, dim=-1)
    rotated = torch.cat((real * cos - imaginary * sin, real * sin + imaginary * cos), dim=-1)
    return rotated.to(x.dtype)


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
    """Attention between all cells of one frame, with axial rotary positions."""

    def __init__(self, dim: int, size: AttentionSize):
        super().__init__()
        self.size = size
        self.to_qkv = Linear(dim, size.heads * size.dim_head * 3, bias=False)
        self.to_out = Linear(size.heads * size.dim_head, dim, bias=False)

    def forward(self, x, past: Past = None, context: Context = Context()):
        # All of them: of a batch of nothing, einops could not compute any.
        sizes = dict(zip("bthw", (x.shape[0], *x.shape[2:]), strict=True))
        tokens = rearrange(x, "b c t h w -> (b t) (h w) c")
        q, k, v = rearrange(self.to_qkv(tokens), "b n (s g d) -> s b g n d", s=3, g=self.size.heads)
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
            rotate(q, angles[-num_frames:]),
            rotate(k, angles),
            v,
            attn_mask=self._mask(num_frames, k.shape[2], x.device),
            dropout_p=self.size.dropout if self.training else 0.0,
        )
        out = self.to_out(rearrange(out, "b g n d -> b n (g d)"))
        start = 0 if self.window is None else max(0, k.shape[2] - (self.window - 1))
        out = rearrange(out, "(b h w) t c -> b c t h w", b=batch, h=height, w=width)
        return out, () if context.last else (own_copy(k[:, :, start:]), own_copy(v[:, :, start:]))

    @property
    def receptive_field(self) -> ReceptiveField:
        return ReceptiveField()

    def _mask(self, num_queries: int, num_keys: int, device: torch.device) -> Bool[Tensor, "q k"]:
        query = torch.arange(num_keys - num_queries, num_keys, device=device)[:, None]
        key = torch.arange(num_keys, device=device)
        causal = key <= query
        return causal if self.window is None else causal & (key > query - self.window)


class TokenShift(StatefulLayer):
    """Takes half of the channels from the previous frame.

    Source: RWKV (arXiv 2305.13048), time mixing. magvit2-pytorch puts it before time attention.
    """

    def forward(self, x, past: Past = None, context: Context = Context()):
        current, shifted = x.chunk(2, dim=1)
        if past is None:
            past = torch.zeros_like(shifted[:, :, :1])
        shifted = torch.cat((past, shifted), dim=2)
        return torch.cat((current, shifted[:, :, :-1]), dim=1), own_copy(shifted[:, :, -1:])

    @property
    def receptive_field(self) -> ReceptiveField:
        return ReceptiveField()


class FeedForward(nn.Module):
    """Gated feed-forward at each position. Source: GLU variants (arXiv 2002.05202), GEGLU."""

    def __init__(self, dim: int, expansion: int = 4):
        super().__init__()
        dim_inner = dim * expansion * 2 // 3
        self.to_inner = Linear(dim, dim_inner * 2)
        self.to_out = Linear(dim_inner, dim)

    def forward(self, x):
        x = rearrange(x, "b c t h w -> b t h w c")
        x, gate = self.to_inner(x).chunk(2, dim=-1)
        return rearrange(self.to_out(x * F.gelu(gate)), "b t h w c -> b c t h w")


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
        q, k, v = rearrange(self.to_qkv(tokens), "b n (s g d) -> s b g n d", s=3, g=self.heads)
        dtype = torch.promote_types(x.dtype, torch.float32)
        q = q.softmax(dim=-1, dtype=dtype).to(v.dtype)
        k = k.softmax(dim=-2, dtype=dtype).to(v.dtype)
        summary = einsum("b g n d, b g n e -> b g d e", k, v)
        out = einsum("b g n d, b g d e -> b g n e", q, summary)
        out = self.to_out(rearrange(out, "b g n d -> b n (g d)"))
        return rearrange(out, "(b t) (h w) c -> b c t h w", **sizes), ()
