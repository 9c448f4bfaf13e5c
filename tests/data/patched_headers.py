"""Files whose headers claim impossible sizes, rates, times and counts."""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from tests.data.clip_files import pictures
from tests.data.odd_files import encode

HUGE = 0xFFFFFFFF


def write_absurd_headers(whole: Path, folder: Path) -> None:
    """Patches the files of `write_whole` into `folder`."""
    folder.mkdir()
    for name, patches in (
        ("h264.mp4", dict(_mp4_patches(whole / "h264.mp4"))),
        ("mjpeg.avi", dict(_avi_patches(whole / "mjpeg.avi"))),
        ("mpeg4.avi", dict(_avi_patches(whole / "mpeg4.avi"))),
        ("h264.mkv", dict(_mkv_patches(whole / "h264.mkv"))),
        ("flat.gif", dict(_gif_patches(whole / "flat.gif"))),
        ("photo.png", dict(_png_patches(whole / "photo.png"))),
        ("photo.bmp", dict(_bmp_patches(whole / "photo.bmp"))),
        ("photo.jpg", dict(_jpg_patches(whole / "photo.jpg"))),
        ("photo.webp", dict(_webp_patches(whole / "photo.webp"))),
    ):
        stem, suffix = name.split(".")
        for what, data in patches.items():
            (folder / f"{stem}-{suffix}-{what}.{suffix}").write_bytes(data)
    _write_video_bombs(whole, folder)


def _patched(data: bytes, at: int, layout: str, *values: int) -> bytes:
    packed = struct.pack(layout, *values)
    return data[:at] + packed + data[at + len(packed) :]


def _mp4_patches(path: Path) -> Iterator[tuple[str, bytes]]:
    data = path.read_bytes()
    fields = {  # box, offset from its name, layout, values
        "movie-timescale-0": (b"mvhd", 16, ">I", 0),
        "movie-timescale-huge": (b"mvhd", 16, ">I", HUGE),
        "movie-duration-huge": (b"mvhd", 20, ">I", HUGE),
        "timescale-0": (b"mdhd", 16, ">I", 0),
        "timescale-1": (b"mdhd", 16, ">I", 1),
        "timescale-huge": (b"mdhd", 16, ">I", HUGE),
        "timescale-negative": (b"mdhd", 16, ">i", -25),
        "duration-huge": (b"mdhd", 20, ">I", HUGE),
        "track-size-huge": (b"tkhd", 80, ">II", HUGE, HUGE),
        "sample-size-huge": (b"avc1", 28, ">HH", 0xFFFF, 0xFFFF),
        "sample-size-0": (b"avc1", 28, ">HH", 0, 0),
        "frame-duration-0": (b"stts", 16, ">I", 0),
        "frame-duration-huge": (b"stts", 16, ">I", HUGE),
        "frame-duration-long": (b"stts", 16, ">I", 0x7FFFFFFF),
        "frame-count-huge": (b"stts", 12, ">I", HUGE),
        "frame-entries-huge": (b"stts", 8, ">I", HUGE),
        "sizes-huge": (b"stsz", 12, ">I", HUGE),
        "sizes-one-byte": (b"stsz", 8, ">II", 1, HUGE // 64),
        "size-of-first-huge": (b"stsz", 16, ">I", 0x7FFFFFF0),
        "chunk-offset-huge": (b"stco", 12, ">I", HUGE),
        "chunk-offset-0": (b"stco", 12, ">I", 0),
        "chunk-entries-huge": (b"stco", 8, ">I", HUGE),
        "chunk-samples-huge": (b"stsc", 16, ">I", HUGE),
        "keyframes-huge": (b"stss", 12, ">II", HUGE, HUGE),
        "keyframes-none": (b"stss", 8, ">I", 0),
        "edit-huge": (b"elst", 12, ">II", HUGE, HUGE),
        "edit-late": (b"elst", 16, ">I", 0x7FFFFFFF),
        "offsets-huge": (b"ctts", 16, ">I", 0x7FFFFFFF),
        "offsets-negative": (b"ctts", 16, ">i", -(2**31)),
        "box-size-0": (b"trak", -4, ">I", 0),
        "box-size-huge": (b"trak", -4, ">I", HUGE),
        "box-size-tiny": (b"stbl", -4, ">I", 8),
        "codec-unknown": (b"avc1", 0, ">4s", b"xxxx"),
        "codec-other": (b"avc1", 0, ">4s", b"hvc1"),
        "sound-by-name": (b"vide", 0, ">4s", b"soun"),
    }
    for what, (box, offset, layout, *values) in fields.items():
        yield what, _patched(data, data.index(box) + offset, layout, *values)


def _avi_patches(path: Path) -> Iterator[tuple[str, bytes]]:
    data = path.read_bytes()
    main, stream, shape = (data.index(name) + 8 for name in (b"avih", b"strh", b"strf"))
    for what, at, layout, *values in (
        ("frame-time-0", main, "<I", 0),
        ("frame-time-huge", main, "<I", HUGE),
        ("frames-huge", main + 16, "<I", HUGE),
        ("streams-huge", main + 24, "<I", HUGE),
        ("screen-huge", main + 32, "<II", HUGE, HUGE),
        ("scale-0", stream + 20, "<I", 0),
        ("rate-0", stream + 24, "<I", 0),
        ("rate-huge", stream + 20, "<II", 1, HUGE),
        ("rate-tiny", stream + 20, "<II", HUGE, 1),
        ("start-huge", stream + 28, "<I", HUGE),
        ("length-huge", stream + 32, "<I", HUGE),
        ("picture-huge", shape + 4, "<ii", 60000, 60000),
        ("picture-negative", shape + 4, "<ii", -64, -48),
        ("picture-0", shape + 4, "<ii", 0, 0),
    ):
        yield what, _patched(data, at, layout, *values)


def _mkv_patches(path: Path) -> Iterator[tuple[str, bytes]]:
    data = path.read_bytes()
    scale = data.index(b"\x2a\xd7\xb1\x83") + 4
    yield "timestamp-scale-0", _patched(data, scale, ">3s", b"\0\0\0")
    yield "timestamp-scale-huge", _patched(data, scale, ">3s", b"\xff\xff\xff")
    width, height = data.index(b"\xb0\x81\x40") + 2, data.index(b"\xba\x81\x30") + 2
    yield "size-0", _patched(_patched(data, width, "B", 0), height, "B", 0)
    yield "size-huge", _patched(data, width - 1, ">BB", 0x88, 0xFF)


def _gif_patches(path: Path) -> Iterator[tuple[str, bytes]]:
    data = path.read_bytes()
    yield "screen-60000", _patched(data, 6, "<HH", 60000, 60000)
    yield "screen-11000", _patched(data, 6, "<HH", 11000, 11000)
    yield "screen-0", _patched(data, 6, "<HH", 0, 0)
    control, picture = data.index(b"\x21\xf9\x04") + 4, data.index(b"\x2c\0\0\0\0") + 1
    yield "delay-huge", _patched(data, control, "<H", 0xFFFF)
    yield "delay-0", _patched(data, control, "<H", 0)
    yield "picture-huge", _patched(data, picture + 4, "<HH", 0xFFFF, 0xFFFF)
    yield "picture-outside", _patched(data, picture, "<HH", 60000, 60000)


def png_of_size(data: bytes, width: int, height: int) -> bytes:
    """A png that claims this size, checksum and all."""
    head = b"IHDR" + struct.pack(">II", width, height) + data[24:29]
    return data[:12] + head + struct.pack(">I", zlib.crc32(head)) + data[33:]


def _png_patches(path: Path) -> Iterator[tuple[str, bytes]]:
    data = path.read_bytes()
    for width, height in ((60000, 60000), (2**31 - 1, 2**31 - 1), (0, 0), (20000, 20000)):
        yield f"size-{width}", png_of_size(data, width, height)
    yield "size-less", png_of_size(data, 7, 5)
    yield "size-more", png_of_size(data, 640, 480)
    yield "depth", _patched(data, 24, "B", 77)


def _bmp_patches(path: Path) -> Iterator[tuple[str, bytes]]:
    data = path.read_bytes()
    for side in (60000, 2**31 - 1, 0, -48):
        yield f"size-{side}", _patched(data, 18, "<ii", side, side)
    yield "offset-huge", _patched(data, 10, "<I", HUGE)
    yield "colours-huge", _patched(data, 46, "<I", HUGE)
    yield "depth-0", _patched(data, 28, "<H", 0)


def _jpg_patches(path: Path) -> Iterator[tuple[str, bytes]]:
    data = path.read_bytes()
    at = data.index(b"\xff\xc0") + 5
    for side in (0xFFFF, 60000, 4000, 0):
        yield f"size-{side}", _patched(data, at, ">HH", side, side)
    yield "components", _patched(data, at + 4, "B", 77)


def _webp_patches(path: Path) -> Iterator[tuple[str, bytes]]:
    data = path.read_bytes()
    at = data.index(b"\x9d\x01\x2a") + 3
    yield "size-huge", _patched(data, at, "<HH", 0x3FFF, 0x3FFF)
    yield "size-0", _patched(data, at, "<HH", 0, 0)
    yield "chunk-huge", _patched(data, 4, "<I", HUGE)


def _write_video_bombs(whole: Path, folder: Path) -> None:
    """Each frame of a video claims 60000 x 60000 pixels; the container keeps quiet about it."""
    path = encode(folder / "bomb.mov", list(pictures(3)), "png", "rgb24")
    data = path.read_bytes()
    start = data.index(b"\x89PNG")
    while start >= 0:
        data = data[:start] + png_of_size(data[start:], 60000, 60000)
        start = data.find(b"\x89PNG", start + 8)
    path.write_bytes(data)
    data = (whole / "mjpeg.avi").read_bytes()
    at = data.find(b"\xff\xc0")
    while at >= 0:
        data = _patched(data, at + 5, ">HH", 60000, 60000)
        at = data.find(b"\xff\xc0", at + 2)
    (folder / "bomb.avi").write_bytes(data)
