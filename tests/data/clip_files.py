"""Small media files made for the tests, of every kind that people have."""

import wave
from collections.abc import Collection, Iterator
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
PIXELS = {"mjpeg": "yuvj420p", "gif": "rgb8", "apng": "rgb24"}


def pictures(num_frames: int, height: int = 48, width: int = 64) -> Iterator[np.ndarray]:
    """Distinct frames with motion, so that a wrong frame or a missing reference is visible."""
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
    mirrored: bool = False,
    sample_aspect: Fraction | None = None,
    colours: tuple[int, int] | None = None,
    frames: Iterator[np.ndarray] | None = None,
    muxer: str | None = None,
) -> Path:
    with av.open(str(path), "w", muxer) as container:
        stream = container.add_stream(codec, rate=1000 if times_ms else fps)
        stream.height, stream.width = height, width
        stream.pix_fmt = PIXELS.get(codec, "yuv420p")
        stream.options = {"threads": "1", **(options or {})}
        stream.gop_size = 12
        if rotation or mirrored:
            stream.set_display_rotation(rotation, hflip=mirrored)
        if sample_aspect:
            stream.codec_context.sample_aspect_ratio = sample_aspect
        if colours:
            stream.codec_context.color_primaries, stream.codec_context.color_trc = colours
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


def make_film(
    path: Path,
    audio: str = "aac",
    num_frames: int = 50,
    fps: int = 25,
    sound_s: float | None = None,
    sound_at_s: float = 0,
    picture_at_s: float = 0,
    rate: int = 48000,
    layout: str = "stereo",
    lost: Collection[int] = (),
    damaged: Collection[int] = (),
) -> Path:
    """A video with a 440 Hz tone; audio packets may be left out or replaced by random bytes."""
    with av.open(str(path), "w") as container:
        codec = "mpeg4" if path.suffix == ".avi" else "libx264"
        video = container.add_stream(codec, rate=fps)
        video.height, video.width, video.pix_fmt = 32, 48, "yuv420p"
        video.options = {"threads": "1", "bf": "2"}
        sound = container.add_stream(audio, rate=rate)
        sound.layout = layout
        packets = []
        for i, array in enumerate(pictures(num_frames, 32, 48)):
            frame = av.VideoFrame.from_ndarray(array, "rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = i + round(picture_at_s * fps), Fraction(1, fps)
            packets += video.encode(frame)
        packets += video.encode()
        heard = []
        for frame in tone(num_frames / fps if sound_s is None else sound_s, rate, layout):
            frame.pts += round(sound_at_s * rate)
            heard += sound.encode(frame)
        heard += sound.encode()
        packets += [
            _rubbish(p) if i in damaged else p for i, p in enumerate(heard) if i not in lost
        ]
        for packet in sorted(packets, key=lambda p: p.dts / p.time_base.denominator):
            container.mux(packet)
    return path


def tone(duration_s: float, rate: int, layout: str, hz: int = 440) -> Iterator[av.AudioFrame]:
    channels = av.AudioLayout(layout).nb_channels
    times = np.arange(round(duration_s * rate)) / rate
    samples = np.repeat(8000 * np.sin(2 * np.pi * hz * times), channels).astype(np.int16)
    for start in range(0, len(times), 1024):
        part = samples[None, start * channels : (start + 1024) * channels]
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(part), "s16", layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
        yield frame


def _rubbish(packet: av.Packet) -> av.Packet:
    other = av.Packet(b"\x55" * packet.size)
    other.stream, other.time_base = packet.stream, packet.time_base
    other.pts, other.dts, other.duration = packet.pts, packet.dts, packet.duration
    return other


def make_audio(path: Path) -> Path:
    """A wav file under any name: sound without video."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(bytes(4000))
    return path
