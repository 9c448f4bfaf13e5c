"""Names that are not UTF-8, `~`, and lists in other encodings."""

import io
import json
import os
import warnings
from pathlib import Path
from unicodedata import normalize

import pytest
import torch

from magvit2_pytorch.codes.code_file import read_codes, write_codes
from magvit2_pytorch.codes.codes_dataset import CodesDataset
from magvit2_pytorch.data.cache import FrameCache
from magvit2_pytorch.data.clips import ClipSpec
from magvit2_pytorch.data.datasets import VideoDataset
from magvit2_pytorch.data.split import split_names
from magvit2_pytorch.media.images import read_image, write_grid, write_image
from magvit2_pytorch.media.sources import find_media
from magvit2_pytorch.media.unusable import UnusableMedia
from magvit2_pytorch.media.video_reader import VideoFile
from magvit2_pytorch.media.video_writer import VideoWriter, write_video
from magvit2_pytorch.pipelines.corpus import tokenize_corpus
from magvit2_pytorch.pipelines.files import tokenize_file
from tests.conftest import build
from tests.data.clip_files import make_film, make_video

FRAMES = torch.full((3, 16, 24, 3), 90, dtype=torch.uint8)
NAMES = [b"caf\xe9", b"\xff\xfe", b"\x83e\x83X\x83g", "cafe\u0301".encode(), "ÜNÏ €".encode()]
"""Latin-1, bytes of no encoding, Shift JIS, and decomposed and composed UTF-8."""


def printed(text: object) -> bool:
    """True if a strict stream takes the text."""
    print(text, file=io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="strict"))
    return True


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((name, os.fsdecode) for name in NAMES),
        (NAMES[0], os.fsencode),
        (NAMES[0], lambda path: Path(os.fsdecode(path))),
    ],
)
def test_any_name_is_written_found_and_read(tmp_path, name, kind):
    stem = os.path.join(os.fsencode(tmp_path), name)
    write_video(kind(stem + b".mp4"), FRAMES, 25)
    write_image(kind(stem + b".png"), FRAMES[0])
    write_grid(kind(stem + b".jpg"), [FRAMES])
    assert {os.fsencode(p) for p in tmp_path.iterdir()} == {
        stem + suffix for suffix in (b".mp4", b".png", b".jpg")
    }
    assert VideoFile(kind(stem + b".mp4")).read([2]).shape == (1, 16, 24, 3)
    assert torch.equal(read_image(kind(stem + b".png")), FRAMES[0])
    (found,) = find_media(kind(os.fsencode(tmp_path)))
    assert os.fsencode(found) == stem + b".mp4"
    assert find_media([kind(stem + b".mp4")]) == find_media(kind(stem + b".mp4")) == [found]
    assert VideoDataset(found, ClipSpec(num_frames=1, image_size=16))[0].shape == (3, 1, 16, 16)
    with VideoWriter(kind(stem + b".mov"), 25, audio_from=make_film(found)) as writer:
        writer.write(FRAMES[0])


@pytest.mark.parametrize("name", NAMES)
def test_errors_and_warnings_can_be_printed(tmp_path, name):
    broken = Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), name + b".mp4")))
    broken.write_bytes(b"nothing")
    make_video(tmp_path / "good.mp4", 2)
    with pytest.raises(UnusableMedia) as caught:
        VideoFile(broken).num_frames  # noqa: B018
    assert printed(caught.value)
    assert caught.value.path == str(broken)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        dataset = VideoDataset(tmp_path, ClipSpec(num_frames=1, image_size=16))
        assert [dataset[i].shape for i in range(2)] == [(3, 1, 16, 16)] * 2
    assert list(dataset.skipped) == [str(broken)]
    assert json.loads(json.dumps(dataset.skipped)) == dataset.skipped
    assert printed(told[0].message)
    with pytest.raises(ValueError, match="no images") as caught:
        find_media(broken.parent, "image")
    assert printed(caught.value)


def test_what_is_left_out_can_be_printed(tmp_path, caplog):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    folder.mkdir()
    (folder / "a.mp4").touch()
    Path(os.fsdecode(os.fsencode(folder) + b"/x.\xff")).touch()
    assert find_media(folder) == [folder / "a.mp4"]
    assert printed(caplog.messages[0])


def test_the_home_folder_is_found_everywhere(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    make_film(tmp_path / "film.mp4")
    write_video("~/a.mp4", FRAMES, 25)
    write_image("~/a.png", FRAMES[0])
    write_grid(Path("~/b.png"), [FRAMES])
    with VideoWriter("~/b.mp4", 25, audio_from="~/film.mp4") as writer:
        writer.write(FRAMES[0])
    names = {"film.mp4", "a.mp4", "a.png", "b.mp4", "b.png"}
    assert {path.name for path in tmp_path.iterdir()} == names
    assert VideoFile("~/a.mp4").num_frames == 3
    assert torch.equal(read_image("~/a.png"), FRAMES[0])
    (tmp_path / "list.txt").write_text("~/a.mp4\n")
    (tmp_path / "list.csv").write_text("path\n~/a.mp4\n")
    for source in ("~/a.mp4", ["~/a.mp4"], Path("~/list.txt"), "~/list.csv"):
        assert find_media(source) == [tmp_path / "a.mp4"]
    assert len(find_media("~")) == 3
    codes, video = tokenize_file(build("residual"), "~/a.mp4")
    assert video.state is not None
    write_codes("~/codes/a.codes.safetensors", codes, video)
    assert torch.equal(read_codes("~/codes/a.codes.safetensors")[0], codes)
    assert len(CodesDataset("~/codes")) == 1
    FrameCache("~/cache")
    assert not (tmp_path / "~").exists()


@pytest.mark.parametrize("suffix", ["txt", "csv"])
@pytest.mark.parametrize(
    ("encoding", "message"),
    [
        ("latin-1", r"names b'caf\\xe9.mp4', which is neither UTF-8 .*: save the list as UTF-8"),
        ("cp1252", "save the list as UTF-8"),
        ("utf-16", "probably UTF-16: save it as UTF-8"),
        ("utf-16-le", "probably UTF-16: save it as UTF-8"),
        ("utf-16-be", "probably UTF-16: save it as UTF-8"),
    ],
)
def test_a_list_in_another_encoding_is_named(tmp_path, suffix, encoding, message):
    (tmp_path / f"list.{suffix}").write_bytes("a.mp4\ncafé.mp4\n".encode(encoding))
    with pytest.raises(ValueError, match=rf"list\.{suffix} .*{message}"):
        find_media(tmp_path / f"list.{suffix}")


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_both_unicode_normalizations_name_one_file(tmp_path, forms, monkeypatch):
    """A folder or list from macOS on Linux, and the other way round."""
    ours, other = ([normalize(form, f"\xe4/\u30ac{n}.mp4") for n in "12"] for form in forms)
    for name in ours:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        make_video(tmp_path / name, 2)
    files = [tmp_path / name for name in ours]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.txt").write_text("\n".join([*other, *ours]), encoding="utf-8")
    folder = (tmp_path / other[0]).parent
    for source in (folder, "list.txt", other, [os.fsencode(name) for name in other]):
        assert [path.absolute() for path in find_media(source)] == files
    assert VideoFile(other[0]).num_frames == 2
    names = split_names("list.txt", files)
    assert names == split_names("list.txt", [tmp_path / name for name in other])
    dataset = VideoDataset("list.txt", ClipSpec(num_frames=1, image_size=16), cache_dir="cache")
    model = build("residual")
    inputs = dict(zip(ours, files, strict=True))
    assert tokenize_corpus(model, inputs, "codes").num_done == 2
    assert tokenize_corpus(model, dict(zip(other, files, strict=True)), "codes").num_done == 0
    dataset[0]
    cached = len(list((tmp_path / "cache").iterdir()))
    (tmp_path / ours[0]).parent.rename(tmp_path / "x")
    for path in (tmp_path / "x").iterdir():
        path.rename(path.with_name(normalize(forms[1], path.name)))
    (tmp_path / "x").rename(tmp_path / other[0].split("/")[0])
    moved = VideoDataset("list.txt", ClipSpec(num_frames=1, image_size=16), cache_dir="cache")
    assert torch.equal(moved[0], dataset[0])
    assert len(list((tmp_path / "cache").iterdir())) == cached
    assert CodesDataset("codes").paths == [normalize("NFC", name) for name in ours]


@pytest.mark.parametrize("suffix", ["txt", "csv"])
def test_a_list_in_utf_8_or_of_existing_names(tmp_path, suffix):
    path = tmp_path / f"list.{suffix}"
    for encoding in ("utf-8", "utf-8-sig"):
        path.write_bytes("café.mp4\r\nb.mp4\r\n".encode(encoding))
        assert [p.name for p in find_media(path)] == ["café.mp4", "b.mp4"]
    latin = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.mp4"))
    latin.touch()
    path.write_bytes(b"caf\xe9.mp4\n")  # as `ls` would write it
    assert find_media(path) == [latin]
