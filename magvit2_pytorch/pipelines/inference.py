"""Options of running a tokenizer or super-resolution over files."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError

from magvit2_pytorch.super_resolution import SuperResolution, UpscaleStream
from magvit2_pytorch.tokenizer.model import VideoTokenizer
from magvit2_pytorch.tokenizer.pretrained import CONFIG_FILE
from magvit2_pytorch.tokenizer.streaming import DecodeStream, EncodeStream
from magvit2_pytorch.tokenizer.tiling import TileSize, check_tile_size
from magvit2_pytorch.tokenizer_1d import AnyTokenizer, Tokenizer1d
from magvit2_pytorch.tokenizer_1d.sequence_streams import TokenDecodeStream, TokenEncodeStream
from magvit2_pytorch.types import Precision


def load_tokenizer(name: str) -> AnyTokenizer:
    """A tokenizer of any kind from a folder or the Hugging Face hub.

    Raises as `VideoTokenizer.from_pretrained` does.
    """
    folder = Path(name)
    try:
        path = folder / CONFIG_FILE if folder.exists() else hf_hub_download(name, CONFIG_FILE)
        config = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, HfHubHTTPError):  # `from_pretrained` says what is wrong
        config = {}
    is_sequence = isinstance(config, dict) and "num_tokens" in config
    return (Tokenizer1d if is_sequence else VideoTokenizer).from_pretrained(name)


@dataclass(frozen=True)
class Inference:
    """Precision, tiles and chunks that a tokenizer or super-resolution computes with.

    Tiles and chunks change memory and speed, and results only by rounding.
    """

    precision: Precision = "fp32"
    """Of convolutions, as in `VideoTokenizer.encode_stream`."""
    tile_size: TileSize | None = None
    """Pixels to the side of a tile, as in `VideoTokenizer.encode`."""
    chunk_frames: int = 16
    """Frames to compute at a time."""
    num_tokens: int | str | None = None
    """Tokens of each part of a video, as in `Tokenizer1d.tokenize`; None for the configured
    number. In decoding, as many as there are at most."""

    def __post_init__(self):
        if self.chunk_frames < 1:
            raise ValueError(f"chunk_frames is {self.chunk_frames}: a chunk has at least one frame")

    def check(self, tokenizer: AnyTokenizer | SuperResolution) -> None:
        """Raises `ValueError` unless the model can compute with these options."""
        if isinstance(tokenizer, Tokenizer1d):
            tokenizer.counts([], self.num_tokens)
            if self.tile_size is not None:
                raise ValueError(
                    "a 1-D tokenizer takes no tile_size, as its tokens describe whole frames: give "
                    "a smaller size"
                )
            return
        if self.num_tokens is not None:
            raise ValueError(
                f"num_tokens is {self.num_tokens}, but only a 1-D tokenizer has tokens to choose "
                "from: leave it out"
            )
        check_tile_size(self.tile_size, tokenizer.space_factor)

    def chunk_latents(self, tokenizer: AnyTokenizer) -> int:
        """Latent frames per chunk; the first chunk has one more."""
        return max(self.chunk_frames // tokenizer.time_factor, 1)

    def encode_stream(self, tokenizer: AnyTokenizer) -> EncodeStream | TokenEncodeStream:
        """A stream that encodes with these options."""
        if isinstance(tokenizer, Tokenizer1d):
            return tokenizer.encode_stream(self.num_tokens, self.precision)
        return tokenizer.encode_stream(precision=self.precision, tile_size=self.tile_size)

    def decode_stream(
        self,
        tokenizer: AnyTokenizer,
        num_frames: int | None = None,
        size: tuple[int, int] | None = None,
    ) -> DecodeStream | TokenDecodeStream:
        """A stream that decodes with these options, up to `num_frames` frames.

        A 1-D tokenizer needs the `size` of frames, (height, width).
        """
        if isinstance(tokenizer, Tokenizer1d):
            return tokenizer.decode_stream(size, num_frames, self.precision)
        return tokenizer.decode_stream(
            num_frames=num_frames, precision=self.precision, tile_size=self.tile_size
        )

    def upscale_stream(self, upscaler: SuperResolution) -> UpscaleStream:
        """A stream that enlarges frames with these options."""
        return upscaler.stream(self.precision, self.tile_size)

    def frames_device(self, model: AnyTokenizer | SuperResolution) -> torch.device:
        """The device of whole frames: the CPU if computing in tiles."""
        return model.device if self.tile_size is None else torch.device("cpu")
