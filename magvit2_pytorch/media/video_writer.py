"""Writing of video files (mp4, mov, m4v, mkv, gif) frame by frame."""

import warnings
from collections.abc import Sequence
from contextlib import ExitStack, closing
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from magvit2_pytorch.atomic import AnyPath, as_path, replacing
from magvit2_pytorch.media.audio import AudioTrack
from magvit2_pytorch.media.container import as_fraction
from magvit2_pytorch.media.frames import (
    ACCURATE,
    AREA,
    Display,
    as_channels,
    resize_array,
    square_size,
    to_uint8,
)
from magvit2_pytorch.types import Frames

WRITABLE = (".mp4", ".mov", ".m4v", ".mkv", ".gif")

# Times that are not multiples of a frame: exact for milliseconds and all usual rates, and the
# largest that MPEG-4 part 2 allows.
_FINE_TICK = Fraction(1, 60000)
_GIF_TICK = Fraction(1, 100)


class VideoWriter:
    """Writes a video file frame by frame, in constant memory and atomically.

    mp4, mov, m4v and mkv hold h264 in 4:2:0 (mpeg4 where PyAV has no x264), tagged Rec. 709 at
    every size, or as `display` says; odd sides are made even by repeating the last row or column.
    Grey becomes RGB; opacity is resolved over black. The default audio stream of the file
    `audio_from` goes along as far as the frames do (never into a gif); see `AudioTrack`. A gif has
    a palette for each frame, and times in hundredths of a second: of more than 50 frames a second,
    which players would show too long, the rest is left out with a warning.

        with VideoWriter("out.mp4", fps=25) as writer:
            for frame in frames:        # uint8 h w c, or float c h w in [-1, 1]
                writer.write(frame)

    Raises `ValueError` on an unknown suffix, on frames of different sizes, and if no frame was
    written. In these cases, and on an error inside the block, an older file stays as it was.
    """

    def __init__(
        self,
        path: AnyPath,
        fps: float | int,
        crf: int = 17,
        audio_from: AnyPath | None = None,
        display: Display = Display(),
        durations: Sequence[float] | None = None,
    ):
        self.path = as_path(path)
        if self.path.suffix.lower() not in WRITABLE:
            raise ValueError(
                f"cannot write {self.path.name}: use {', '.join(WRITABLE[:-1])} or {WRITABLE[-1]}"
            )
        if not fps > 0:
            raise ValueError(f"fps is {fps}: give a number above 0")
        # To encoders, 29.97 and 23.976 are 30000/1001 and 24000/1001; a frame per hour is 1/3600.
        exact = Fraction(fps)
        slow = exact < Fraction(1, 1000)
        self.rate = 1 / Fraction(round(1 / exact)) if slow else exact.limit_denominator(1001)
        self.crf = crf
        """x264's quality: 0 loses only chroma resolution, 17 looks lossless, 23 is small."""
        self.audio_from = audio_from and as_path(audio_from)
        """File whose audio is added, in sync with its own first video frame."""
        self.display = display
        """Shape of the pixels and colours of the frames, written as tags. A gif has none: its
        pixels are made square, and colours of high dynamic range give a warning."""
        self.durations = durations
        """Seconds that each frame is shown, as `VideoFile.durations`; by default, and for further
        frames, 1 / fps."""
        self.num_frames = 0
        """Frames so far, with those that a gif leaves out."""
        self._time = Fraction(0)
        self._last_pts: int | None = None
        self._num_left_out = 0
        self._packet_ticks: dict[int, int] = {}
        self.size: tuple[int, int] | None = None

    def __enter__(self) -> "VideoWriter":
        import av

        self._exits = ExitStack()
        part = self._exits.enter_context(replacing(self.path))
        suffix = self.path.suffix.lower()
        self._is_gif = suffix == ".gif"
        # An mp4's table of contents in front: it plays before it is loaded.
        options = {"movflags": "+faststart"} if suffix in (".mp4", ".mov", ".m4v") else {}
        if self._is_gif and self.durations is not None and len(self.durations):
            options["final_delay"] = str(max(2, round(self.durations[-1] * 100)))
        self._has_x264 = "libx264" in av.codecs_available
        # FFmpeg's own muxer for m4v writes no colour tag: H.264 has its own, mpeg4 has none.
        muxer = "mp4" if suffix == ".m4v" and not self._has_x264 else None
        container = av.open(str(part), "w", format=muxer, options=options)
        self._container = self._exits.enter_context(container)
        self._stream = None
        self._audio: AudioTrack | None = None
        return self

    def __exit__(self, *error: Any) -> None:
        if error[0] is not None:
            self._exits.__exit__(*error)
            return
        with self._exits:
            if self._stream is None:
                raise ValueError(f"no frame was written to {self.path}")
            self._mux(self._stream.encode())
            if self._audio is not None:
                self._audio.write_until(self._time)
        if self._num_left_out:
            warnings.warn(
                f"{self.path.name}: {self._num_left_out} of {self.num_frames} frames are left out, "
                "as a gif shows at most 50 a second: write mp4, mov or mkv",
                stacklevel=2,
            )

    def write(self, frame: UInt8[Tensor, "h w c"] | Float[Tensor, "c h w"]) -> None:
        """Adds a frame: bytes, or floats in [-1, 1]."""
        levels = frame if frame.dtype == torch.uint8 else to_uint8(frame)
        array = _as_rgb(levels.cpu().numpy())
        if self._is_gif and self.display.sample_aspect != 1:
            size = square_size(*array.shape[:2], self.display.sample_aspect)
            array = resize_array(array, size)
        if self.size is None:
            self.size = array.shape[:2]
            self._stream = self._add_stream()
            if self.audio_from is not None and not self._is_gif:
                audio = AudioTrack(self.audio_from, self._container)
                self._audio = self._exits.enter_context(closing(audio))
                self._time = audio.lead_s
            # The unit of times: a frame, if all times fit.
            fine = _FINE_TICK if self.durations is not None or self._time else 1 / self.rate
            self._tick = _GIF_TICK if self._is_gif else fine
            self._stream.codec_context.time_base = self._tick
        elif self.size != array.shape[:2]:
            raise ValueError(f"a frame of {array.shape[:2]} in a video of {self.size}: resize it")
        pts, duration = self._next_time()
        self.num_frames += 1
        if self._is_gif and self._last_pts is not None and pts < self._last_pts + 2:
            self._num_left_out += 1
            return
        picture = _palette_frame(array) if self._is_gif else _even_frame(array)
        picture.pts = self._last_pts = pts
        picture.time_base = self._tick
        self._packet_ticks[pts] = duration
        self._mux(self._stream.encode(picture))

    def _next_time(self) -> tuple[int, int]:
        """Start and duration of the next frame in ticks."""
        listed = self.durations is not None and self.num_frames < len(self.durations)
        duration = Fraction(self.durations[self.num_frames]) if listed else 1 / self.rate
        start, self._time = self._time, self._time + duration
        pts = round(start / self._tick)
        if self._last_pts is not None and not self._is_gif:
            pts = max(pts, self._last_pts + 1)
        return pts, max(round(self._time / self._tick) - pts, 1)

    def _mux(self, packets: list[Any]) -> None:
        for packet in packets:
            packet.duration = self._packet_ticks.pop(packet.pts, packet.duration)
            # Audio goes just before the video of the same time: a player reads both at once.
            if self._audio is not None:
                self._audio.write_until(packet.dts * as_fraction(packet.time_base))
            self._container.mux(packet)

    def _add_stream(self) -> Any:
        height, width = self.size
        if self._is_gif:
            if self.display.hdr:
                warnings.warn(
                    f"{self.path.name}: a gif cannot say that its colours are {self.display.hdr} "
                    "(HDR), so they will look pale: write mp4, mov or mkv",
                    stacklevel=3,
                )
            stream = self._container.add_stream("gif", rate=self.rate)
            stream.pix_fmt, stream.height, stream.width = "pal8", height, width
            return stream
        codec = "libx264" if self._has_x264 else "mpeg4"
        stream = self._container.add_stream(codec, rate=self.rate)
        # chromaloc=1: `_even_frame` puts chroma into the middle of its four pixels, while readers
        # of H.264 expect it at the left two unless told otherwise.
        x264 = {"crf": str(self.crf), "x264-params": "chromaloc=1"}
        stream.options = x264 if self._has_x264 else {"qscale": "2"}
        stream.pix_fmt = "yuv420p"
        stream.height, stream.width = height + height % 2, width + width % 2
        context = stream.codec_context
        context.sample_aspect_ratio = self.display.sample_aspect
        context.colorspace = 1  # the matrix of Rec. 709, by which `_even_frame` converts
        context.color_primaries, context.color_trc = self.display.primaries, self.display.transfer
        context.color_range = 1  # limited, as players expect
        return stream


def write_video(
    path: AnyPath,
    video: Frames | Float[Tensor, "c t h w"],
    fps: float | int,
    crf: int = 17,
    durations: Sequence[float] | None = None,
) -> None:
    """Writes a clip, bytes or floats in [-1, 1], with `VideoWriter`."""
    if video.ndim != 4:
        raise ValueError(
            f"one video has 4 axes, `t h w c` bytes or `c t h w` floats, not {tuple(video.shape)}"
        )
    frames = video if video.dtype == torch.uint8 else to_uint8(video)
    with VideoWriter(path, fps, crf, durations=durations) as writer:
        for frame in frames:
            writer.write(frame)


def _as_rgb(frame: UInt8[np.ndarray, "h w c"]) -> UInt8[np.ndarray, "h w 3"]:
    if frame.shape[-1] == 1:
        return np.repeat(frame, 3, axis=-1)
    if frame.shape[-1] not in (3, 4):
        raise ValueError(f"a frame has 1, 3 or 4 channels, last in bytes, not {frame.shape}")
    return as_channels(frame, 3)


def _even_frame(frame: UInt8[np.ndarray, "h w 3"]) -> Any:
    import av

    height, width, _ = frame.shape
    even = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(even), "rgb24")
    return picture.reformat(
        format="yuv420p", dst_colorspace="ITU709", interpolation=ACCURATE | AREA
    )


def _palette_frame(frame: UInt8[np.ndarray, "h w 3"]) -> Any:
    import av
    from PIL import Image

    quantized = Image.fromarray(np.ascontiguousarray(frame)).quantize(256)
    colours = np.frombuffer(bytes(quantized.getpalette("RGB")), np.uint8).reshape(-1, 3)
    palette = np.zeros((256, 4), np.uint8)
    palette[:, 0] = 255  # opaque; PyAV's palettes are ARGB
    palette[: len(colours), 1:] = colours
    return av.VideoFrame.from_ndarray((np.array(quantized), palette), "pal8")
