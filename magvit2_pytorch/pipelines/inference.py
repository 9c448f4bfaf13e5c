"""Options of running a tokenizer or super-resolution over files, and reconstruction."""

import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError
from torch import Tensor

from magvit2_pytorch.layers.arithmetic import has_kernels
from magvit2_pytorch.super_resolution import SuperResolution, UpscaleStream
from magvit2_pytorch.tokenizer.model import VideoTokenizer
from magvit2_pytorch.tokenizer.pretrained import CONFIG_FILE
from magvit2_pytorch.tokenizer.streaming import DecodeStream, EncodeStream
from magvit2_pytorch.tokenizer.tiling import TileSize, check_tile_size
from magvit2_pytorch.tokenizer_1d import AnyTokenizer, TokenCodes, Tokenizer1d
from magvit2_pytorch.tokenizer_1d.sequence_streams import TokenDecodeStream, TokenEncodeStream
from magvit2_pytorch.types import Codes, Precision, Video


def load_tokenizer(name: str) -> AnyTokenizer:
    """A tokenizer of any kind from a folder or Hugging Face.

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
            return tokenizer.decode_stream(size, num_frames, self.precision, self.num_tokens)
        return tokenizer.decode_stream(
            num_frames=num_frames, precision=self.precision, tile_size=self.tile_size
        )

    def upscale_stream(self, upscaler: SuperResolution) -> UpscaleStream:
        """A stream that enlarges frames with these options."""
        return upscaler.stream(self.precision, self.tile_size)

    def frames_device(self, model: AnyTokenizer | SuperResolution) -> torch.device:
        """The device of whole frames: the CPU if computing in tiles."""
        return model.device if self.tile_size is None else torch.device("cpu")


def reconstruct_chunks(
    tokenizer: AnyTokenizer, chunks: Iterable[Tensor], inference: Inference = Inference()
) -> Iterator[tuple[Tensor, Tensor, Codes | TokenCodes | None]]:
    """Frames, their reconstruction, and the codes of each chunk of one video.

    Chunks are `b c t h w`, of different lengths. If the decoder looks ahead, frames wait for their
    reconstruction, and the last ones come without codes. A continuous tokenizer has no codes.
    """
    device = inference.frames_device(tokenizer)
    encoder, decoder = inference.encode_stream(tokenizer), None
    waiting: Tensor | None = None
    for video in chunks:
        if decoder is None:
            decoder = inference.decode_stream(tokenizer, size=tuple(video.shape[-2:]))
        quantized = encoder.push_padded(video.to(device))
        if isinstance(tokenizer, Tokenizer1d):
            lengths = [part.shape[2] for part in video.split(tokenizer.time_factor, dim=2)]
            parts = quantized.quantized.split(encoder.count, dim=-1)
            frames = [decoder.push(*pair) for pair in zip(parts, lengths, strict=True)]
            recon = torch.cat(frames, dim=2)
        else:
            recon = decoder.push(quantized.quantized.to(device))
        waiting = video if waiting is None else torch.cat((waiting, video), dim=2)
        num_frames, height, width = waiting.shape[2:]
        recon = recon[:, :, :num_frames, :height, :width]
        yield waiting[:, :, : recon.shape[2]], recon, quantized.codes
        waiting = waiting[:, :, recon.shape[2] :]
    recon = None if decoder is None else decoder.flush()
    if recon is not None and waiting is not None:
        num_frames, height, width = waiting.shape[2:]
        yield waiting, recon[:, :, :num_frames, :height, :width], None


def reconstruct_clip(
    tokenizer: AnyTokenizer, video: Video, inference: Inference = Inference()
) -> tuple[Video, Codes | TokenCodes | None]:
    """Reconstruction and codes of a whole clip, computed in chunks."""
    step = inference.chunk_latents(tokenizer) * tokenizer.time_factor
    first = tokenizer.num_alone + step
    chunks = video.tensor_split(tuple(range(first, video.shape[2], step)), dim=2)
    _, recon, codes = zip(*reconstruct_chunks(tokenizer, chunks, inference), strict=True)
    codes = [new for new in codes if new is not None]
    video = torch.cat(recon, dim=2).to(tokenizer.device)
    return video, torch.cat(codes, dim=1) if codes else None


MIN_SPEEDUP = 1.2
"""bf16 is chosen if it is this many times as fast as float32, so that noise does not decide."""

MIN_AGREEMENT = 0.9
"""bf16 is chosen if this share of codes is that of float32; 0.98 is usual (RESULTS.md)."""

CHECKED_SIDE = 64
"""Pixels to a side of the frames that are tried."""


def choose_precision(tokenizer: AnyTokenizer) -> tuple[Precision, str]:
    """bf16 if it is faster and codes agree, else fp32; and why.

    Encodes a few frames of a moving pattern in both, three times in turn. Continuous latents agree
    as far as their difference is small against them. Two machines may choose differently.
    """
    device = tokenizer.device
    if device.type == "cpu" and not has_kernels(torch.bfloat16):
        return "fp32", "precision fp32: this processor has no arithmetic in bf16"
    video = _moving_pattern(tokenizer).to(device)
    found, seconds = {}, {}
    for _ in range(3):
        for precision in ("fp32", "bf16"):
            stream = Inference(precision).encode_stream(tokenizer)
            started = time.perf_counter()
            parts = [part for part in (stream.push(video), stream.flush()) if part is not None]
            found[precision] = torch.cat([part.flatten(1) for part in parts], dim=1).cpu()
            seconds.setdefault(precision, []).append(time.perf_counter() - started)
    exact, low = found["fp32"], found["bf16"]
    if exact.is_floating_point():
        agreement = 1 - float((low.float() - exact).norm() / exact.norm())
    else:
        agreement = float((low == exact).float().mean())
    speedup = min(seconds["fp32"]) / min(seconds["bf16"])
    chosen = "bf16" if speedup >= MIN_SPEEDUP and agreement >= MIN_AGREEMENT else "fp32"
    what = "latents" if exact.is_floating_point() else "codes"
    return chosen, (
        f"precision {chosen}: bf16 is {speedup:.1f} times as fast as fp32 here, and its {what} "
        f"agree to {agreement:.0%}"
    )


def _moving_pattern(tokenizer: AnyTokenizer) -> Video:
    """Frames of two latents: drifting waves with a little noise."""
    factor = tokenizer.space_factor
    side = max(min(CHECKED_SIDE, *tokenizer.config.height_and_width) // factor, 1) * factor
    generator = torch.Generator().manual_seed(0)
    axes = (torch.arange(float(size)) for size in (1 + tokenizer.time_factor, side, side))
    t, y, x = torch.meshgrid(*axes, indexing="ij")
    channels = tokenizer.config.channels
    waves = [
        torch.sin((x * (c + 1) + y * (2 - c) + 2 * t) / 9) * torch.cos((x - y) / (5 + c))
        for c in range(channels)
    ]
    video = torch.stack(waves)[None]
    return 0.8 * video + 0.1 * (torch.rand(video.shape, generator=generator) - 0.5)
