"""Streams of a 1-D tokenizer, in constant memory.

A part is a block, which sees the blocks before it, or without blocks a clip of its own.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from magvit2_pytorch.config import check_at_least_one
from magvit2_pytorch.functional import autocast
from magvit2_pytorch.layers.transformer import KeyValues
from magvit2_pytorch.quantizers.quantizer import Quantized
from magvit2_pytorch.tokenizer.streaming import FrameStream
from magvit2_pytorch.tokenizer_1d.patches import Block, Size, from_patches, to_patches
from magvit2_pytorch.tokenizer_1d.token_counts import NumTokens
from magvit2_pytorch.tokenizer_1d.towers import Rows, Tower
from magvit2_pytorch.types import Precision, Video


@dataclass(frozen=True)
class _BlockState:
    """A tower with keys and values of earlier blocks."""

    tower: Tower
    causal: bool
    past: tuple[KeyValues, ...] | None = None
    lengths: tuple[int, ...] = ()
    """Tokens and patches of the blocks that the past has, all but one of a window."""

    def after(self, rows: Rows, block: Block) -> tuple[Rows, "_BlockState"]:
        """Output rows of the next block, and the state after it."""
        if not self.causal:
            return self.tower.step(rows, block, None, 0)[0], self
        kept = self.tower.window - 1
        lengths = (*self.lengths, block.length)[-kept:] if kept else ()
        out, past = self.tower.step(rows, block, self.past, sum(lengths))
        return out, replace(self, past=past if lengths else None, lengths=lengths)


class TokenEncodeStream(FrameStream):
    """Stream from frames to the codes of each part.

    With `block_frames`, the codes are those of the whole video, for any chunks.
    """

    def __init__(self, tokenizer: Any, num_tokens: NumTokens, precision: Precision):
        super().__init__(tokenizer, precision)
        self.num_tokens = num_tokens
        self.state = _BlockState(tokenizer.encoder, tokenizer.config.block_frames is not None)
        self.num_encoded = 0
        self.count: int | None = None
        """Tokens of each part, known from the first part on."""

    def push_padded(self, frames: Video) -> Quantized:
        """Latents and codes `b k` of parts; the last may be shorter."""
        return self._encode(self._accept(frames))

    def _encode(self, frames: Video) -> Quantized:
        tokenizer, latents = self.tokenizer, []
        with torch.no_grad(), autocast(tokenizer.device, self.precision):
            for part in frames.split(tokenizer.time_factor, dim=2):
                size = tuple(part.shape[2:])
                if self.count is None:
                    self.count = tokenizer.counts([size], self.num_tokens)[0]
                block = _block(tokenizer, size, self.count, self.num_encoded)
                patches = to_patches(part.to(tokenizer.dtype), tokenizer.config.patch)
                latent, self.state = self.state.after(patches, block)
                latents.append(latent)
                self.num_encoded += 1
            latents = rearrange(torch.cat(latents, 1), "b k d -> b d 1 1 k")
            quantized, codes = tokenizer.quantize(latents)
        return Quantized(quantized, codes.flatten(1))


class TokenDecodeStream:
    """Stream from the codes of parts to at most `num_frames` frames.

    Without `num_frames`, every part has all of its frames.
    """

    def __init__(
        self,
        tokenizer: Any,
        size: tuple[int, int],
        num_frames: int | None,
        precision: Precision,
        num_tokens: NumTokens = None,
    ):
        self.tokenizer, self.size, self.precision = tokenizer, size, precision
        check_at_least_one(num_frames=num_frames)
        self.max_frames = num_frames
        self.max_tokens: int | None = None
        """First tokens of a part to decode; None for all."""
        if num_tokens is not None:
            frames = min(num_frames or tokenizer.time_factor, tokenizer.time_factor)
            self.max_tokens = tokenizer.counts([(frames, *size)], num_tokens)[0]
        self.state = _BlockState(tokenizer.decoder, tokenizer.config.block_frames is not None)
        self.num_frames = 0
        """Frames returned so far."""
        self.num_decoded = 0

    def push(self, codes: Tensor, num_frames: int | None = None) -> Video | None:
        """Frames of a part from its codes; None after the last.

        Codes are `b k`, or `b j 1 k` of several parts; latents `b d 1 1 k`. `num_frames` are those
        of the part; by default it is whole, or ends with the last frame of the stream. Several
        parts are whole, and what they have after this frame is cut off.
        """
        check_at_least_one(num_frames=num_frames)
        whole = self.tokenizer.time_factor
        left = math.inf if self.max_frames is None else self.max_frames - self.num_frames
        if left < 1:
            return None
        if codes.ndim == 4:
            parts = codes[:, : math.ceil(min(left / whole, codes.shape[1])), 0]
            video = torch.cat([self._decode(part, whole) for part in parts.unbind(1)], dim=2)
            video = video[:, :, : min(left, video.shape[2])]
        else:
            video = self._decode(codes, min(left, num_frames or whole))
        self.num_frames += video.shape[2]
        return video

    def _decode(self, codes: Tensor, num_frames: int) -> Video:
        """All frames of a part."""
        tokenizer = self.tokenizer
        is_latents = codes.is_floating_point()
        quantized = codes if is_latents else tokenizer.decode_codes(codes)
        quantized = quantized[..., : self.max_tokens]
        size = (num_frames, *self.size)
        block = _block(tokenizer, size, quantized.shape[-1], self.num_decoded)
        with torch.no_grad(), autocast(tokenizer.device, self.precision):
            rows = rearrange(quantized, "b d 1 1 k -> b k d").to(tokenizer.dtype)
            patches, self.state = self.state.after(rows, block)
        self.num_decoded += 1
        video = from_patches(patches, size, tokenizer.config.patch)
        return video.to(torch.promote_types(quantized.dtype, tokenizer.dtype))

    def flush(self) -> None:
        """End the video. Returns nothing: no frames wait in this stream."""


def _block(tokenizer: Any, size: Size, count: int, number: int) -> Block:
    """The block of a part; separate clips begin at frame 0."""
    (block,) = tokenizer.config.layout(size, count)
    if tokenizer.config.block_frames is None:
        return block
    return Block(block.grid, block.count, number * block.num_frames, block.num_frames)
