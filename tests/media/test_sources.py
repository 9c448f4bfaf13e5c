"""Media files of folders, lists and tables, and errors where there are none."""

import pytest

from magvit2_pytorch.media.sources import find_media


@pytest.fixture
def folder(tmp_path):
    for name in (
        "b.MP4", "a.webm", "deep/er/c.MkV", "d.gif", "e.jpg", "deep/f.PNG", "notes.txt",
        ".hidden.mp4", ".cache/g.mp4", "deep/._a.webm", "table.csv", "noext",
    ):  # fmt: skip
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path


def names(paths, folder):
    return [path.relative_to(folder).as_posix() for path in paths]


def test_a_folder_is_searched_recursively(folder):
    assert names(find_media(folder), folder) == ["a.webm", "b.MP4", "d.gif", "deep/er/c.MkV"]
    assert names(find_media(str(folder), "image"), folder) == ["deep/f.PNG", "e.jpg"]


def test_links_are_followed_once(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    (other / "z.mp4").touch()
    (folder / "link").symlink_to(other)
    (folder / "deep" / "up").symlink_to(folder)
    found = find_media(folder)
    assert folder / "link" / "z.mp4" in found
    assert len(found) == 5


def test_a_list_keeps_its_order_and_loses_duplicates(folder):
    lines = ["\ufeff# a comment", "b.MP4", "", f"  {folder / 'a.webm'}  ", "b.MP4", "gone.mp4"]
    (folder / "list.txt").write_text("\n".join([*lines, "e.jpg"]), encoding="utf-8")
    expected = ["b.MP4", "a.webm", "gone.mp4"]
    assert names(find_media(folder / "list.txt"), folder) == expected


@pytest.mark.parametrize(
    "table",
    [
        'label,Path,n\ncat,b.MP4,1\ndog,"deep/er/c.MkV",2\n,,\n',
        "path\nb.MP4\ndeep/er/c.MkV\n",
        "file,label\nb.MP4,cat\ndeep/er/c.MkV,dog\n",
        "b.MP4,cat\ndeep/er/c.MkV,dog\n",
    ],
    ids=["column", "column only", "first column", "no header"],
)
def test_a_table(folder, table):
    (folder / "table.csv").write_text(table)
    assert names(find_media(folder / "table.csv"), folder) == ["b.MP4", "deep/er/c.MkV"]


def test_one_file_and_several(folder):
    assert find_media(folder / "b.MP4") == [folder / "b.MP4"]
    assert find_media([folder / "b.MP4", str(folder / "e.jpg")]) == [folder / "b.MP4"]


def test_errors_list_found_and_accepted_suffixes(folder, tmp_path_factory):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist: give a folder"):
        find_media(folder / "nowhere")
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(
        ValueError, match=r"no videos in .*empty.*\(found: nothing\); accepted: mp4"
    ):
        find_media(empty)
    (empty / "a.jpg").touch()
    with pytest.raises(ValueError, match=r"found: 1 \.jpg.*1 images.*dataset_type='images'"):
        find_media(empty)
    with pytest.raises(ValueError, match=r"no videos in .*e\.jpg"):
        find_media(folder / "e.jpg")
