"""Windows of codes as training examples, the split in time, and views."""

from dataclasses import replace

import pytest
import torch

from magvit2_pytorch.codes.code_file import write_codes
from magvit2_pytorch.codes.code_header import CodedVideo
from magvit2_pytorch.codes.code_windows import (
    GAP_LATENTS,
    CodeWindows,
    Stretch,
    class_folders,
    read_grid,
    split_in_time,
    tokens_of_part,
)
from magvit2_pytorch.codes.codes_dataset import CodesDataset
from magvit2_pytorch.codes.views import View, is_view, parse_views
from tests.codes.test_code_file import HEADER


def numbered(shape):
    """Codes that tell where they are from."""
    return torch.arange(torch.Size(shape).numel()).view(shape) % HEADER.codebook_size


def write_corpus(folder, shapes, header=HEADER, num_frames=None):
    """A code file for each path, of videos of `num_frames`; gives the dataset."""
    for path, shape in shapes.items():
        video = CodedVideo(
            header=header, source=path, kind="video",
            num_frames=num_frames or 1 + 4 * (shape[0] - 1),
            height=8, width=8, fps=24.0, shape=shape,
        )  # fmt: skip
        target = folder / f"{path}.codes.safetensors"
        target.parent.mkdir(parents=True, exist_ok=True)
        write_codes(target, numbered(shape), video)
    return CodesDataset(folder)


def test_the_end_of_each_video_is_held_out_behind_a_gap(tmp_path):
    codes = write_corpus(
        tmp_path, {"a": (20, 4, 4), "a@flip+shift1": (20, 4, 4), "b": (31, 4, 4), "c": (5, 4, 4)}
    )
    train, held_out = split_in_time(codes, 3, 0.1)
    ends = {codes.paths[s.video].split(".")[0]: (s.start, s.stop) for s in held_out}
    assert ends == {"a": (18, 20), "b": (27, 31)}
    for stretch in train:
        name = codes.paths[stretch.video].split(".")[0]
        length = codes.shapes[stretch.video][0]
        held = {"a": 2, "a@flip+shift1": 2, "b": 4}.get(name)
        stop = length if held is None else length - held - GAP_LATENTS
        assert (stretch.start, stretch.stop) == (0, stop)
    assert [s.stop - s.start for s in split_in_time(codes, 3, 0.1, 7)[1]] == [7, 7]
    one = write_corpus(tmp_path / "one", {"a": (4, 2, 2), "a@flip": (4, 2, 2)})
    with pytest.raises(ValueError, match="one video, too short"):
        split_in_time(one, 3, 0.1)


def test_of_short_videos_some_are_held_out_whole(tmp_path):
    names = [f"{n}" for n in range(20)]
    shapes = {path: (4, 2, 2) for name in names for path in (name, f"{name}@flip")}
    codes = write_corpus(tmp_path / "clips", shapes)
    train, held_out = split_in_time(codes, 3, 0.2)
    paths = [codes.paths[s.video].removesuffix(".codes.safetensors") for s in held_out]
    # Each by its own name: 4 in the mean.
    assert 1 <= len(paths) <= 8
    assert {(s.start, s.stop) for s in held_out} == {(0, 4)}
    trained = {codes.paths[s.video].removesuffix(".codes.safetensors") for s in train}
    assert trained == {p for p in shapes if p.split("@")[0] not in paths}
    fewer = write_corpus(tmp_path / "fewer", {path: shapes[path] for path in list(shapes)[10:]})
    chosen = {fewer.paths[s.video].split(".")[0] for s in split_in_time(fewer, 3, 0.2)[1]}
    assert chosen == set(paths) & {path.split("@")[0] for path in list(shapes)[10:]}
    sequences = write_corpus(tmp_path / "tokens", {"a": (6,), "b": (6,)}, num_frames=2)
    assert [len(part) for part in split_in_time(sequences, 1, 0.1)] == [1, 1]


def test_codes_of_a_record_stay_held_out(tmp_path):
    """Of each video as many as it says, with other options and beside other videos."""
    shapes = {"a": (20, 4, 4), "a@flip": (20, 4, 4), "b": (9, 4, 4), "c": (5, 4, 4)}
    record = {"a.codes.safetensors": 7, "b.codes.safetensors": 9}
    codes = write_corpus(tmp_path, shapes)
    for fraction, window in ((0.1, 3), (0.5, 1)):
        train, held_out = split_in_time(codes, window, fraction, None, record)
        parts = [{codes.paths[v].split(".")[0]: (x, y) for v, x, y in p} for p in (train, held_out)]
        assert parts[0]["a"] == parts[0]["a@flip"] == (0, 20 - 7 - GAP_LATENTS)
        assert "b" not in parts[0]
        assert (parts[1]["a"], parts[1]["b"]) == ((13, 20), (0, 9))
    order = [codes.paths[s.video] for s in held_out]
    more = write_corpus(tmp_path, {f"{number}": (20, 4, 4) for number in range(6)})
    later = [more.paths[s.video] for s in split_in_time(more, 1, 0.5, None, record)[1]]
    assert order == [path for path in later if path in order] != later
    assert later != sorted(later)


def test_windows_are_cut_from_the_stretches_and_repeatable(tmp_path):
    codes = write_corpus(tmp_path, {"a": (12, 5, 7), "b": (9, 6, 6)})
    stretches = [Stretch(0, 2, 9), Stretch(1, 0, 6)]
    windows = CodeWindows(codes, stretches, 3, crop=(4, 16), seed=1)
    assert windows.size == (4, 6)
    assert len(windows) == round(7 / 3 * 35 / 24) + round(6 / 3 * 36 / 24)
    seen = set()
    for epoch in range(50):
        for number in range(len(windows)):
            window = windows[epoch, number]
            video, stretch = (0, stretches[0]) if number < 3 else (1, stretches[1])
            assert stretch.start <= window.start <= stretch.stop - 3
            shape = codes.shapes[video]
            whole = read_grid(codes, video, window.start, window.start + 3)
            places = [
                (y, x)
                for y in range(shape[1] - 3)
                for x in range(shape[2] - 5)
                if torch.equal(whole[:, y : y + 4, x : x + 6], window.codes)
            ]
            assert len(places) == 1
            seen.add((video, window.start, *places[0]))
            assert torch.equal(windows[epoch, number].codes, window.codes)
    assert seen == {
        *((0, t, y, x) for t in range(2, 7) for y in range(2) for x in range(2)),
        *((1, t, y, 0) for t in range(4) for y in range(3)),
    }
    other = CodeWindows(codes, stretches, 3, crop=(4, 16), seed=2)
    assert any(other[0, n].start != windows[0, n].start for n in range(len(windows)))


def test_codebooks_stay_last(tmp_path):
    several = replace(HEADER, num_codebooks=2)
    codes = write_corpus(tmp_path / "two", {"a": (5, 3, 3, 2)}, several)
    assert CodeWindows(codes, [Stretch(0, 0, 5)], 2)[0, 0].codes.shape == (2, 3, 3, 2)


@pytest.mark.parametrize("crop", [None, (16, 2)])
def test_parts_of_a_sequence_are_frames_of_one_row(tmp_path, crop):
    # 11 frames are five parts of two, and one of a single frame, which is left out.
    codes = write_corpus(tmp_path, {"a": (18,), "b": (18,)}, num_frames=11)
    assert codes.grid(1) == (5, 1, 3)
    whole = numbered((18,)).view(6, 1, 3)
    assert torch.equal(read_grid(codes, 0, 1, 4), whole[1:4])
    windows = CodeWindows(codes, [Stretch(0, 0, 5), Stretch(1, 2, 5)], 2, crop)
    assert windows.size == (1, 3)
    for number in range(len(windows)):
        window = windows[0, number]
        assert torch.equal(window.codes, whole[window.start : window.start + 2])
    train, held_out = split_in_time(codes, 1, 0.1)
    assert {stretch[1:] for stretch in train} == {(0, 2)}
    assert {stretch[1:] for stretch in held_out} == {(4, 5)}


def test_sequences_that_are_no_parts_of_one_length(tmp_path):
    codes = write_corpus(tmp_path, {"a": (6,), "b": (9,)}, num_frames=6)
    with pytest.raises(ValueError, match=r"2 to 3 tokens in a part, but .* --num_tokens"):
        CodeWindows(codes, [Stretch(0, 0, 3), Stretch(1, 0, 3)], 1)
    with pytest.raises(ValueError, match="2 to 3 tokens"):
        tokens_of_part(codes)
    broken = write_corpus(tmp_path / "broken", {"a": (7,)}, num_frames=6)
    with pytest.raises(ValueError, match=r"7 codes of a.* do not divide among parts of 2"):
        broken.grid(0)
    write_corpus(tmp_path / "some", {"c": (7,), "d": (7,)}, num_frames=1)
    some = write_corpus(tmp_path / "some", {"a": (6,), "b": (6,)}, num_frames=2)
    assert tokens_of_part(some) == 6
    assert sorted(s for part in split_in_time(some, 1, 0.1) for s in part) == [(0, 0, 1), (1, 0, 1)]
    short = write_corpus(tmp_path / "short", {"a": (7,), "b": (7,)}, num_frames=1)
    with pytest.raises(ValueError, match="as long as a part"):
        tokens_of_part(short)
    assert tokens_of_part(write_corpus(tmp_path / "grid", {"a": (4, 2, 2)})) is None


def test_classes_are_the_top_folders(tmp_path):
    codes = write_corpus(tmp_path, {"cat/a": (4, 2, 2), "dog/b": (4, 2, 2), "dog/c/d": (4, 2, 2)})
    assert class_folders(codes) == ("cat", "dog")
    stretches = [Stretch(n, 0, 4) for n in range(3)]
    windows = CodeWindows(codes, stretches, 4, classes=("cat", "dog"))
    assert [windows[0, n].label for n in range(3)] == [0, 1, 1]
    with pytest.raises(ValueError, match="none of the folders"):
        CodeWindows(codes, stretches, 4, classes=("cat",))


@pytest.mark.filterwarnings("ignore:.*are left out")
def test_what_gives_no_windows_is_refused(tmp_path):
    codes = write_corpus(tmp_path, {"a": (4, 2, 2), "b": (4, 2, 3)})
    both = [Stretch(0, 0, 4), Stretch(1, 0, 4)]
    with pytest.raises(ValueError, match="give a crop"):
        CodeWindows(codes, both, 2)
    with pytest.raises(ValueError, match="has 5 latent frames"):
        CodeWindows(codes, both, 5, crop=(2, 2))


def test_views_have_names_that_tell_them_from_videos():
    views = parse_views("flip,shift:3")
    assert views[0] == View()
    assert len(set(views)) == 6
    assert parse_views("shift:2") == [View(), View(shift=1)]
    paths = [view.path("more/a.mp4") for view in views]
    assert paths[0] == "more/a.mp4"
    assert [is_view(path) for path in paths] == [False] + [True] * 5
    assert is_view("a@flip+shift1.codes.safetensors")
    assert not any(map(is_view, ("me@home.mp4", "a@flip.mp4/b.mp4", "a.codes.safetensors")))
    for text in ("", "shift", "shift:1", "turn", "flip:2"):
        with pytest.raises(ValueError, match="give flip"):
            parse_views(text)
