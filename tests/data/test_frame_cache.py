"""A cache changes the time it takes and nothing else."""

import json
import os
import warnings

import pytest
import torch

from magvit2_pytorch.data.cache import FrameCache
from magvit2_pytorch.data.clips import ClipSpec
from magvit2_pytorch.data.datasets import VideoDataset
from magvit2_pytorch.data.loader import InfiniteBatches
from magvit2_pytorch.media.video_reader import VideoFile
from tests.data.clip_files import make_format, make_video

SPEC = ClipSpec(num_frames=5, image_size=24)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    for name in ("b_frames.mp4", "vp9.webm", "mpeg2.mpg"):
        make_format(folder, name, 12)
    return folder


def items(dataset, epochs=2):
    return torch.stack([dataset[(e, i)] for e in range(epochs) for i in range(len(dataset))])


@pytest.mark.parametrize("fps", [None, 10.0])
def test_items_are_the_same_with_and_without(folder, tmp_path, fps):
    spec = ClipSpec(num_frames=5, image_size=24, fps=fps, flip=True)
    plain = items(VideoDataset(folder, spec))
    cached = VideoDataset(folder, spec, cache_dir=tmp_path / "cache")
    assert torch.equal(items(cached), plain)
    again = VideoDataset(folder, spec, cache_dir=tmp_path / "cache")
    assert torch.equal(items(again), plain)
    assert len(list((tmp_path / "cache").glob("*.bin"))) == 3
    assert not list((tmp_path / "cache").glob(".part*"))


def test_random_scale_is_close(folder, tmp_path):
    spec = ClipSpec(num_frames=5, image_size=24, random_scale=(1.0, 1.4))
    plain = items(VideoDataset(folder, spec))
    cached = items(VideoDataset(folder, spec, cache_dir=tmp_path / "cache"))
    # The same windows, resized twice: blurrier, not elsewhere.
    assert (cached - plain).abs().mean() < 0.1


def test_later_epochs_do_not_decode(folder, tmp_path, monkeypatch):
    dataset = VideoDataset(folder, SPEC, cache_dir=tmp_path / "cache")
    expected = items(dataset)
    monkeypatch.setattr(VideoFile, "read", None)
    monkeypatch.setattr(VideoFile, "frames", None)
    assert torch.equal(items(dataset), expected)


def test_entries_of_an_older_version_are_not_found(folder, tmp_path, monkeypatch):
    """Frames read before a change of colours or resizing are read again."""
    video = VideoFile(folder / "b_frames.mp4")
    monkeypatch.setattr("magvit2_pytorch.data.cache._VERSION", 1)
    FrameCache(tmp_path / "cache").get(video, (24, 32))
    monkeypatch.undo()
    FrameCache(tmp_path / "cache").get(video, (24, 32))
    assert len(list((tmp_path / "cache").glob("*.json"))) == 2


@pytest.mark.parametrize("damage", ["flip", "cut", "no json", "bad json", "wrong shape"])
def test_damaged_entries_are_made_again(folder, tmp_path, damage):
    cache = tmp_path / "cache"
    expected = items(VideoDataset(folder, SPEC, cache_dir=cache))
    frames, about = next(cache.glob("*.bin")), next(cache.glob("*.json"))
    data = bytearray(frames.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
        frames.write_bytes(data)
    elif damage == "cut":
        frames.write_bytes(data[:-7])
    elif damage == "no json":
        about.unlink()
    elif damage == "bad json":
        about.write_text(about.read_text()[:-9])
    else:
        about.write_text(json.dumps(json.loads(about.read_text()) | {"shape": [1, 2, 3]}))
    assert torch.equal(items(VideoDataset(folder, SPEC, cache_dir=cache)), expected)
    whole = FrameCache(cache)
    assert all(whole._load(path.stem) is not None for path in cache.glob("*.bin"))


def test_a_video_that_changed_is_decoded_again(folder, tmp_path):
    path = folder / "b_frames.mp4"
    before = items(VideoDataset(path, SPEC, cache_dir=tmp_path / "cache"))
    make_video(path, 13, fps=20)
    os.utime(path, ns=(1, 1))
    after = items(VideoDataset(path, SPEC, cache_dir=tmp_path / "cache"))
    assert not torch.equal(before, after)
    assert torch.equal(after, items(VideoDataset(path, SPEC)))


def test_the_cap_holds(folder, tmp_path):
    one_video = 12 * 24 * 32 * 3
    expected = items(VideoDataset(folder, SPEC))
    for max_bytes, stored in ((one_video * 9, 0), (one_video * 11, 3)):
        cache = tmp_path / str(max_bytes)
        dataset = VideoDataset(folder, SPEC, cache_dir=cache, cache_max_gb=max_bytes / 1e9)
        assert torch.equal(items(dataset), expected)
        assert len(list(cache.glob("*.bin"))) == stored
        assert sum(path.stat().st_size for path in cache.iterdir()) <= max_bytes
    # Full: others' files count too.
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_bytes(bytes(one_video * 10))
    full = VideoDataset(
        folder, SPEC, cache_dir=tmp_path / "full", cache_max_gb=10.5 * one_video / 1e9
    )
    assert torch.equal(items(full), expected)
    assert not list((tmp_path / "full").glob("*.bin"))
    with pytest.raises(ValueError, match="cache_max_gb"):
        VideoDataset(folder, SPEC, cache_dir=tmp_path / "full", cache_max_gb=0)


def test_a_full_disk_does_not_stop_training(folder, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    dataset_items = items(VideoDataset(folder, SPEC))
    monkeypatch.setattr(FrameCache, "_store", full)
    with pytest.warns(UserWarning, match="No space left"):
        cached = VideoDataset(folder, SPEC, cache_dir=tmp_path / "cache")
    # A second warning would be an error here.
    assert torch.equal(items(cached), dataset_items)


def test_workers_share_it(folder, tmp_path):
    plain = InfiniteBatches(VideoDataset(folder, SPEC), 3)
    dataset = VideoDataset(folder, SPEC, cache_dir=tmp_path / "cache")
    cached = InfiniteBatches(dataset, 3, num_workers=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(3):
            assert torch.equal(next(plain), next(cached))
