"""Small media files made for the tests, of every kind that people have."""

import wave
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

LOW_DELAY = {"deadline": "realtime", "cpu-used": "8"}

FORMATS = {
    # name: codec, options. All keyframes 12 apart, so that 30 frames need seeks.
    "b_frames.mp4": ("libx264", {"bf": "3", "b-pyramid": "normal"}),
    "open_gop.mp4": ("libx264", {"x264-params": "open-gop=1:bframes=3:keyint=12"}),
    "intra_refresh.mp4": ("libx264", {"x264-params": "intra-refresh=1:keyint=12"}),
    "hevc.mp4": ("libx265", {"x265-params": "open-gop=1:keyint=12:log-level=none:pools=1"}),
    "vp9.webm": ("libvpx-vp9", {"auto-alt-ref": "1", "lag-in-frames": "16", "cpu-used": "8"}),
    "vp8_hidden_frames.webm": ("libvpx", {"auto-alt-ref": "1", "lag-in-frames": "16"}),
    "h264.mkv": ("libx264", {"bf": "2"}),
    "ffv1.mkv": ("ffv1", {}),
    "mpeg4.avi": ("mpeg4", {}),
    "mpeg4_b.avi": ("mpeg4", {"bf": "2"}),
    "h264_no_times.avi": ("libx264", {"bf": "2"}),
    "mjpeg.avi": ("mjpeg", {}),
    "h264.mov": ("libx264", {"bf": "2"}),
    "mpeg2.mpg": ("mpeg2video", {"bf": "2"}),
    "mpeg1.mpeg": ("mpeg1video", {"bf": "2"}),
    "mpeg4.m4v": ("mpeg4", {"bf": "2"}),
    "flat.gif": ("gif", {}),
}
PIXELS = {"mjpeg": "yuvj420p", "gif": "rgb8"}


def pictures(num_frames: int, height: int = 48, width: int = 64) -> Iterator[np.ndarray]:
    """No two alike, with motion, so that a wrong frame or a missing reference shows."""
    y, x = np.mgrid[:height, :width]
    for i in range(num_frames):
        waves = (x * 3 + i * 7, y * 5 + i * 11, (x + y) * 2 + i * 13)
        frame = (np.stack(waves, -1) % 256).astype(np.uint8)
        left = i * 3 % max(width - 12, 1)
        frame[5:15, left : left + 10] = 255
        yield frame


def make_video(
    path: Path,
    num_frames: int = 30,
    height: int = 48,
    width: int = 64,
    codec: str = "libx264",
    options: dict | None = None,
    fps: int = 25,
    times_ms: list[int] | None = None,
    rotation: int = 0,
    frames: Iterator[np.ndarray] | None = None,
) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=1000 if times_ms else fps)
        stream.height, stream.width = height, width
        stream.pix_fmt = PIXELS.get(codec, "yuv420p")
        stream.options = {"threads": "1", **(options or {})}
        stream.gop_size = 12
        if rotation:
            stream.set_display_rotation(rotation)
        for i, array in enumerate(frames or pictures(num_frames, height, width)):
            frame = av.VideoFrame.from_ndarray(array, "rgb24").reformat(format=stream.pix_fmt)
            frame.pts = times_ms[i] if times_ms else i
            frame.time_base = Fraction(1, 1000 if times_ms else fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def make_format(folder: Path, name: str, num_frames: int = 30) -> Path:
    codec, options = FORMATS[name]
    return make_video(folder / name, num_frames, codec=codec, options=options)


def make_audio(path: Path) -> Path:
    """A wav by its content, whatever its name says: sound and no picture."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(bytes(4000))
    return path
