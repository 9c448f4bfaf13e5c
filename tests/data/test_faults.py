"""Damaged and malicious files give frames of the right size or a clear error."""

import random
import re
import struct
from collections import Counter
from fractions import Fraction
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch

from magvit2_pytorch.cli.main import main
from magvit2_pytorch.data.clips import ClipSpec
from magvit2_pytorch.data.datasets import ImageDataset, VideoDataset
from magvit2_pytorch.data.loader import InfiniteBatches
from magvit2_pytorch.media.container import open_container
from magvit2_pytorch.media.frame_index import _index
from magvit2_pytorch.media.images import read_image
from magvit2_pytorch.media.unusable import UnusableMedia
from magvit2_pytorch.media.video_reader import VideoFile
from tests.conftest import build
from tests.data.clip_files import make_video, pictures
from tests.data.corruptions import DAMAGES, fuzzed, write_variants, write_whole
from tests.data.faults import examine_all
from tests.data.odd_files import encode
from tests.data.patched_headers import png_of_size
from tests.processes import Started

pytestmark = pytest.mark.filterwarnings("ignore")  # decoders complain, and skipping is announced

SPEC = ClipSpec(num_frames=5, image_size=16, pad_short=True)


@pytest.fixture(scope="module")
def variants(tmp_path_factory):
    folder = tmp_path_factory.mktemp("variants")
    return folder, write_variants(folder)


@pytest.fixture(scope="module")
def answers(variants):
    return examine_all(variants[1])


def test_every_file_is_usable_or_not_and_breaks_nothing(answers):
    assert len(answers) > 500
    broken = {f"{path.parent.name}/{path.name}": a["broken"] for path, a in answers.items()}
    assert {name: faults for name, faults in broken.items() if faults} == {}
    # Both happen often: else the files would be too much or too little damaged to tell.
    count = Counter(answer["usable"] for answer in answers.values())
    assert count[True] > 200
    assert count[False] > 200


def test_intact_files_are_usable_and_empty_ones_are_not(answers):
    usable = {
        f"{path.parent.name}/{path.name}" for path, answer in answers.items() if answer["usable"]
    }
    whole = {f"whole/{path.name}" for path in answers if path.parent.name == "whole"}
    assert len(whole) == 15
    assert whole <= usable
    # Odd, but sound.
    for name in (
        "1x1.mov", "2x2.mp4", "3x5.png", "irregular.mp4", "hour-apart.mkv", "late.mp4", "early.mkv",
        "turned-90.mp4", "turned-45.mp4", "high10.mp4", "hevc10.mp4", "vp9-opacity.webm",
        "prores4444.mov", "animation.mov", "interlaced.mp4", "interlaced.mpg", "sizes.mpg",
        "sizes-mjpeg.mkv", "sizes-libvpx-vp9.webm", "long-sound.mp4", "cover.mp4", "webm.avi",
        "linked.mp4", "opacity.png", "see-through.gif", "print.jpg", "deep.png", "a:b.mp4",
        "clip%03d.gif", "-f.mkv", "UPPER.MP4", "keyframes-only.mp4", "some-lost.webm",
    ):  # fmt: skip
        if any(path.name == name for path in answers):  # not every PyAV has every encoder
            assert f"odd/{name}" in usable, answers
    assert not any("no-bytes" in name or "rubbish." in name for name in usable)


REASONS = {
    "pipe.mp4": "is a pipe", "pipe.png": "is a pipe", "endless.mp4": "is a pipe, a socket or a dev",
    "endless.png": "or a device", "socket.mp4": "a socket", "folder.mp4": "is a folder",
    "folder.png": "is a folder", "dangling.mp4": "missing", "dangling.png": "missing",
    "script.mp4": "no known video", "sound.mp4": "no video stream", "bomb.mov": "no frame",
    "bomb.avi": "no frame", "photo-png-size-60000.png": "exceeds limit",
    "photo-bmp-size-60000.bmp": "exceeds limit", "photo-jpg-size-60000.jpg": "exceeds limit",
    "flat-gif-screen-60000.gif": "no frame", "8192x64.mp4": "too narrow",
    "4096x1.png": "too narrow",
}  # fmt: skip


def test_reasons_say_what_is_wrong(answers):
    reasons = {path.name: answer["reason"] for path, answer in answers.items()}
    assert [
        (name, reasons[name]) for name, part in REASONS.items() if part not in reasons[name]
    ] == []


def test_references_of_files_are_never_followed(answers):
    """Playlists and scripts refer to other files and to addresses, which must not be opened."""
    for name in ("playlist.mp4", "remote.mp4", "script.mp4", "svg.mp4", "svg.png", "zip.mp4"):
        assert [a["usable"] for path, a in answers.items() if path.name == name] == [False], name


@pytest.mark.parametrize(("kind", "num_workers"), [(VideoDataset, 2), (ImageDataset, 0)])
def test_the_loader_skips_unusable_files(variants, answers, kind, num_workers):
    """Unusable ones of a folder are replaced, named and counted once."""
    folder = variants[0] / "odd" if kind is VideoDataset else variants[0]
    dataset = kind(folder, SPEC, train=False)
    shape = (3, 5, 16, 16) if kind is VideoDataset else (3, 16, 16)
    for _ in range(2):
        batches = InfiniteBatches(dataset, 16, num_workers=num_workers, shuffle=False)
        num_items = 0
        for batch in islice(batches, -(-len(dataset) // 16)):
            assert batch.shape[1:] == shape
            assert batch.dtype == torch.float32
            assert bool(((batch >= -1) & (batch <= 1)).all())
            num_items += len(batch)
        assert num_items >= len(dataset) > 90
        unusable = {str(path) for path in dataset.paths if not answers[path]["usable"]}
        assert set(dataset.skipped) == unusable
        assert all(dataset.skipped.values())


def test_commands_skip_unusable_files(variants, answers, tmp_path):
    """One command over a whole folder: an output or a line for each file, and status 0."""
    build("compress_space", image_size=16).save_pretrained(tmp_path / "model")
    folder = variants[0] / "odd"
    for command in ("tokenize", "reconstruct"):
        jobs = {path for path in answers if not path.is_dir() and folder in path.parents}
        out = tmp_path / command
        options = ["--model", str(tmp_path / "model"), "-o", str(out), "--size", "16"]
        with Started(main, [command, str(folder), *options]) as done:
            status, said = done.wait(), done.stderr
        assert status == 0, said[-2000:]
        assert "Traceback" not in said
        skipped = re.findall(r"^magvit2: skipped: (.+?): ", said, re.MULTILINE)
        made = [path for path in out.rglob("*") if path.is_file()]
        assert len(skipped) == len(set(skipped))
        assert len(skipped) + len(made) == len(jobs) > 100
        assert {Path(name) for name in skipped} <= jobs
        assert {Path(name) for name in skipped} == {p for p in jobs if not answers[p]["usable"]}


def test_there_is_damage_of_every_kind(variants):
    names = [path.stem for path in variants[1]]
    assert len(names) == len(variants[1]) > 500
    for damage in DAMAGES:
        assert sum(name.endswith(damage) for name in names) >= 15


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_fuzz(tmp_path, seed):
    broken = {}
    for path in write_whole(tmp_path):
        variants = fuzzed(path.read_bytes(), random.Random(f"{seed} {path.name}"))
        paths = [path.with_stem(f"{path.stem}-{i}") for i in range(60)]
        for variant in paths:
            variant.write_bytes(next(variants))
        broken |= {p.name: a["broken"] for p, a in examine_all(paths).items() if a["broken"]}
    assert broken == {}


# One at a time


def lose_packets(path, numbers):
    """Overwrites these packets with zeros."""
    data = path.read_bytes()
    with av.open(str(path)) as container:
        for number, packet in enumerate(container.demux(video=0)):
            if number in numbers:
                data = data.replace(bytes(packet), bytes(packet.size))
    path.write_bytes(data)


def test_a_damaged_file_does_not_depend_on_earlier_reads(tmp_path):
    """Packets without frames: clips before the damage, at it, and after it."""
    path = make_video(tmp_path / "a.mkv", 30, options={"bf": "0", "g": "5"})
    lose_packets(path, (8, 21))
    fresh = [VideoDataset(path, SPEC)[(epoch, 0)] for epoch in range(12)]
    used = VideoDataset(path, SPEC)
    for epoch in (*range(12), *reversed(range(12))):
        assert torch.equal(used[(epoch, 0)], fresh[epoch])
    assert len({item.sum().item() for item in fresh}) > 6
    # The damage was met, and there are fewer frames than packets.
    video = VideoFile(path)
    promised = video.num_frames
    video.read(range(12))
    assert video.num_frames < promised
    assert video.num_frames == len(list(video.frames()))


@pytest.mark.parametrize("codec", ["libvpx-vp9", "libx264", "libx265"])
def test_several_threads_lose_nothing_after_the_damage(tmp_path, codec):
    path = make_video(tmp_path / "a.mkv", 40, codec=codec)
    lose_packets(path, (8, 21, 22, 35))
    alone = torch.stack(list(VideoFile(path, num_threads=1).frames()))
    assert 20 < len(alone) < 40
    for num_threads in (2, 4):
        frames = VideoFile(path, num_threads=num_threads).frames()
        assert torch.equal(torch.stack(list(frames)), alone)


@pytest.mark.parametrize("name", ["front.mp4", "vp8.webm", "h264.mkv"])
def test_several_threads_lose_nothing_before_the_damage(variants, tmp_path, name):
    """They hold intact frames when one reaches the end of a truncated file."""
    data = (variants[0] / "whole" / name).read_bytes()
    path = tmp_path / name
    path.write_bytes(data[: int(len(data) * 0.8)])
    alone = torch.stack(list(VideoFile(path, num_threads=1).frames()))
    assert 4 < len(alone) < 12
    for num_threads in (2, 4, 8):
        video = VideoFile(path, num_threads=num_threads)
        assert torch.equal(torch.stack(list(video.frames())), alone)
        assert torch.equal(video.read(range(4)), alone[:4])


def test_fallbacks_end(tmp_path, monkeypatch):
    """A decoder that gives nothing the second time is an error, not a loop."""
    video = VideoFile(make_video(tmp_path / "a.mp4", 5))
    assert video.num_frames == 5
    monkeypatch.setattr(VideoFile, "_decode", lambda *asked, **more: {})
    with pytest.raises(UnusableMedia, match="does not give the same frames twice"):
        video.read([0], (8, 8))


def test_a_bomb_is_refused_before_memory_is_allocated(tmp_path):
    """The same file within the limit is read: only the claimed size is refused."""
    from PIL import Image

    path = encode(tmp_path / "a.mov", list(pictures(1)), "png", "rgb24")
    data = path.read_bytes()
    start = data.index(b"\x89PNG")
    for side, usable in ((64, True), (60000, False), (8300, False)):
        path.write_bytes(data[:start] + png_of_size(data[start:], side, 48 * side // 64))
        if usable:
            assert VideoFile(path).read([0]).shape == (1, 48, 64, 3)
            continue
        with pytest.raises(UnusableMedia, match="no frame"):
            VideoFile(path).read([0])
    Image.new("RGB", (64, 48)).save(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes(png_of_size((tmp_path / "a.png").read_bytes(), 60000, 60000))
    with pytest.raises(UnusableMedia, match="3600000000 pixels"):
        read_image(tmp_path / "a.png")


def test_opening_does_not_trust_a_claimed_size(variants, tmp_path):
    """FFmpeg decodes a first frame while it opens a file, and allocates its memory."""
    data = (variants[0] / "whole" / "flat.gif").read_bytes()
    path = tmp_path / "a.gif"
    path.write_bytes(data[:6] + struct.pack("<HH", 15000, 15000) + data[10:])
    with open_container(path) as container:
        assert container.streams.video[0].width != 15000
    with av.open(str(path)) as container:
        assert container.streams.video[0].width == 15000


@pytest.mark.parametrize("name", ["no-first-keyframe.mp4", "no-first-keyframe.mkv"])
def test_a_stream_without_its_first_keyframe_is_indexed_by_decoding(variants, name):
    video = VideoFile(variants[0] / "odd" / name)
    assert video.num_frames == len(list(video.frames())) > 0
    assert video.index.decoded


@pytest.mark.parametrize("name", ["http:clip.mp4", "concat:a|b.mp4", "pipe:0.mp4", "data:,x.gif"])
def test_a_name_is_never_an_address(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    make_video(tmp_path / "a.mp4", 3).rename(name)
    assert VideoFile(name).read([2]).shape == (1, 48, 64, 3)


@pytest.mark.parametrize("claimed", [None, Fraction(10**9), Fraction(1, 10**9)])
def test_impossible_times_and_rates(claimed):
    """Ticks that overflow relative to the first, and impossible rates."""
    stream = SimpleNamespace(time_base=Fraction(2**31 - 1, 1), average_rate=claimed)
    container = SimpleNamespace(format=SimpleNamespace(name="matroska,webm"))
    first, last = -(2**63) + 1, 2**63 - 1
    for pts in ([first, 0, last], [7]):
        index = _index(container, stream, np.array(pts), [first], decoded=True)
        expected = [float((tick - pts[0]) * stream.time_base) for tick in pts]
        assert index.times.tolist() == expected
        assert index.fps == 25
