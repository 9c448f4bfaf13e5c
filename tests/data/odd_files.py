"""Files with unusual sizes, times, pixels and names, or that are not media at all."""

import os
import random
import socket
import zipfile
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from tests.data.clip_files import make_audio, make_film, make_video, pictures

Frames = Sequence[np.ndarray]

NAMES = ("n\u00e4me \u2603.mp4", "100%.mp4", "a:b.mp4", "clip%03d.gif", "-f.mkv", "UPPER.MP4")


def write_odd_files(whole: Path, folder: Path, frames: Frames) -> None:
    """Files of every kind below, in `folder`; `whole` holds the ordinary ones."""
    folder.mkdir()
    _write_misnamed(whole, folder)
    _write_sizes(folder)
    _write_times(folder, frames)
    _write_pixels(folder, frames)
    _write_streams(whole, folder, frames)
    _write_no_files(whole, folder)


def _write_misnamed(whole: Path, folder: Path) -> None:
    for source, name in (
        ("photo.png", "png.mp4"), ("photo.jpg", "jpg.gif"), ("photo.webp", "webp.mkv"),
        ("h264.mp4", "mp4.png"), ("h264.mp4", "mp4.gif"), ("flat.gif", "gif.png"),
        ("vp9.webm", "webm.avi"), ("mpeg2.mpg", "mpg.mp4"), ("photo.bmp", "bmp.jpg"),
    ):  # fmt: skip
        (folder / name).write_bytes((whole / source).read_bytes())
    text = {
        "text": "just a few words\n" * 20,
        "html": "<!DOCTYPE html><html><body>404 Not Found</body></html>",
        "lfs": "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 9\n",
        "json": '{"error": "no such clip"}',
        "playlist": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nh264.mp4\n#EXT-X-ENDLIST\n",
        "remote": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nhttp://127.0.0.1:9/a.ts\n",
        "script": "ffconcat version 1.0\nfile 'linked.mp4'\n",
        "subtitles": "1\n00:00:01,000 --> 00:00:02,000\nHello\n",
        "svg": '<svg xmlns="http://www.w3.org/2000/svg" width="60000" height="60000"/>',
    }
    for name, content in text.items():
        for suffix in ("mp4", "png"):
            (folder / f"{name}.{suffix}").write_text(content, encoding="utf-8")
    with zipfile.ZipFile(folder / "zip.mp4", "w") as archive:
        archive.write(whole / "h264.mp4", "h264.mp4")
    make_audio(folder / "sound.mp4")
    for name in NAMES:
        source = "flat.gif" if name.endswith("gif") else "h264.mp4"
        (folder / name).write_bytes((whole / source).read_bytes())


def _write_sizes(folder: Path) -> None:
    for height, width in ((1, 1), (2, 2), (1, 4096), (4096, 1), (3, 5)):
        frames = list(pictures(3, height, width))
        encode(folder / f"{height}x{width}.mov", frames, "png", "rgb24")
        Image.new("RGB", (width, height), (200, 100, 50)).save(folder / f"{height}x{width}.png")
    make_video(folder / "1x1.gif", 3, 1, 1, codec="gif")
    make_video(folder / "2x2.mp4", 3, 2, 2)
    for height, width in ((64, 8192), (8192, 64)):
        make_video(folder / f"{height}x{width}.mp4", 2, height, width)
        Image.new("L", (width, height)).save(folder / f"{height}x{width}.jpg")


def _write_times(folder: Path, frames: Frames) -> None:
    def video(name: str, times_ms: list[int], **options) -> None:
        chosen = [frames[i % len(frames)] for i in range(len(times_ms))]
        make_video(folder / name, times_ms=times_ms, frames=iter(chosen), **options)

    irregular = [0, 40, 50, 140, 173, 1000, 1001, 5000, 5033, 60000]
    for suffix in ("mp4", "mkv"):
        video(f"irregular.{suffix}", irregular)
        video(f"late.{suffix}", [3_600_000 + 40 * i for i in range(8)])
        video(f"hour-apart.{suffix}", [3_600_000 * i for i in range(6)])
        video(f"early.{suffix}", [40 * i - 200 for i in range(8)], options={"bf": "2"})
        video(f"thousand-a-second.{suffix}", list(range(12)))
    make_video(folder / "one-frame.mp4", 1)
    make_film(folder / "film.mp4", num_frames=8)
    make_film(folder / "film-late-picture.mkv", num_frames=8, picture_at_s=2)
    make_film(folder / "long-sound.mp4", num_frames=4, sound_s=3)


def _write_pixels(folder: Path, frames: Frames) -> None:
    for angle in (90, 180, -90, 45, 17):
        make_video(folder / f"turned-{angle}.mp4", 4, rotation=angle, frames=iter(frames[:4]))
    formats = {
        "high10.mp4": ("libx264", "yuv420p10le", {}),
        "444.mp4": ("libx264", "yuv444p", {}),
        "grey.mp4": ("libx264", "gray", {}),
        "hevc10.mp4": ("libx265", "yuv420p10le", {"x265-params": "log-level=none:pools=1"}),
        "vp9-10bit.webm": ("libvpx-vp9", "yuv420p10le", {"cpu-used": "8"}),
        "av1-10bit.mp4": ("libsvtav1", "yuv420p10le", {"preset": "12"}),
        "vp9-opacity.webm": ("libvpx-vp9", "yuva420p", {"cpu-used": "8", "auto-alt-ref": "0"}),
        "prores4444.mov": ("prores_ks", "yuva444p10le", {}),
        "animation.mov": ("qtrle", "argb", {}),
        "png.mov": ("png", "rgba", {}),
        "deep.mkv": ("ffv1", "gray16le", {}),
        "interlaced.mp4": ("libx264", "yuv420p", {"x264-params": "interlaced=1"}),
        "interlaced.mpg": ("mpeg2video", "yuv420p", {"flags": "+ildct+ilme"}),
    }
    for name, (codec, pixels, options) in formats.items():
        if _can_encode(codec, pixels):
            encode(folder / name, frames[:5], codec, pixels, options)
    opaque = np.concatenate((frames[0], frames[0][..., :1]), -1)
    for suffix in ("png", "webp"):
        Image.fromarray(opaque, "RGBA").save(folder / f"opacity.{suffix}")
    flat = [Image.fromarray(frame).convert("P") for frame in frames[:3]]
    flat[0].save(folder / "see-through.gif", save_all=True, append_images=flat[1:], transparency=3)
    Image.fromarray(frames[0]).convert("CMYK").save(folder / "print.jpg")
    Image.fromarray(frames[0]).convert("1").save(folder / "two-colours.png")
    Image.fromarray(frames[0][..., 0].astype(np.uint16) * 200).save(folder / "deep.png")
    Image.fromarray(frames[0]).save(folder / "turned.jpg", exif=_turned(6))


def _can_encode(codec: str, pixels: str) -> bool:
    """Not every build of PyAV has every encoder, nor its deep formats."""
    try:
        return pixels in {described.name for described in av.Codec(codec, "w").video_formats}
    except ValueError:
        return False


def _turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def encode(
    path: Path, frames: Frames, codec: str, pixels: str, options: dict | None = None
) -> Path:
    """A video of these frames (`h w 3`, RGB) in a pixel format of the codec."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], pixels
        stream.options = {"threads": "1", **(options or {})}
        for packet in encoded(stream, frames, pixels):
            container.mux(packet)
    return path


def encoded(stream: av.VideoStream, frames: Frames, pixels: str, first: int = 0) -> Iterator:
    for i, array in enumerate(frames):
        frame = av.VideoFrame.from_ndarray(array, "rgb24").reformat(format=pixels)
        frame.pts, frame.time_base = first + i, Fraction(1, 25)
        yield from stream.encode(frame)
    yield from stream.encode()


def _write_streams(whole: Path, folder: Path, frames: Frames) -> None:
    small = [np.ascontiguousarray(frame[::2, ::2]) for frame in frames[:4]]
    for suffix, codec, pixels in (("mkv", "mjpeg", "yuvj420p"), ("webm", "libvpx-vp9", "yuv420p")):
        _change_size(folder / f"sizes-{codec}.{suffix}", frames[:4], small, codec, pixels)
    two = [make_video(folder / f"part{n}.mpg", 4, n, n, codec="mpeg2video") for n in (32, 64)]
    (folder / "sizes.mpg").write_bytes(b"".join(path.read_bytes() for path in two))
    rng = random.Random(0)
    for name in ("h264.mp4", "h264.mkv", "vp9.webm", "mpeg4.avi"):
        suffix = Path(name).suffix
        for what, keep in LOSSES.items():
            _remux(whole / name, folder / f"{what}{suffix}", keep, rng)
    _cover(folder / "cover.mp4", frames)


LOSSES: dict[str, Callable[[int, av.Packet, random.Random], bool]] = {
    "no-first-keyframe": lambda i, packet, rng: i > 0,
    "no-keyframes": lambda i, packet, rng: not packet.is_keyframe,
    "keyframes-only": lambda i, packet, rng: packet.is_keyframe,
    "some-lost": lambda i, packet, rng: i == 0 or rng.random() < 0.6,
    "first-only": lambda i, packet, rng: i == 0,
}


def _remux(source: Path, target: Path, keep: Callable, rng: random.Random) -> None:
    with av.open(str(source)) as reading, av.open(str(target), "w") as writing:
        stream = reading.streams.video[0]
        copy = writing.add_stream_from_template(stream)
        packets = [packet for packet in reading.demux(stream) if packet.size]
        for packet in [p for i, p in enumerate(packets) if keep(i, p, rng)]:
            packet.stream = copy
            writing.mux(packet)


def _change_size(path: Path, first: Frames, then: Frames, codec: str, pixels: str) -> None:
    """Packets of a second encoder in the stream of the first: what a camera does when asked to."""
    encode(path.with_name(f"rest-{path.name}"), then, codec, pixels)
    with av.open(str(path.with_name(f"rest-{path.name}"))) as rest, av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=25)
        stream.height, stream.width, stream.pix_fmt = *first[0].shape[:2], pixels
        for packet in encoded(stream, first, pixels):
            out.mux(packet)
        late = int(len(first) / 25 / stream.time_base)
        for packet in rest.demux(video=0):
            if packet.size:
                packet.pts, packet.dts = packet.pts + late, packet.dts + late
                packet.stream = stream
                out.mux(packet)


def _cover(path: Path, frames: Frames) -> None:
    """Sound with a picture of the record."""
    with av.open(str(path), "w") as container:
        cover = container.add_stream("mjpeg", rate=25)
        cover.height, cover.width, cover.pix_fmt = *frames[0].shape[:2], "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        sound = container.add_stream("aac", rate=8000)
        sound.layout = "mono"
        for packet in encoded(cover, frames[:1], "yuvj420p"):
            container.mux(packet)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        silence.sample_rate, silence.pts = 8000, 0
        for packet in (*sound.encode(silence), *sound.encode()):
            container.mux(packet)


def _write_no_files(whole: Path, folder: Path) -> None:
    for suffix in ("mp4", "png"):
        (folder / f"folder.{suffix}").mkdir()
        (folder / f"dangling.{suffix}").symlink_to(folder / "nowhere")
        (folder / f"itself.{suffix}").symlink_to(folder / f"itself.{suffix}")
        (folder / f"endless.{suffix}").symlink_to("/dev/zero")
        (folder / f"linked.{suffix}").symlink_to(
            whole / ("h264.mp4" if suffix == "mp4" else "photo.png")
        )
        os.mkfifo(folder / f"pipe.{suffix}")
        secret = folder / f"secret.{suffix}"
        secret.write_bytes(b"none of your business")
        secret.chmod(0)
    # A socket's own path must be short; its name in the folder need not be.
    with socket.socket(socket.AF_UNIX) as server:
        here = os.open(folder, os.O_RDONLY)
        try:
            server.bind(f"/proc/self/fd/{here}/socket.mp4")
        finally:
            os.close(here)
