"""Streams: encoding and decoding a video in chunks of any length.

A stream holds the past that the next chunk needs and the frames that do not yet complete a latent.
`copy.copy` branches a stream at no cost, and a pickled stream continues in another process.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor

from magvit2_pytorch.config import check_at_least_one
from magvit2_pytorch.functional import autocast, check_finite, pad_frames, pad_space
from magvit2_pytorch.quantizers.quantizer import Quantized
from magvit2_pytorch.tokenizer.protocol import CausalTokenizer, TiledModel
from magvit2_pytorch.tokenizer.tiling import TileSize, fit_tile_size
from magvit2_pytorch.types import Condition, Image, Latents, Past, Precision, Video


@contextmanager
def inference(model: TiledModel, precision: Precision) -> Iterator[None]:
    """Eval mode, no gradients and `precision`; restores the model's mode afterwards."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), autocast(model.device, precision):
            yield
    finally:
        model.train(was_training)


class FrameStream(ABC):
    """Stream from frames to codes: base of the streams that encode."""

    def __init__(self, tokenizer: Any, precision: Precision):
        self.tokenizer, self.precision = tokenizer, precision
        self.waiting: Video | None = None
        """Frames that do not yet complete a latent, fewer than the tokenizer's time factor."""
        self.size: tuple[int, int, int] | None = None
        """Batch, height and width, known after the first frame."""
        self.num_frames = 0
        """Frames pushed so far; decoding needs it to crop the padding."""
        self.ended = False

    def push(self, frames: Video | Image) -> Shaped[Tensor, "b ..."] | None:
        """Codes that these frames complete, or None.

        Takes one frame or more. The value range of the first chunk is checked as in `tokenize`,
        later ones as by `check_finite`.
        """
        frames = self.tokenizer.prepare(frames, check_values=self.num_frames == 0)
        check_finite(frames, "frames")
        return self._codes(self.push_quantized(frames))

    def flush(self) -> Shaped[Tensor, "b ..."] | None:
        """Ends the video: codes of the waiting frames, or None."""
        return self._codes(self.flush_quantized())

    def push_quantized(self, frames: Video | Image) -> Quantized | None:
        """`push` that returns latents and codes, without a range check."""
        frames = self._accept(frames)
        if self.waiting is not None:
            frames = torch.cat((self.waiting, frames), dim=2)
        remainder = (frames.shape[2] - self.num_alone) % self.tokenizer.time_factor
        num_ready = frames.shape[2] - remainder
        # A slice would keep the memory of all frames.
        self.waiting = frames[:, :, num_ready:].clone() if remainder else None
        return self._encode(frames[:, :, :num_ready]) if num_ready else None

    def flush_quantized(self) -> Quantized | None:
        """`flush` that returns quantized latents and codes."""
        if self.ended:
            raise ValueError("this stream has ended already")
        self.ended = True
        waiting, self.waiting = self.waiting, None
        return None if waiting is None else self._encode_rest(waiting)

    @abstractmethod
    def push_padded(self, frames: Video) -> Quantized:
        """Latents and codes of the next chunk, padded in space and time.

        No frames wait: every chunk but the last has as many as complete their latents.
        """

    def _accept(self, frames: Video | Image) -> Video:
        """Checked frames of the next chunk, which count as pushed."""
        if self.ended:
            raise ValueError("this stream has ended: start another with encode_stream()")
        frames = self.tokenizer.prepare(frames, check_values=False)
        self.size = check_same_size(frames, self.size)
        self.num_frames += frames.shape[2]
        return frames

    @property
    def num_alone(self) -> int:
        """First frames of the next chunk that complete a latent alone."""
        return 0

    @abstractmethod
    def _encode(self, frames: Video) -> Quantized:
        """Encodes frames that complete their latents."""

    def _encode_rest(self, frames: Video) -> Quantized:
        """Encodes the last frames of the video."""
        return self._encode(frames)

    def _codes(self, quantized: Quantized | None) -> Shaped[Tensor, "b ..."] | None:
        if quantized is None:
            return None
        return quantized.quantized if quantized.codes is None else quantized.codes


def check_same_size(frames: Video, size: tuple[int, int, int] | None) -> tuple[int, int, int]:
    """Batch, height and width; `ValueError` unless they are the stream's."""
    new = (len(frames), *frames.shape[3:])
    if size not in (None, new):
        raise ValueError(
            f"frames of batch, height and width {new} after {size}: give a stream frames of one "
            "size"
        )
    return new


class EncodeStream(FrameStream):
    """Stream from frames to codes, or to quantized latents if continuous."""

    def __init__(
        self,
        tokenizer: CausalTokenizer,
        cond: Condition | None = None,
        precision: Precision = "fp32",
        tile_size: TileSize | None = None,
    ):
        super().__init__(tokenizer, precision)
        self.cond, self.tile_size = cond, tile_size
        self.past: Past = None

    @property
    def num_alone(self) -> int:
        return self.tokenizer.num_alone if self.past is None else 0

    def push_padded(self, frames: Video) -> Quantized:
        frames = pad_space(frames, self.tokenizer.space_factor)
        is_first = self.past is None
        return self._encode(self._accept(pad_frames(frames, self.tokenizer.time_factor, is_first)))

    def _encode(self, frames: Video) -> Quantized:
        with inference(self.tokenizer, self.precision):
            if self.tile_size == "auto":
                self.tile_size = fit_tile_size(self.tokenizer, self.tokenizer.encoder, frames)
            latents, self.past = self.tokenizer.encode_chunk(
                frames, self.past, self.cond, self.tile_size
            )
            return self.tokenizer.quantize(latents)

    def _encode_rest(self, frames: Video) -> Quantized:
        # The first frame never waits, so this is not the first chunk.
        return self._encode(pad_frames(frames, self.tokenizer.time_factor, first=False))


class DecodeStream:
    """Stream from codes (or quantized latents) to at most `num_frames` frames.

    The frames are those of the whole video, for any chunks. If the decoder looks ahead, the frames
    that a later latent may change (`VideoTokenizer.look_ahead`) wait for it, or for `flush`.
    """

    def __init__(
        self,
        tokenizer: CausalTokenizer,
        cond: Condition | None = None,
        num_frames: int | None = None,
        precision: Precision = "fp32",
        tile_size: TileSize | None = None,
    ):
        self.tokenizer, self.cond, self.precision = tokenizer, cond, precision
        self.tile_size = tile_size
        check_at_least_one(num_frames=num_frames)
        self.max_frames = num_frames
        self.past: Past = None
        self.no_latents: Latents | None = None
        """Latents of this stream's shape, but none of them, known after the first."""
        self.num_frames = 0
        """Frames returned so far."""
        self.ended = False

    def push(self, codes: Shaped[Tensor, "b ..."]) -> Video | None:
        """The frames of these codes; None after the last of `num_frames`.

        Codes are integers `b t h w` (with several codebooks, their axis is last); floating-point
        input is quantized latents.
        """
        if self.ended:
            raise ValueError("this stream has ended: start another with decode_stream()")
        check_finite(codes, "quantized latents")
        is_latents = codes.is_floating_point()
        quantized = codes if is_latents else self.tokenizer.decode_codes(codes)
        if not quantized.shape[2]:
            raise ValueError("there are no codes: give those of one latent frame or more")
        none, before = quantized[:, :, :0].clone(), self.no_latents
        if before is not None and before.shape != none.shape:
            sizes = [(len(x), *x.shape[3:]) for x in (none, before)]
            raise ValueError(
                f"codes of batch, rows and columns {sizes[0]} after {sizes[1]}: give a stream "
                "codes of one size"
            )
        self.no_latents = none
        return self._decode(quantized)

    def flush(self) -> Video | None:
        """End the video: the frames that wait, or None."""
        if self.ended:
            raise ValueError("this stream has ended already")
        self.ended = True
        if self.no_latents is None or not self.tokenizer.config.look_ahead:
            return None
        return self._decode(self.no_latents, last=True)

    def _decode(self, quantized: Latents, last: bool = False) -> Video | None:
        with inference(self.tokenizer, self.precision):
            if self.tile_size == "auto":
                self.tile_size = fit_tile_size(self.tokenizer, self.tokenizer.decoder, quantized)
            video, self.past = self.tokenizer.decode_chunk(
                quantized, self.past, self.cond, self.tile_size, last=last
            )
        if self.max_frames is not None:
            video = video[:, :, : self.max_frames - self.num_frames]
        self.num_frames += video.shape[2]
        return video if video.shape[2] else None
