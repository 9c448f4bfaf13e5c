"""Tokenizes, decodes and reconstructs video and image files in constant memory.

Frames pass through the tokenizer's streams in chunks: while one is computed, the next is decoded
from its file and the previous one is written. Only the codes grow with the length of a video, 8
bytes each (0.6 GB for an hour of 720p at 24 frames a second and 4 x 16 x 16). They are stored when
all are known, so that a code file is always complete. Sizes that are not multiples of the strides
are padded by repeating the last row, column and frame, and cropped to the true size afterwards.
"""

import math
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from magvit2_pytorch.codes.code_file import CodeHeader, VideoCodes, check_codes
from magvit2_pytorch.functional import pad_frames
from magvit2_pytorch.media.frames import to_float, to_uint8
from magvit2_pytorch.pipelines.fingerprint import (
    TokenizerId,
    check_same_tokenizer,
    check_supports_files,
)
from magvit2_pytorch.pipelines.inference import Inference
from magvit2_pytorch.pipelines.media_file import (
    Media,
    check_writable,
    chunks,
    media_writer,
    open_media,
    pad_space,
    space_padding,
)
from magvit2_pytorch.pipelines.prefetch import background_writer, prefetch
from magvit2_pytorch.quantizers.quantizer import Quantized
from magvit2_pytorch.tokenizer.model import VideoTokenizer
from magvit2_pytorch.tokenizer.streaming import EncodeStream
from magvit2_pytorch.types import VALUE_RANGE, Frames, Video

FrameCallback = Callable[[int, int], object]
"""Called with the number of frames done, starting at 0, and the expected total."""


class Reconstruction(NamedTuple):
    """Quality and size of a reconstructed file."""

    psnr_db: float
    """Over all frames and channels, as `metrics.psnr`, of the decoded frames before any video
    codec."""
    num_frames: int
    height: int
    width: int


def tokenize_file(
    tokenizer: VideoTokenizer,
    path: str | os.PathLike,
    *,
    size: int | None = None,
    inference: Inference = Inference(),
    tokenizer_id: TokenizerId | None = None,
    on_frames: FrameCallback | None = None,
) -> tuple[VideoCodes, CodeHeader]:
    """Tokenizes a video or image file.

    Returns the codes, on the CPU, and the header to store with them. `size` is the short side in
    pixels, by default that of the file. `tokenizer_id` avoids hashing all weights again for every
    file. Raises `UnusableMedia` if the file cannot be decoded, and `ValueError` if the tokenizer is
    conditional or continuous.
    """
    check_supports_files(tokenizer, needs_codes=True)
    tokenizer_id = tokenizer_id or TokenizerId.of(tokenizer)
    media = open_media(path, tokenizer.config.channels, size)
    if media.display.hdr:
        warnings.warn(
            f"{path}: a code file cannot say that its colours are {media.display.hdr} (HDR): "
            "decoded, they will look pale",
            stacklevel=2,
        )
    source = Path(path).name
    stream = inference.encode_stream(tokenizer)
    device = inference.frames_device(tokenizer)
    # One block for all codes: small ones that stay, between freed chunks, fragment the heap.
    expected = _header(tokenizer, tokenizer_id, media, media.num_frames, source)
    codes = torch.empty(expected.codes_shape, dtype=torch.int64)
    num_frames = num_latents = 0
    _report(on_frames, 0, media.num_frames)
    frame_chunks = chunks(media.frames, inference.chunk_frames, tokenizer.time_factor)
    with prefetch(frame_chunks) as prefetched:
        for frames in prefetched:
            new = _encode(stream, _as_video(frames, device)).codes[0]
            stop = num_latents + len(new)
            if stop > len(codes):  # the file has more frames than its header says
                more = codes.new_empty(max(stop, len(codes)), *codes.shape[1:])
                codes = torch.cat((codes, more))
            codes[num_latents:stop] = new
            num_latents = stop
            num_frames += len(frames)
            _report(on_frames, num_frames, media.num_frames)
    return codes[:num_latents], _header(tokenizer, tokenizer_id, media, num_frames, source)


def decode_file(
    tokenizer: VideoTokenizer,
    codes: VideoCodes,
    header: CodeHeader,
    out_path: str | os.PathLike,
    *,
    inference: Inference = Inference(),
    tokenizer_id: TokenizerId | None = None,
    force: bool = False,
    on_frames: FrameCallback | None = None,
) -> None:
    """Decodes codes to a video or image file.

    Raises `TokenizerMismatch` (a `ValueError`) if another tokenizer made the codes, unless `force`
    is given, and `ValueError` if the suffix of `out_path` does not fit the kind of file, or the
    codes do not fit the header.
    """
    check_writable(out_path, header.kind)
    check_supports_files(tokenizer, needs_codes=True)
    check_same_tokenizer(tokenizer, tokenizer_id or TokenizerId.of(tokenizer), header, force)
    check_codes(codes, header)
    with background_writer(media_writer(out_path, header.kind, header.fps)) as write:
        for frames in decoded_frames(tokenizer, codes, header, inference, on_frames):
            write(frames)


def reconstruct_file(
    tokenizer: VideoTokenizer,
    path: str | os.PathLike,
    out_path: str | os.PathLike,
    *,
    side_by_side: bool = False,
    size: int | None = None,
    inference: Inference = Inference(),
    on_frames: FrameCallback | None = None,
) -> Reconstruction:
    """Writes the reconstruction of a file, `side_by_side` with the original or alone.

    A video keeps its frame rate, the shape of its pixels, its colour tags, and its sound (the
    default audio stream; a gif has none). Works for continuous tokenizers too. Raises as
    `tokenize_file` and `decode_file` do.
    """
    check_supports_files(tokenizer, needs_codes=False)
    media = open_media(path, tokenizer.config.channels, size, square_pixels=False)
    check_writable(out_path, media.kind)
    frame_chunks = chunks(media.frames, inference.chunk_frames, tokenizer.time_factor)
    writer = media_writer(out_path, media.kind, media.fps, path, media.display)
    encoder, decoder = inference.encode_stream(tokenizer), inference.decode_stream(tokenizer)
    device = inference.frames_device(tokenizer)
    psnr = _StreamedPsnr()
    _report(on_frames, 0, media.num_frames)
    with prefetch(frame_chunks) as prefetched, background_writer(writer) as write:
        for frames in prefetched:
            video = _as_video(frames, device)
            recon = decoder.push(_encode(encoder, video).quantized.to(device))
            recon = recon[:, :, : len(frames), : media.height, : media.width]
            psnr.add(recon, video)
            recon_bytes = _to_bytes(recon)
            write(torch.cat((frames, recon_bytes), dim=2) if side_by_side else recon_bytes)
            _report(on_frames, psnr.num_frames, media.num_frames)
    return Reconstruction(psnr.value_db, psnr.num_frames, media.height, media.width)


def decoded_frames(
    tokenizer: VideoTokenizer,
    codes: VideoCodes,
    header: CodeHeader,
    inference: Inference = Inference(),
    on_frames: FrameCallback | None = None,
) -> Iterator[Frames]:
    """Decodes codes to chunks of frames, cropped to their true size."""
    stream = inference.decode_stream(tokenizer, header.num_frames)
    device = inference.frames_device(tokenizer)
    step = inference.chunk_latents(tokenizer)
    # The first latent stands for a single frame and belongs to the first chunk.
    starts = [0, *range(1 + step, len(codes), step)]
    _report(on_frames, 0, header.num_frames)
    for start, stop in zip(starts, [*starts[1:], len(codes)], strict=True):
        video = stream.push(codes[None, start:stop].to(device))
        frames = _to_bytes(video[..., : header.height, : header.width])
        _report(on_frames, stream.num_frames, header.num_frames)
        yield frames


def _as_video(frames: Frames, device: torch.device) -> Video:
    """Frames as a video in [-1, 1] on a device."""
    # Copy bytes to the device, not floats.
    return to_float(frames.to(device))[None]


def _encode(stream: EncodeStream, video: Video) -> Quantized:
    """Encodes the next chunk, padded in space and time."""
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
    """PSNR of a video given chunk by chunk."""

    def __init__(self):
        self.total, self.count, self.num_frames = 0.0, 0, 0

    def add(self, recon: Video, real: Video) -> None:
        difference = recon.clamp(*VALUE_RANGE) - real.to(recon)
        self.total += float(difference.square().sum(dtype=torch.float64))
        self.count += difference.numel()
        self.num_frames += real.shape[2]

    @property
    def value_db(self) -> float:
        low, high = VALUE_RANGE
        mean = self.total / self.count
        return 10 * math.log10((high - low) ** 2 / mean) if mean else math.inf


def _to_bytes(video: Video) -> Frames:
    # Decoders overshoot; to_uint8 would take values that overshoot everywhere for a wrong range.
    return to_uint8(video[0].clamp(*VALUE_RANGE)).cpu()


def _report(on_frames: FrameCallback | None, done: int, total: int) -> None:
    if on_frames is not None:
        on_frames(done, total)
