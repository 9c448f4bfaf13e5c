"""Which clips are taken: the ones that the choice says, in any order of files."""

import pytest
import torch

from magvit2_pytorch.data.clips import ClipSpec
from magvit2_pytorch.data.datasets import VideoDataset
from magvit2_pytorch.data.split import split_files, split_names
from magvit2_pytorch.evaluation.clip_choice import ClipChoice
from magvit2_pytorch.evaluation.evaluation_clips import (
    Clip,
    EvaluatedFile,
    SkippedFile,
    files_digest,
    find_files,
    iter_clips,
)
from magvit2_pytorch.media.frames import to_float
from magvit2_pytorch.media.images import read_image, write_image
from magvit2_pytorch.media.sources import find_media
from magvit2_pytorch.media.video_reader import VideoFile
from tests.data.clip_files import make_video


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """40 frames of 24 x 36."""
    path = tmp_path_factory.mktemp("clips") / "long.mkv"
    return EvaluatedFile(make_video(path, 40, 24, 36, codec="ffv1"), "long.mkv")


def taken(files, first_clip=0, **options):
    return list(iter_clips(files, ClipChoice(**options), 3, first_clip))


@pytest.mark.parametrize(
    ("options", "starts"),
    [
        (dict(num_frames=40), [0]),
        (dict(num_frames=17), [12]),
        (dict(num_frames=10, clips_per_video=3), [0, 15, 30]),
        (dict(num_frames=17, clips_per_video=9), [0, 23]),
        (dict(num_frames=5, frame_stride=3, clips_per_video=9), [0, 14, 27]),
        (dict(num_frames=5, frame_range=(-6, None)), [34]),
        (dict(num_frames=5, frame_range=(0.5, 0.75), clips_per_video=2), [20, 25]),
        (dict(num_frames=1, clips_per_video=2), [0, 39]),
    ],
)
def test_clips_are_spread_over_a_video_without_overlap(video, options, starts):
    clips = taken([video], **options)
    assert [clip.start_frame for clip in clips] == starts
    assert [(clip.number, clip.num_clips) for clip in clips] == [
        (i, len(starts)) for i in range(len(starts))
    ]
    stride, count = options.get("frame_stride", 1), options["num_frames"]
    for clip in clips:
        numbers = range(clip.start_frame, clip.start_frame + stride * count, stride)
        assert torch.equal(clip.frames, VideoFile(video.path).read(numbers))
        assert clip.fps == pytest.approx(25 / stride, rel=1e-3)
    later = taken([video], first_clip=1, **options)
    assert [clip.start_frame for clip in later] == starts[1:]


@pytest.mark.parametrize("count", [1, 3])
def test_they_are_those_of_a_dataset_that_does_not_train(video, count):
    spec = ClipSpec(num_frames=9, frame_stride=1, image_size=(24, 36))
    dataset = VideoDataset([video.path], spec, train=False, clips_per_video=count)
    clips = taken([video], num_frames=9, clips_per_video=count)
    assert len(clips) == len(dataset) == count
    for number, clip in enumerate(clips):
        assert torch.equal(to_float(clip.frames), dataset[number])


def test_sizes_are_short_sides_and_crops_are_squares(video, tmp_path):
    (clip,) = taken([video], num_frames=3, size=12)
    assert clip.frames.shape == (3, 12, 18, 3)
    (square,) = taken([video], num_frames=3, size=12, crop=True)
    assert torch.equal(square.frames, clip.frames[:, :, 3:15])
    write_image(tmp_path / "x.png", torch.randint(256, (30, 20, 3), dtype=torch.uint8))
    file = EvaluatedFile(tmp_path / "x.png", "x.png")
    (image,) = taken([file], size=10, crop=True)
    whole = read_image(file.path, size=(15, 10))
    assert torch.equal(image.frames[0], whole[2:12])
    assert image[:6] == ("x.png", "image", 0, 1, 0, None)
    assert taken([file], first_clip=1) == []


def test_what_cannot_be_used_comes_in_its_place(video, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"nothing")
    broken = EvaluatedFile(tmp_path / "broken.mp4", "broken.mp4")
    gone = EvaluatedFile(tmp_path / "gone.png", "gone.png")
    found = taken([broken, video, gone], num_frames=5)
    assert [type(item) for item in found] == [SkippedFile, Clip, SkippedFile]
    assert found[2] == ("gone.png", "the file is missing")
    (short,) = taken([video], num_frames=21, frame_stride=2)
    assert short.reason.startswith("too short: 40 frames to choose from, a clip needs 41 frames")
    (short,) = taken([video], num_frames=5, frame_range=(50, None))
    assert short.reason.startswith("too short: 0 frames")
    (narrow,) = taken([_narrow(tmp_path)], size=64)
    assert "too narrow" in narrow.reason


def _narrow(folder):
    write_image(folder / "narrow.png", torch.zeros(1, 200, 3, dtype=torch.uint8))
    return EvaluatedFile(folder / "narrow.png", "narrow.png")


def test_a_damaged_video_gives_what_can_be_decoded(tmp_path, monkeypatch):
    """The index promises 12 frames, and 9 come out: clips are chosen among those, once more."""
    make_video(tmp_path / "whole.mkv", 9, 16, 16, codec="ffv1")
    promised = VideoFile.try_read

    def fewer(self, indices, size=None):
        return None if self.index is first.index else promised(self, indices, size)

    first = VideoFile(tmp_path / "whole.mkv")
    first.index = make_index(tmp_path)
    monkeypatch.setattr("magvit2_pytorch.evaluation.evaluation_clips.VideoFile", lambda *_: first)
    monkeypatch.setattr(VideoFile, "try_read", fewer)
    file = EvaluatedFile(tmp_path / "whole.mkv", "whole.mkv")
    clips = taken([file], num_frames=4, clips_per_video=3)
    assert [(clip.start_frame, clip.num_clips) for clip in clips] == [(0, 2), (5, 2)]


def make_index(folder):
    return VideoFile(make_video(folder / "promised.mkv", 12, 16, 16, codec="ffv1")).index


def test_files_are_found_by_name_or_drawn(tmp_path):
    names = [f"{letter}.mp4" for letter in "hgfedcba"] + ["picture.png"]
    for name in (*names, "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    found = find_files(tmp_path, ClipChoice())
    assert [file.name for file in found] == sorted(names)
    assert [file.path for file in found] == [tmp_path / name for name in sorted(names)]
    drawn = [file.name for file in find_files(tmp_path, ClipChoice(max_clips=2, seed=1))]
    assert sorted(drawn) == sorted(names)
    assert drawn != sorted(names)
    assert drawn != [file.name for file in find_files(tmp_path, ClipChoice(max_clips=2, seed=2))]
    given = [tmp_path / name for name in drawn]
    assert find_files(given, ClipChoice(max_clips=9, seed=1)) == find_files(
        given[::-1], ClipChoice(max_clips=2, seed=1)
    )
    (one,) = find_files(tmp_path / "a.mp4", ClipChoice())
    assert one.name == "a.mp4"


def test_other_files_of_a_list_change_no_draw(tmp_path):
    names = [f"deep/{letter}.mp4" for letter in "hgfedcba"]
    for name in (*names, "x.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    drawn = []
    for listed in (names, [*reversed(names), "x.mp4"]):
        (tmp_path / "list.txt").write_text("\n".join(listed))
        files = find_files(tmp_path / "list.txt", ClipChoice(max_clips=2))
        drawn.append([file.path.name for file in files if file.path.name != "x.mp4"])
    assert drawn[0] == drawn[1] != sorted(drawn[0])


def test_a_split_is_that_of_training(tmp_path):
    for number in range(10):
        (tmp_path / f"{number}.mp4").touch()
    paths = find_media(tmp_path)
    _, valid = split_files(paths, 0.3, 7, split_names(tmp_path, paths))
    options = dict(valid_frac=0.3, random_split_seed=7)
    found = find_files(tmp_path, ClipChoice(split="valid", **options))
    assert [file.path for file in found] == valid
    others = find_files(tmp_path, ClipChoice(split="train", **options))
    assert {file.path for file in others} == set(find_media(tmp_path)) - set(valid)
    # The record of a run comes before its options, which are then without effect.
    recorded = {"video": ["2.mp4", "5.mp4", "gone.mp4"]}
    with pytest.warns(UserWarning, match="1 of the 3 videos .* gone.mp4"):
        found = find_files(tmp_path, ClipChoice(split="valid"), recorded)
    assert [file.name for file in found] == ["2.mp4", "5.mp4"]
    recorded["video"].pop()
    assert len(find_files(tmp_path, ClipChoice(split="train"), recorded)) == 8
    held_out = {"video": [path.name for path in paths]}
    assert len(find_files(tmp_path, ClipChoice(split="valid"), held_out)) == 10
    with pytest.raises(ValueError, match="holds out all files"):
        find_files(tmp_path, ClipChoice(split="train"), held_out)
    (tmp_path / "one.png").touch()
    with pytest.raises(ValueError, match="cannot be split"):
        find_files(tmp_path, ClipChoice(split="valid", **options))


def test_a_digest_tells_other_files(tmp_path):
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / name).write_bytes(b"123")
    files = find_files(tmp_path, ClipChoice())
    before = [files_digest(files), files_digest(files, with_times=True)]
    assert files_digest(files[::-1]) == before[0] != before[1]
    (tmp_path / "b.mp4").write_bytes(b"1234")
    assert files_digest(files) != before[0]
    (tmp_path / "b.mp4").unlink()
    assert files_digest(files) not in (before[0], files_digest(files[:1]))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (dict(num_frames=0), "num_frames is 0"),
        (dict(max_clips=0), "max_clips is 0"),
        (dict(crop=True), "give a size"),
        (dict(split="test"), "split is 'test'"),
        (dict(frame_range=(0.0, 1.5)), "frame_range"),
    ],
)
def test_mistakes_are_said(options, said, without_type_checks):
    with pytest.raises(ValueError, match=said):
        ClipChoice(**options)
