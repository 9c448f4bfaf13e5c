"""Video and image files to codes, codes to files, and both at once, in constant memory.

Frames pass in chunks through `encode_chunk` and `decode_chunk`, so that an hour of film takes no
more memory than a second. Sizes that the strides do not divide are padded by repeating the last
row, column and frame, and cut back to the true size afterwards.
"""

import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from magvit2_pytorch.data import CodeHeader, to_float, to_uint8
from magvit2_pytorch.data.code_file import OneVideosCodes
from magvit2_pytorch.evaluation.compatibility import check_takes_files, check_understands
from magvit2_pytorch.evaluation.identity import Identity, identify
from magvit2_pytorch.evaluation.media import Media, check_writable, chunks, open_media, write_media
from magvit2_pytorch.evaluation.preprocess import space_padding
from magvit2_pytorch.evaluation.streaming import (
    DEFAULT_CHUNK_FRAMES,
    decode_run,
    device_of,
    encode_run,
)
from magvit2_pytorch.tokenizer.model import VideoTokenizer
from magvit2_pytorch.types import VALUE_RANGE, Frames, Precision, Video

OnFrames = Callable[[int, int], object]
"""Is told how many frames are done, and how many there should be."""


class Reconstruction(NamedTuple):
    """What became of one file."""

    psnr_db: float
    """Over all frames and channels, as `metrics.psnr` has it, in what was decoded, before any
    video codec."""
    num_frames: int
    height: int
    width: int


def tokenize_file(
    tokenizer: VideoTokenizer,
    path: str | os.PathLike,
    *,
    size: int | None = None,
    chunk_frames: int = DEFAULT_CHUNK_FRAMES,
    precision: Precision = "fp32",
    identity: Identity | None = None,
    on_frames: OnFrames | None = None,
) -> tuple[OneVideosCodes, CodeHeader]:
    """The codes of a video or image file, on the CPU, and the header to store with them.

    `size` is the short side in pixels; the file's own if not given. `identity` spares reading
    all weights again for every file. Raises `UnusableMedia` where the file cannot be decoded and
    `ValueError` where the tokenizer is conditional or continuous.
    """
    check_takes_files(tokenizer, needs_codes=True)
    identity = identity or identify(tokenizer)
    media = open_media(path, tokenizer.config.channels, size)
    parts, past, num_frames = [], None, 0
    for frames in chunks(media.frames, chunk_frames, tokenizer.time_factor):
        quantized, past = encode_run(tokenizer, frames, past, precision)
        parts.append(quantized.codes[0].cpu())
        num_frames += len(frames)
        _tell(on_frames, num_frames, media.num_frames)
    header = _header(tokenizer, identity, media, num_frames, Path(path).name)
    return torch.cat(parts), header


def decode_file(
    tokenizer: VideoTokenizer,
    codes: OneVideosCodes,
    header: CodeHeader,
    out_path: str | os.PathLike,
    *,
    chunk_frames: int = DEFAULT_CHUNK_FRAMES,
    precision: Precision = "fp32",
    identity: Identity | None = None,
    force: bool = False,
    on_frames: OnFrames | None = None,
) -> None:
    """Writes the video or image that the codes stand for, at its true size and frame rate.

    Raises `TokenizerMismatch` (a `ValueError`) where another tokenizer made the codes, unless
    `force`, and `ValueError` where the suffix of `out_path` does not fit.
    """
    check_writable(out_path, header.kind)
    check_takes_files(tokenizer, needs_codes=True)
    check_understands(tokenizer, identity or identify(tokenizer), header, force)
    frames = decoded_frames(tokenizer, codes, header, chunk_frames, precision, on_frames)
    write_media(out_path, header.kind, header.fps, frames)


def reconstruct_file(
    tokenizer: VideoTokenizer,
    path: str | os.PathLike,
    out_path: str | os.PathLike,
    *,
    side_by_side: bool = False,
    size: int | None = None,
    chunk_frames: int = DEFAULT_CHUNK_FRAMES,
    precision: Precision = "fp32",
    on_frames: OnFrames | None = None,
) -> Reconstruction:
    """Writes what the tokenizer makes of a file, right of the original if `side_by_side`.

    A video keeps its frame rate and its sound (the first audio stream; a gif has none). Works
    for continuous tokenizers too. Raises as `tokenize_file` and `decode_file` do.
    """
    check_takes_files(tokenizer, needs_codes=False)
    media = open_media(path, tokenizer.config.channels, size)
    error = _SquaredError()

    def runs() -> Iterator[Frames]:
        for real, recon in reconstructed_runs(tokenizer, media, chunk_frames, precision):
            error.add(recon, real)
            levels = _to_bytes(recon)
            _tell(on_frames, error.num_frames, media.num_frames)
            yield torch.cat((real, levels), dim=2) if side_by_side else levels

    write_media(out_path, media.kind, media.fps, runs(), audio_from=path)
    return Reconstruction(error.psnr_db, error.num_frames, media.height, media.width)


def decoded_frames(
    tokenizer: VideoTokenizer,
    codes: OneVideosCodes,
    header: CodeHeader,
    chunk_frames: int = DEFAULT_CHUNK_FRAMES,
    precision: Precision = "fp32",
    on_frames: OnFrames | None = None,
) -> Iterator[Frames]:
    """The frames that a code file stands for, run by run, cut to their true size and number."""
    step = max(chunk_frames // tokenizer.time_factor, 1)
    past, done = None, 0
    # The first latent is one frame alone; it goes with the first run.
    starts = [0, *range(1 + step, len(codes), step)]
    for start, stop in zip(starts, [*starts[1:], len(codes)], strict=True):
        run = codes[None, start:stop].to(device_of(tokenizer))
        quantized = tokenizer.quantizer.decode_codes(run)
        video, past = decode_run(tokenizer, quantized, past, precision)
        video = video[:, :, : header.num_frames - done, : header.height, : header.width]
        done += video.shape[2]
        _tell(on_frames, done, header.num_frames)
        yield _to_bytes(video)


def reconstructed_runs(
    tokenizer: VideoTokenizer, media: Media, chunk_frames: int, precision: Precision
) -> Iterator[tuple[Frames, Video]]:
    """Runs of frames and their reconstructions, of the same number and size."""
    past = decoder_past = None
    for frames in chunks(media.frames, chunk_frames, tokenizer.time_factor):
        (quantized, _), past = encode_run(tokenizer, frames, past, precision)
        recon, decoder_past = decode_run(tokenizer, quantized, decoder_past, precision)
        yield frames, recon[:, :, : len(frames), : media.height, : media.width]


def _header(
    tokenizer: VideoTokenizer, identity: Identity, media: Media, num_frames: int, source: str
) -> CodeHeader:
    padding = space_padding(media.height, media.width, tokenizer.space_factor)
    padded = (media.height + padding[0], media.width + padding[1])
    return CodeHeader(
        kind=media.kind,
        num_frames=num_frames,
        height=media.height,
        width=media.width,
        padding=padding,
        fps=media.fps,
        grid=tokenizer.latent_grid(num_frames, *padded),
        codebook_size=tokenizer.codebook_size,
        num_codebooks=tokenizer.num_codebooks,
        time_factor=tokenizer.time_factor,
        space_factor=tokenizer.space_factor,
        tokenizer=identity.name,
        fingerprint=identity.fingerprint,
        source=source,
    )


class _SquaredError:
    """The PSNR of a clip that is never whole in memory."""

    def __init__(self):
        self.total, self.count, self.num_frames = 0.0, 0, 0

    def add(self, recon: Video, real: Frames) -> None:
        difference = recon.clamp(*VALUE_RANGE) - to_float(real)[None].to(recon)
        self.total += float(difference.square().sum(dtype=torch.float64))
        self.count += difference.numel()
        self.num_frames += len(real)

    @property
    def psnr_db(self) -> float:
        low, high = VALUE_RANGE
        mean = self.total / self.count
        return 10 * math.log10((high - low) ** 2 / mean) if mean else math.inf


def _to_bytes(video: Video) -> Frames:
    # Decoders overshoot, and to_uint8 takes what overshoots everywhere for a mistake of range.
    return to_uint8(video[0].clamp(*VALUE_RANGE)).cpu()


def _tell(on_frames: OnFrames | None, done: int, total: int) -> None:
    if on_frames is not None:
        on_frames(done, total)
