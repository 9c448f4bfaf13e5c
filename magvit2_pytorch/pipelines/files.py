"""Tokenizes, decodes, reconstructs and enlarges video and image files in constant memory.

Frames pass through the tokenizer's streams in chunks: while one is computed, the next is decoded
from its file and the previous one is written. Only the codes grow with the length of a video, 8
bytes each (0.6 GB for an hour of 720p at 24 frames a second and 4 x 16 x 16). They are stored when
all are known, so that a code file is always complete. Sizes that are not multiples of the strides
are padded by repeating the last row, column and frame, and cropped to the true size afterwards.
"""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from magvit2_pytorch.codes.code_header import (
    CodedVideo,
    CodeHeader,
    VideoCodes,
    file_state,
    in_ticks,
)
from magvit2_pytorch.codes.views import View
from magvit2_pytorch.functional import space_padding
from magvit2_pytorch.media.frames import Display, to_float, to_uint8
from magvit2_pytorch.metrics.quality import StreamedPsnr
from magvit2_pytorch.pipelines.fingerprint import (
    TokenizerId,
    check_same_tokenizer,
    check_supports_files,
)
from magvit2_pytorch.pipelines.inference import Inference, reconstruct_chunks
from magvit2_pytorch.pipelines.media_file import (
    Media,
    check_writable,
    chunks,
    media_writer,
    open_media,
)
from magvit2_pytorch.pipelines.prefetch import background_writer, prefetch
from magvit2_pytorch.pipelines.progress import FrameCallback
from magvit2_pytorch.super_resolution import SuperResolution
from magvit2_pytorch.tokenizer_1d import AnyTokenizer, Tokenizer1d
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
    tokenizer: AnyTokenizer,
    path: str | os.PathLike,
    *,
    size: int | None = None,
    inference: Inference = Inference(),
    tokenizer_id: TokenizerId | None = None,
    on_frames: FrameCallback | None = None,
    view: View = View(),
) -> tuple[VideoCodes, CodedVideo]:
    """Tokenizes a video or image file, or a view of it.

    Returns the codes, on the CPU, and the metadata to store with them. `size` is the short side in
    pixels, by default that of the file. `tokenizer_id` avoids hashing all weights again for every
    file. Raises `UnusableMedia` if the file cannot be decoded, and `ValueError` if the tokenizer is
    conditional or continuous.
    """
    header = code_header(tokenizer, size=size, inference=inference, tokenizer_id=tokenizer_id)
    state = file_state(path)
    media = open_media(path, tokenizer.config.channels, size).seen_as(path, view)
    stream = inference.encode_stream(tokenizer)
    device = inference.frames_device(tokenizer)
    # One block for all codes: small ones that stay, between freed chunks, fragment the heap.
    expected = codes_shape(tokenizer, media, inference.num_tokens)
    codes = torch.empty(expected, dtype=torch.int64)
    num_frames = num_latents = 0
    _report(on_frames, 0, media.num_frames)
    factors = tokenizer.time_factor, tokenizer.num_alone
    frame_chunks = chunks(media.frames, inference.chunk_frames, *factors)
    with prefetch(frame_chunks) as prefetched:
        for frames in prefetched:
            new = stream.push_padded(_as_video(frames, device)).codes[0]
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
        source=view.path(Path(path).name),
        kind=media.kind,
        num_frames=num_frames,
        height=media.height,
        width=media.width,
        fps=media.fps,
        shape=tuple(codes.shape),
        state=state,
        primaries=media.display.primaries,
        transfer=media.display.transfer,
        durations=in_ticks(media.durations, num_frames),
    )


def decode_file(
    tokenizer: AnyTokenizer,
    codes: VideoCodes,
    video: CodedVideo,
    out_path: str | os.PathLike,
    *,
    inference: Inference = Inference(),
    tokenizer_id: TokenizerId | None = None,
    force: bool = False,
    on_frames: FrameCallback | None = None,
) -> tuple[int, int]:
    """Decodes codes to a file, with frame times and colour tags.

    Returns the height and width of frames. They are as large as those that were tokenized, or
    larger as the tokenizer's patches are. Raises `TokenizerMismatch` (a `ValueError`) if another
    tokenizer made the codes, unless `force` is given, and `ValueError` if the suffix of `out_path`
    does not fit the kind of file, or the codes do not fit their metadata.
    """
    check_writable(out_path, video.kind)
    check_supports_files(tokenizer, needs_codes=True)
    check_same_tokenizer(tokenizer, tokenizer_id or TokenizerId.of(tokenizer), video, force)
    video.check_codes(codes)
    # A tokenizer that was enlarged draws frames of the codes of a smaller one.
    scale = tokenizer.space_factor // video.header.space_factor
    video = replace(video, height=video.height * scale, width=video.width * scale)
    expected = codes_shape(tokenizer, video)
    if isinstance(tokenizer, Tokenizer1d):  # parts have any number of tokens, but the same one
        num_parts = -(-video.num_frames // tokenizer.time_factor)
        expected = (max(video.shape[0] // num_parts, 1) * num_parts,)
    if video.shape != expected:
        raise ValueError(
            f"codes of shape {video.shape} do not fit {video.num_frames} frames of {video.height} "
            f"x {video.width}: this tokenizer makes codes of shape {expected} of them"
        )
    display = Display(primaries=video.primaries, transfer=video.transfer)
    options = dict(display=display, durations=video.durations_s)
    with background_writer(media_writer(out_path, video.kind, video.fps, **options)) as write:
        for frames in decoded_frames(tokenizer, codes, video, inference, on_frames):
            write(frames)
    return video.height, video.width


def reconstruct_file(
    tokenizer: AnyTokenizer,
    path: str | os.PathLike,
    out_path: str | os.PathLike,
    *,
    side_by_side: bool = False,
    size: int | None = None,
    inference: Inference = Inference(),
    on_frames: FrameCallback | None = None,
) -> Reconstruction:
    """Writes the reconstruction of a file, `side_by_side` with the original or alone.

    A video keeps its frame rate or the time of each frame, the shape of its pixels, its colour
    tags, and its sound (the default audio stream; a gif has none). Works for continuous tokenizers
    too. Raises as `tokenize_file` and `decode_file` do.
    """
    check_supports_files(tokenizer, needs_codes=False)
    media = open_media(path, tokenizer.config.channels, size, square_pixels=False)
    check_writable(out_path, media.kind)
    factors = tokenizer.time_factor, tokenizer.num_alone
    frame_chunks = chunks(media.frames, inference.chunk_frames, *factors)
    options = dict(audio_from=path, display=media.display, durations=media.durations)
    writer = media_writer(out_path, media.kind, media.fps, **options)
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


def upscale_file(
    upscaler: SuperResolution,
    path: str | os.PathLike,
    out_path: str | os.PathLike,
    *,
    size: int | None = None,
    inference: Inference = Inference(),
    on_frames: FrameCallback | None = None,
) -> tuple[int, int, int]:
    """Writes an enlarged file; returns its number of frames, height and width.

    `size` is the short side of the frames to enlarge. What a video keeps, and errors, are those of
    `reconstruct_file`.
    """
    media = open_media(path, upscaler.config.channels, size, square_pixels=False)
    check_writable(out_path, media.kind)
    options = dict(audio_from=path, display=media.display, durations=media.durations)
    writer = media_writer(out_path, media.kind, media.fps, **options)
    stream, device = inference.upscale_stream(upscaler), inference.frames_device(upscaler)
    _report(on_frames, 0, media.num_frames)
    frame_chunks = chunks(media.frames, inference.chunk_frames, time_factor=1, num_first=0)
    with prefetch(frame_chunks) as prefetched, background_writer(writer) as write:
        for frames in prefetched:
            write(_to_bytes(stream.push(_as_video(frames, device))))
            _report(on_frames, stream.num_frames, media.num_frames)
    return stream.num_frames, media.height * upscaler.scale, media.width * upscaler.scale


def decoded_frames(
    tokenizer: AnyTokenizer,
    codes: VideoCodes,
    video: CodedVideo,
    inference: Inference = Inference(),
    on_frames: FrameCallback | None = None,
) -> Iterator[Frames]:
    """Decodes codes to chunks of frames, cropped to their true size."""
    stream = inference.decode_stream(tokenizer, video.num_frames, (video.height, video.width))
    device = inference.frames_device(tokenizer)
    _report(on_frames, 0, video.num_frames)

    def shown(decoded: Tensor) -> Frames:
        frames = _to_bytes(decoded[..., : video.height, : video.width])
        _report(on_frames, stream.num_frames, video.num_frames)
        return frames

    for part in _code_parts(tokenizer, codes, video, inference):
        yield shown(stream.push(part[None].to(device)))
    if (rest := stream.flush()) is not None:
        yield shown(rest)


def _code_parts(
    tokenizer: AnyTokenizer, codes: VideoCodes, video: CodedVideo, inference: Inference
) -> Iterator[VideoCodes]:
    """Codes to decode at once."""
    if isinstance(tokenizer, Tokenizer1d):
        yield from codes.split(len(codes) // -(-video.num_frames // tokenizer.time_factor))
        return
    step = inference.chunk_latents(tokenizer)
    # The first latent stands for a single frame and belongs to the first chunk.
    starts = [0, *range(1 + step, len(codes), step)]
    for start, stop in zip(starts, [*starts[1:], len(codes)], strict=True):
        yield codes[start:stop]


def code_header(
    tokenizer: AnyTokenizer,
    *,
    size: int | None = None,
    inference: Inference = Inference(),
    tokenizer_id: TokenizerId | None = None,
) -> CodeHeader:
    """Header of the codes of `tokenize_file`; raises as it does."""
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
        num_tokens=inference.num_tokens,
    )


def codes_shape(
    tokenizer: AnyTokenizer, video: Media | CodedVideo, num_tokens: int | str | None = None
) -> tuple[int, ...]:
    """Shape of the codes of a video of any size.

    `num_tokens` are those of each part of a video, for a 1-D tokenizer.
    """
    num_frames, height, width = video.num_frames, video.height, video.width
    if isinstance(tokenizer, Tokenizer1d):
        num_parts = -(-num_frames // tokenizer.time_factor)
        size = (min(num_frames, tokenizer.time_factor), height, width)
        return (tokenizer.counts([size], num_tokens)[0] * num_parts,)
    below, right = space_padding(height, width, tokenizer.space_factor)
    return tokenizer.code_shape(num_frames, height + below, width + right)


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
