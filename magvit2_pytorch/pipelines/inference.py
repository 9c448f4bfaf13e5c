"""Options of running a tokenizer over files."""

from dataclasses import dataclass

import torch

from magvit2_pytorch.tokenizer.model import VideoTokenizer
from magvit2_pytorch.tokenizer.streaming import DecodeStream, EncodeStream
from magvit2_pytorch.tokenizer.tiling import TileSize, check_tile_size
from magvit2_pytorch.types import Precision


@dataclass(frozen=True)
class Inference:
    """Precision, tiles and chunks that a tokenizer computes with.

    Tiles and chunks change memory and speed, and results only by rounding.
    """

    precision: Precision = "fp32"
    """Of convolutions, as in `VideoTokenizer.encode_stream`."""
    tile_size: TileSize | None = None
    """Pixels to the side of a tile, as in `VideoTokenizer.encode`."""
    chunk_frames: int = 16
    """Frames to compute at a time."""

    def __post_init__(self):
        if self.chunk_frames < 1:
            raise ValueError(f"chunk_frames is {self.chunk_frames}: a chunk has at least one frame")

    def check(self, tokenizer: VideoTokenizer) -> None:
        """Raises `ValueError` unless `tile_size` is a multiple of the tokenizer's stride."""
        check_tile_size(self.tile_size, tokenizer.space_factor)

    def chunk_latents(self, tokenizer: VideoTokenizer) -> int:
        """Latent frames per chunk; the first chunk has one more."""
        return max(self.chunk_frames // tokenizer.time_factor, 1)

    def encode_stream(self, tokenizer: VideoTokenizer) -> EncodeStream:
        """A stream that encodes with these options."""
        return tokenizer.encode_stream(precision=self.precision, tile_size=self.tile_size)

    def decode_stream(
        self, tokenizer: VideoTokenizer, num_frames: int | None = None
    ) -> DecodeStream:
        """A stream that decodes with these options, up to `num_frames` frames."""
        return tokenizer.decode_stream(
            num_frames=num_frames, precision=self.precision, tile_size=self.tile_size
        )

    def frames_device(self, tokenizer: VideoTokenizer) -> torch.device:
        """The device of whole frames: the CPU if computing in tiles."""
        return tokenizer.device if self.tile_size is None else torch.device("cpu")
