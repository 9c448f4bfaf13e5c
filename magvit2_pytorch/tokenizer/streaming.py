"""A video in pieces of any length: what is complete comes out, what is not waits.

A stream is a value of its own. It holds the past that the next piece needs and the frames that do
not make a latent yet; the tokenizer holds nothing of it. So there may be any number of streams on
one tokenizer, `copy.copy` branches one at no cost, and a pickled one goes on elsewhere.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from jaxtyping import Shaped
from torch import Tensor

from magvit2_pytorch.functional import autocast, pad_frames
from magvit2_pytorch.quantizers import Quantized
from magvit2_pytorch.tokenizer.tile_size import TileSize, fit_tile_size
from magvit2_pytorch.types import Codes, Condition, Image, Latents, Past, Precision, Video

if TYPE_CHECKING:
    from magvit2_pytorch.tokenizer.model import VideoTokenizer


@contextmanager
def inference(tokenizer: "VideoTokenizer", precision: Precision) -> Iterator[None]:
    """Eval mode, no gradients, `precision`; the tokenizer's own mode comes back afterwards."""
    was_training = tokenizer.training
    tokenizer.eval()
    try:
        with torch.no_grad(), autocast(tokenizer.device, precision):
            yield
    finally:
        tokenizer.train(was_training)


class EncodeStream:
    """Frames in, codes out (quantized latents, where they are continuous).

    However the frames are cut, the codes are those of the whole video.
    """

    def __init__(
        self,
        tokenizer: "VideoTokenizer",
        cond: Condition | None = None,
        precision: Precision = "fp32",
        tile_size: TileSize | None = None,
    ):
        self.tokenizer, self.cond, self.precision = tokenizer, cond, precision
        self.tile_size = tile_size
        self.past: Past = None
        self.waiting: Video | None = None
        """Frames that do not make a latent yet, fewer than the tokenizer's time factor."""
        self.size: tuple[int, int, int] | None = None
        """Batch, height and width, once there was a frame."""
        self.num_frames = 0
        """Frames that came so far: what `decode_from_code_indices` needs to cut off the padding."""
        self.ended = False

    def push(self, frames: Video | Image) -> Codes | Latents | None:
        """The codes that these frames complete, or None where they complete none.

        Takes one frame or more; the first of all completes a latent by itself.
        """
        quantized = self.push_quantized(frames)
        return None if quantized is None else _said(quantized)

    def flush(self) -> Codes | Latents | None:
        """Ends the video: the code of the frames still waiting, the last of them repeated.

        None where none is. Afterwards the stream takes no more frames.
        """
        quantized = self.flush_quantized()
        return None if quantized is None else _said(quantized)

    def push_quantized(self, frames: Video | Image) -> Quantized | None:
        """As `push`: both what `decode` hears and the codes."""
        if self.ended:
            raise ValueError("this stream has ended: start another with encode_stream()")
        frames = self.tokenizer.as_video(frames)
        size = (len(frames), *frames.shape[3:])
        if self.size not in (None, size):
            raise ValueError(
                f"frames of batch, height and width {size} after {self.size}: give a stream "
                "frames of one size"
            )
        self.size = size
        self.num_frames += frames.shape[2]
        if self.waiting is not None:
            frames = torch.cat((self.waiting, frames), dim=2)
        first = self.past is None
        left = (frames.shape[2] - first) % self.tokenizer.time_factor
        ready = frames.shape[2] - left
        # A slice would keep all of the memory that it is a slice of.
        self.waiting = frames[:, :, ready:].clone() if left else None
        return self._encode(frames[:, :, :ready]) if ready else None

    def flush_quantized(self) -> Quantized | None:
        """As `flush`: both what `decode` hears and the codes."""
        if self.ended:
            raise ValueError("this stream has ended already")
        self.ended = True
        waiting, self.waiting = self.waiting, None
        if waiting is None:
            return None
        # The first frame never waits, so this is a later chunk.
        return self._encode(pad_frames(waiting, self.tokenizer.time_factor, first=False))

    def _encode(self, frames: Video) -> Quantized:
        with inference(self.tokenizer, self.precision):
            if self.tile_size == "auto":
                self.tile_size = fit_tile_size(self.tokenizer, "encoder", frames)
            latents, self.past = self.tokenizer.encode_chunk(
                frames, self.past, self.cond, self.tile_size
            )
            return self.tokenizer.quantize(latents)


class DecodeStream:
    """Codes in (or quantized latents), frames out; `num_frames` of them at most.

    However the codes are cut, the frames are those of the whole video.
    """

    def __init__(
        self,
        tokenizer: "VideoTokenizer",
        cond: Condition | None = None,
        num_frames: int | None = None,
        precision: Precision = "fp32",
        tile_size: TileSize | None = None,
    ):
        self.tokenizer, self.cond, self.precision = tokenizer, cond, precision
        self.tile_size = tile_size
        self.limit = num_frames
        self.past: Past = None
        self.num_frames = 0
        """Frames that came out so far."""
        self.ended = False

    def push(self, codes: Shaped[Tensor, "b ..."]) -> Video | None:
        """The frames that these codes stand for; None past the last of `num_frames`.

        Codes are integers `b t h w` (and a codebook axis), floating point is quantized latents.
        """
        if self.ended:
            raise ValueError("this stream has ended: start another with decode_stream()")
        is_latents = codes.is_floating_point()
        quantized = codes if is_latents else self.tokenizer.decode_codes(codes)
        if not quantized.shape[2]:
            raise ValueError("no codes: give those of one latent frame or more")
        with inference(self.tokenizer, self.precision):
            if self.tile_size == "auto":
                self.tile_size = fit_tile_size(self.tokenizer, "decoder", quantized)
            video, self.past = self.tokenizer.decode_chunk(
                quantized, self.past, self.cond, self.tile_size
            )
        if self.limit is not None:
            video = video[:, :, : self.limit - self.num_frames]
        self.num_frames += video.shape[2]
        return video if video.shape[2] else None

    def flush(self) -> None:
        """Ends the video. Nothing ever waits here: codes are whole frames as they come."""
        if self.ended:
            raise ValueError("this stream has ended already")
        self.ended = True


def _said(quantized: Quantized) -> Codes | Latents:
    return quantized.quantized if quantized.codes is None else quantized.codes
