"""Tokenizes, decodes and reconstructs video and image files in constant memory.

Frames pass through the tokenizer's streams in chunks: while one is computed, the next is decoded
from its file and the previous one is written. Only the codes grow with the length of a video, 8
bytes each (0.6 GB for an hour of 720p at 24 frames a second and 4 x 16 x 16). They are stored when
all are known, so that a code file is always complete. Sizes that are not multiples of the strides
are padded by repeating the last row, column and frame, and cropped to the true size afterwards.
"""

import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from magvit2_pytorch.codes.code_header import CodedVideo, CodeHeader, VideoCodes, file_state
from magvit2_pytorch.media.frames import to_float, to_uint8
from magvit2_pytorch.metrics.quality import StreamedPsnr
from magvit2_pytorch.pipelines.fingerprint import (
    TokenizerId,
    check_same_tokenizer,
    check_supports_files,
)
from magvit2_pytorch.pipelines.inference import Inference
from magvit2_pytorch.pipelines.media_file import (
    check_writable,
    chunks,
    media_writer,
    open_media,
    space_padding,
)
from magvit2_pytorch.pipelines.prefetch import background_writer, prefetch
from magvit2_pytorch.pipelines.progress import FrameCallback
from magvit2_pytorch.pipelines.round_trip import encode_padded, reconstruct_chunks
from magvit2_pytorch.tokenizer.model import VideoTokenizer
from magvit2_pytorch.types import VALUE_RANGE, Frames, Video


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
) -> tuple[VideoCodes, CodedVideo]:
    """Tokenizes a video or image file.

    Returns the codes, on the CPU, and the metadata to store with them. `size` is the short side in
    pixels, by default that of the file. `tokenizer_id` avoids hashing all weights again for every
    file. Raises `UnusableMedia` if the file cannot be decoded, and `ValueError` if the tokenizer is
    conditional or continuous.
    """
    header = code_header(tokenizer, size=size, inference=inference, tokenizer_id=tokenizer_id)
    state = file_state(path)
    media = open_media(path, tokenizer.config.channels, size)
    if media.display.hdr:
        warnings.warn(
            f"{path}: a code file cannot say that its colours are {media.display.hdr} (HDR): "
            "decoded, they will look pale",
            stacklevel=2,
        )
    stream = inference.encode_stream(tokenizer)
    device = inference.frames_device(tokenizer)
    # One block for all codes: small ones that stay, between freed chunks, fragment the heap.
    expected = codes_shape(tokenizer, media.num_frames, media.height, media.width)
    codes = torch.empty(expected, dtype=torch.int64)
    num_frames = num_latents = 0
    _report(on_frames, 0, media.num_frames)
    frame_chunks = chunks(media.frames, inference.chunk_frames, tokenizer.time_factor)
    with prefetch(frame_chunks) as prefetched:
        for frames in prefetched:
            new = encode_padded(stream, _as_video(frames, device)).codes[0]
            stop = num_latents + len(new)
            if stop > len(codes):  # the file has more frames than its header says
                more = codes.new_empty(max(stop, len(codes)), *codes.shape[1:])
                codes = torch.cat((codes, more))
            codes[num_latents:stop] = new
            num_latents = stop
            num_frames += len(frames)
            _report(on_frames, num_frames, media.num_frames)
    codes = codes[:num_latents]
    return codes, CodedVideo(
        header=header,
        source=Path(path).name,
        kind=media.kind,
        num_frames=num_frames,
        height=media.height,
        width=media.width,
        fps=media.fps,
        shape=tuple(codes.shape),
        state=state,
    )


def decode_file(
    tokenizer: VideoTokenizer,
    codes: VideoCodes,
    video: CodedVideo,
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
    codes do not fit their metadata.
    """
    check_writable(out_path, video.kind)
    check_supports_files(tokenizer, needs_codes=True)
    check_same_tokenizer(tokenizer, tokenizer_id or TokenizerId.of(tokenizer), video, force)
    video.check_codes(codes)
    expected = codes_shape(tokenizer, video.num_frames, video.height, video.width)
    if video.shape != expected:
        raise ValueError(
            f"codes of shape {video.shape} do not fit {video.num_frames} frames of {video.height} "
            f"x {video.width}: this tokenizer makes codes of shape {expected} of them"
        )
    with background_writer(media_writer(out_path, video.kind, video.fps)) as write:
        for frames in decoded_frames(tokenizer, codes, video, inference, on_frames):
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
    psnr, num_frames, device = StreamedPsnr(), 0, inference.frames_device(tokenizer)
    _report(on_frames, 0, media.num_frames)
    with prefetch(frame_chunks) as prefetched, background_writer(writer) as write:
        videos = (_as_video(frames, device) for frames in prefetched)
        for video, recon, _ in reconstruct_chunks(tokenizer, videos, inference):
            psnr.update(recon, video)
            shown = (_to_bytes(video), _to_bytes(recon)) if side_by_side else (_to_bytes(recon),)
            write(torch.cat(shown, dim=2))
            num_frames += video.shape[2]
            _report(on_frames, num_frames, media.num_frames)
    return Reconstruction(psnr.compute(), num_frames, media.height, media.width)


def decoded_frames(
    tokenizer: VideoTokenizer,
    codes: VideoCodes,
    video: CodedVideo,
    inference: Inference = Inference(),
    on_frames: FrameCallback | None = None,
) -> Iterator[Frames]:
    """Decodes codes to chunks of frames, cropped to their true size."""
    stream = inference.decode_stream(tokenizer, video.num_frames)
    device = inference.frames_device(tokenizer)
    step = inference.chunk_latents(tokenizer)
    # The first latent stands for a single frame and belongs to the first chunk.
    starts = [0, *range(1 + step, len(codes), step)]
    _report(on_frames, 0, video.num_frames)

    def shown(decoded: torch.Tensor) -> Frames:
        frames = _to_bytes(decoded[..., : video.height, : video.width])
        _report(on_frames, stream.num_frames, video.num_frames)
        return frames

    for start, stop in zip(starts, [*starts[1:], len(codes)], strict=True):
        yield shown(stream.push(codes[None, start:stop].to(device)))
    if (rest := stream.flush()) is not None:
        yield shown(rest)


def code_header(
    tokenizer: VideoTokenizer,
    *,
    size: int | None = None,
    inference: Inference = Inference(),
    tokenizer_id: TokenizerId | None = None,
) -> CodeHeader:
    """Header of codes that `tokenize_file` makes with these options; raises as it does."""
    check_supports_files(tokenizer, needs_codes=True)
    name, fingerprint = tokenizer_id or TokenizerId.of(tokenizer)
    return CodeHeader(
        tokenizer=name,
        fingerprint=fingerprint,
        digit_levels=tokenizer.digit_levels,
        num_codebooks=tokenizer.num_codebooks,
        time_factor=tokenizer.time_factor,
        space_factor=tokenizer.space_factor,
        size=size,
        precision=inference.precision,
    )


def codes_shape(
    tokenizer: VideoTokenizer, num_frames: int, height: int, width: int
) -> tuple[int, ...]:
    """Shape of the codes of a video, of a size that need not fit the strides."""
    below, right = space_padding(height, width, tokenizer.space_factor)
    grid = tokenizer.latent_grid(num_frames, height + below, width + right)
    return grid if tokenizer.num_codebooks == 1 else (*grid, tokenizer.num_codebooks)


def _as_video(frames: Frames, device: torch.device) -> Video:
    """Frames as a video in [-1, 1] on a device."""
    # Copy bytes to the device, not floats.
    return to_float(frames.to(device))[None]


def _to_bytes(video: Video) -> Frames:
    # Decoders overshoot; to_uint8 would take values that overshoot everywhere for a wrong range.
    return to_uint8(video[0].clamp(*VALUE_RANGE)).cpu()


def _report(on_frames: FrameCallback | None, done: int, total: int) -> None:
    if on_frames is not None:
        on_frames(done, total)
