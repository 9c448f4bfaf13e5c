"""Video and image files to codes, codes to files, and both at once, in constant memory.

Frames pass in chunks through the tokenizer's streams: while one is computed, the next is decoded
from its file and the last is written to another. All that grows with the length of a video are its
codes, 8 bytes each (0.6 GB for an hour of 720p at 24 frames a second and 4 x 16 x 16): they are
stored when the last one is known, so that their file is whole. Sizes that the strides do not divide
are padded by repeating the last row, column and frame, and cut back to the true size afterwards.
"""

import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from magvit2_pytorch.data import CodeHeader, to_float, to_uint8
from magvit2_pytorch.data.code_file import OneVideosCodes, check_codes
from magvit2_pytorch.evaluation.compatibility import check_same_tokenizer, check_supports_files
from magvit2_pytorch.evaluation.identity import TokenizerId
from magvit2_pytorch.evaluation.media import (
    DEFAULT_CHUNK_FRAMES,
    Media,
    check_writable,
    chunks,
    media_writer,
    open_media,
)
from magvit2_pytorch.evaluation.overlap import background_writer, prefetch
from magvit2_pytorch.evaluation.preprocess import pad_space, space_padding
from magvit2_pytorch.functional import pad_frames
from magvit2_pytorch.quantizers import Quantized
from magvit2_pytorch.tokenizer.model import VideoTokenizer
from magvit2_pytorch.tokenizer.streaming import EncodeStream
from magvit2_pytorch.tokenizer.tile_size import TileSize
from magvit2_pytorch.types import VALUE_RANGE, Frames, Precision, Video

FrameCallback = Callable[[int, int], object]
"""Is told how many frames are done, and how many there should be; first of all, that none are."""


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
    tile_size: TileSize | None = None,
    tokenizer_id: TokenizerId | None = None,
    on_frames: FrameCallback | None = None,
) -> tuple[OneVideosCodes, CodeHeader]:
    """The codes of a video or image file, on the CPU, and the header to store with them.

    `size` is the short side in pixels; the file's own if not given. `tile_size` is that of
    `VideoTokenizer.encode`. `tokenizer_id` spares reading all weights again for every file. Raises
    `UnusableMedia` where the file cannot be decoded and `ValueError` where the tokenizer is
    conditional or continuous.
    """
    check_supports_files(tokenizer, needs_codes=True)
    tokenizer_id = tokenizer_id or TokenizerId.of(tokenizer)
    media = open_media(path, tokenizer.config.channels, size)
    source = Path(path).name
    stream = tokenizer.encode_stream(precision=precision, tile_size=tile_size)
    place = frames_device(tokenizer, tile_size)
    # One block for all: small ones that stay, between chunks that go, tear the heap to pieces.
    promised = _header(tokenizer, tokenizer_id, media, media.num_frames, source)
    codes = torch.empty(promised.codes_shape, dtype=torch.int64)
    num_frames = num_latents = 0
    _tell(on_frames, 0, media.num_frames)
    with prefetch(chunks(media.frames, chunk_frames, tokenizer.time_factor)) as runs:
        for frames in runs:
            new = _encode(stream, _as_video(frames, place)).codes[0]
            stop = num_latents + len(new)
            if stop > len(codes):  # the file promised too little
                more = codes.new_empty(max(stop, len(codes)), *codes.shape[1:])
                codes = torch.cat((codes, more))
            codes[num_latents:stop] = new
            num_latents = stop
            num_frames += len(frames)
            _tell(on_frames, num_frames, media.num_frames)
    return codes[:num_latents], _header(tokenizer, tokenizer_id, media, num_frames, source)


def decode_file(
    tokenizer: VideoTokenizer,
    codes: OneVideosCodes,
    header: CodeHeader,
    out_path: str | os.PathLike,
    *,
    chunk_frames: int = DEFAULT_CHUNK_FRAMES,
    precision: Precision = "fp32",
    tile_size: TileSize | None = None,
    tokenizer_id: TokenizerId | None = None,
    force: bool = False,
    on_frames: FrameCallback | None = None,
) -> None:
    """Writes the video or image that the codes stand for, at its true size and frame rate.

    Raises `TokenizerMismatch` (a `ValueError`) where another tokenizer made the codes, unless
    `force`, and `ValueError` where the suffix of `out_path` does not fit, or the codes are not
    those that the header speaks of.
    """
    check_writable(out_path, header.kind)
    check_supports_files(tokenizer, needs_codes=True)
    check_same_tokenizer(tokenizer, tokenizer_id or TokenizerId.of(tokenizer), header, force)
    check_codes(codes, header)
    how = (chunk_frames, precision, tile_size)
    runs = decoded_frames(tokenizer, codes, header, *how, on_frames)
    with background_writer(media_writer(out_path, header.kind, header.fps)) as write:
        for frames in runs:
            write(frames)


def reconstruct_file(
    tokenizer: VideoTokenizer,
    path: str | os.PathLike,
    out_path: str | os.PathLike,
    *,
    side_by_side: bool = False,
    size: int | None = None,
    chunk_frames: int = DEFAULT_CHUNK_FRAMES,
    precision: Precision = "fp32",
    tile_size: TileSize | None = None,
    on_frames: FrameCallback | None = None,
) -> Reconstruction:
    """Writes what the tokenizer makes of a file, right of the original if `side_by_side`.

    A video keeps its frame rate and its sound (the first audio stream; a gif has none). Works
    for continuous tokenizers too. Raises as `tokenize_file` and `decode_file` do.
    """
    check_supports_files(tokenizer, needs_codes=False)
    media = open_media(path, tokenizer.config.channels, size)
    check_writable(out_path, media.kind)
    runs = chunks(media.frames, chunk_frames, tokenizer.time_factor)
    writer = media_writer(out_path, media.kind, media.fps, audio_from=path)
    encoder = tokenizer.encode_stream(precision=precision, tile_size=tile_size)
    decoder = tokenizer.decode_stream(precision=precision, tile_size=tile_size)
    place = frames_device(tokenizer, tile_size)
    error = _StreamedPsnr()
    _tell(on_frames, 0, media.num_frames)
    with prefetch(runs) as coming, background_writer(writer) as write:
        for frames in coming:
            video = _as_video(frames, place)
            recon = decoder.push(_encode(encoder, video).quantized.to(place))
            recon = recon[:, :, : len(frames), : media.height, : media.width]
            error.add(recon, video)
            levels = _to_bytes(recon)
            write(torch.cat((frames, levels), dim=2) if side_by_side else levels)
            _tell(on_frames, error.num_frames, media.num_frames)
    return Reconstruction(error.psnr_db, error.num_frames, media.height, media.width)


def decoded_frames(
    tokenizer: VideoTokenizer,
    codes: OneVideosCodes,
    header: CodeHeader,
    chunk_frames: int = DEFAULT_CHUNK_FRAMES,
    precision: Precision = "fp32",
    tile_size: TileSize | None = None,
    on_frames: FrameCallback | None = None,
) -> Iterator[Frames]:
    """The frames that a code file stands for, run by run, cut to their true size and number."""
    options = dict(precision=precision, tile_size=tile_size)
    stream = tokenizer.decode_stream(num_frames=header.num_frames, **options)
    place = frames_device(tokenizer, tile_size)
    step = max(chunk_frames // tokenizer.time_factor, 1)
    # The first latent is one frame alone; it goes with the first run.
    starts = [0, *range(1 + step, len(codes), step)]
    _tell(on_frames, 0, header.num_frames)
    for start, stop in zip(starts, [*starts[1:], len(codes)], strict=True):
        video = stream.push(codes[None, start:stop].to(place))
        levels = _to_bytes(video[..., : header.height, : header.width])
        _tell(on_frames, stream.num_frames, header.num_frames)
        yield levels


def frames_device(tokenizer: VideoTokenizer, tile_size: TileSize | None) -> torch.device:
    """Where whole frames are: with the tokenizer, or, if that is to hold tiles only, on the CPU."""
    return tokenizer.device if tile_size is None else torch.device("cpu")


def _as_video(frames: Frames, device: torch.device) -> Video:
    """Frames of a file as a video in [-1, 1] on a device; they travel as bytes."""
    return to_float(frames.to(device))[None]


def _encode(stream: EncodeStream, video: Video) -> Quantized:
    """The latents and codes of the next run of `chunks`, padded in space and, the last, in time."""
    padded = pad_space(video, stream.tokenizer.space_factor)
    is_first = not stream.num_frames
    return stream.push_quantized(pad_frames(padded, stream.tokenizer.time_factor, is_first))


def _header(
    tokenizer: VideoTokenizer, tokenizer_id: TokenizerId, media: Media, num_frames: int, source: str
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
        tokenizer=tokenizer_id.name,
        fingerprint=tokenizer_id.fingerprint,
        source=source,
    )


class _StreamedPsnr:
    """The PSNR of a clip that is never whole in memory."""

    def __init__(self):
        self.total, self.count, self.num_frames = 0.0, 0, 0

    def add(self, recon: Video, real: Video) -> None:
        difference = recon.clamp(*VALUE_RANGE) - real.to(recon)
        self.total += float(difference.square().sum(dtype=torch.float64))
        self.count += difference.numel()
        self.num_frames += real.shape[2]

    @property
    def psnr_db(self) -> float:
        low, high = VALUE_RANGE
        mean = self.total / self.count
        return 10 * math.log10((high - low) ** 2 / mean) if mean else math.inf


def _to_bytes(video: Video) -> Frames:
    # Decoders overshoot, and to_uint8 takes what overshoots everywhere for a mistake of range.
    return to_uint8(video[0].clamp(*VALUE_RANGE)).cpu()


def _tell(on_frames: FrameCallback | None, done: int, total: int) -> None:
    if on_frames is not None:
        on_frames(done, total)
