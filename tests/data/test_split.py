"""Held-out files: chosen by their names alone, and recorded by the run."""

import os
import random
from pathlib import Path

import pytest

from magvit2_pytorch.data.split import (
    read_held_out,
    split_files,
    split_media,
    split_names,
    write_held_out,
)
from magvit2_pytorch.media.sources import walk

NAMES = [f"{number}.mp4" for number in range(400)]


def test_both_parts_keep_the_order_and_have_about_the_right_size():
    train, valid = split_files(NAMES, 0.25, seed=1)
    assert sorted(train + valid) == sorted(NAMES)
    assert 70 < len(valid) < 130  # 100 with a standard deviation of 8.7
    assert train == [name for name in NAMES if name in train]
    assert (train, valid) == split_files(NAMES, 0.25, seed=1)
    assert valid != split_files(NAMES, 0.25, seed=2)[1]
    # python -c "from magvit2_pytorch.data import split_files
    # print(split_files(range(20), 0.5, seed=0)[1])"
    assert split_files(range(20), 0.5, seed=0)[1] == [1, 3, 4, 5, 14, 16, 17, 18, 19]


def test_other_files_move_none():
    """A file stays on its side, whatever comes, goes or changes places."""
    _, valid = split_files(NAMES, 0.1, seed=3)
    for _ in range(20):
        some = random.sample(NAMES, random.randint(100, 399))
        assert set(split_files(some, 0.1, seed=3)[1]) == set(valid) & set(some)


def test_a_larger_fraction_holds_out_more_and_none_less():
    few, many = (set(split_files(NAMES, fraction)[1]) for fraction in (0.05, 0.2))
    assert few < many


@pytest.mark.parametrize("fraction", [1e-9, 0.5, 1 - 1e-9])
@pytest.mark.parametrize("number", [2, 3])
def test_neither_part_is_empty(fraction, number):
    for seed in range(20):
        assert all(split_files(NAMES[:number], fraction, seed))


def test_a_record_comes_before_the_fraction():
    train, valid = split_files(NAMES, 0.5, held_out=["7.mp4", "elsewhere.mp4"])
    assert (valid, len(train)) == (["7.mp4"], 399)
    assert split_files(NAMES, 0.5, held_out=NAMES) == ([], NAMES)
    assert split_files(NAMES[:1], 0.5, held_out=NAMES) == ([], NAMES[:1])
    # One of other files only is no record of these.
    assert split_files(NAMES, 0.5, held_out=["elsewhere.mp4"]) == split_files(NAMES, 0.5)


def test_the_first_held_out_files_stay_the_first(tmp_path):
    """Those that a validation takes, whatever joins the folder or moves in the list."""
    paths = [tmp_path / name for name in NAMES]
    few = split_media(tmp_path, "video", paths[::2], 0.3, 1)[1]
    all_ = split_media(tmp_path, "video", paths, 0.3, 1)[1]
    assert few == [path for path in all_ if path in few] != sorted(few)
    assert split_media(tmp_path, "video", paths[::-1], 0.3, 1)[1] == all_


def test_files_of_the_record_that_are_missing_are_named(tmp_path):
    record = split_files(NAMES[:9], 0.3, 4)[1]
    assert NAMES[0] in record
    paths = [tmp_path / name for name in NAMES[:9]]
    assert len(split_media(tmp_path, "video", paths, 0.9, 4, record)[1]) == len(record)
    with pytest.warns(UserWarning, match=r"1 of the 4 videos .* not in .* 0\.mp4"):
        _, valid = split_media(tmp_path, "video", paths[1:], 0.9, 4, record)
    assert {path.name for path in valid} == set(record) - {NAMES[0]}


def test_names_stay_when_the_folder_moves(tmp_path):
    found = []
    for folder in (tmp_path / "a", tmp_path / "b" / "c"):
        (folder / "deep").mkdir(parents=True)
        paths = [folder / "deep" / "1.mp4", folder / "2.mp4"]
        found += [split_names(folder, paths), split_names(folder / "list.txt", paths)]
    assert found == [["deep/1.mp4", "2.mp4"]] * 4
    assert split_names([Path("x/1.mp4")], [Path("x/1.mp4")]) == ["x/1.mp4"]


def test_mistakes():
    with pytest.raises(ValueError, match="between 0 and 1"):
        split_files(NAMES, 1.0)
    with pytest.raises(ValueError, match="frame_range"):
        split_files(NAMES[:1], 0.5)


def test_the_record_is_read_as_it_was_written(tmp_path):
    assert read_held_out(tmp_path) == {}
    names = {"video": ["deep/1.mp4"], "image": ["\udcff.png"]}
    write_held_out(tmp_path, names)
    assert read_held_out(tmp_path) == names


def test_names_of_files_that_are_gone_stay_in_the_record(tmp_path):
    write_held_out(tmp_path, {"video": ["a.mp4", "b.mp4"]})
    write_held_out(tmp_path, {"video": ["b.mp4"], "added image": ["c.png"]})
    assert read_held_out(tmp_path) == {"video": ["a.mp4", "b.mp4"], "added image": ["c.png"]}
    write_held_out(tmp_path, {"codes": {"b": 2, "a": 3}})
    write_held_out(tmp_path, {"codes": {"c": 1}})
    assert read_held_out(tmp_path)["codes"] == {"a": 3, "b": 2, "c": 1}


@pytest.mark.parametrize("link", [os.symlink, os.link, "folder"])
def test_a_file_reached_twice_is_on_one_side(tmp_path, link):
    """And its links, which come and go, do not move it."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name in NAMES[:60]:
        (folder / f"m{name}").touch()
    paths = sorted(folder.iterdir())
    alone = split_files(paths, 0.3, 1, split_names(folder, paths))
    if link == "folder":
        (tmp_path / "there").mkdir()
        for name in NAMES[:60]:
            (tmp_path / "there" / name).symlink_to(folder / f"m{name}")
        (folder / "zz").symlink_to(tmp_path / "there")
    else:
        for name in NAMES[:60]:
            link(folder / f"m{name}", folder / f"{'a' if link is os.symlink else 'z'}{name}")
    paths = sorted(walk(folder))
    assert len(paths) == 120
    sides = split_files(paths, 0.3, 1, split_names(folder, paths))
    for before, after in zip(alone, sides, strict=True):
        assert set(before) < set(after)
        assert len({path.stat().st_ino for path in after}) == len(before) == len(after) / 2
