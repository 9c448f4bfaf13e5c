"""Every suffix that a folder is searched for decodes; the rest is counted, not dropped."""

import av
import pytest
import torch
from PIL import features

from magvit2_pytorch.data.clips import ClipSpec
from magvit2_pytorch.data.datasets import ImageDataset, VideoDataset
from magvit2_pytorch.media.images import read_image, write_image
from magvit2_pytorch.media.sources import IMAGE_SUFFIXES, VIDEO_SUFFIXES, find_media, log_left_out
from magvit2_pytorch.media.video_reader import VideoFile
from magvit2_pytorch.pipelines.tokenizer_info import describe_file
from tests.data.clip_files import make_video, pictures

CODECS = {
    ".webm": "libvpx-vp9", ".gif": "gif", ".mpg": "mpeg2video", ".mpeg": "mpeg1video",
    ".avi": "mpeg4", ".flv": "flv", ".wmv": "wmv2", ".asf": "msmpeg4", ".ogv": "libvpx",
    ".m1v": "mpeg1video", ".m2v": "mpeg2video", ".mpe": "mpeg1video", ".vob": "mpeg2video",
    ".mxf": "mpeg2video", ".m2ts": "mpeg2video", ".apng": "apng", ".y4m": "rawvideo",
}  # fmt: skip
"""Codec by suffix; the others hold h264."""
MUXERS = {".m2ts": "mpegts", ".mts": "mpegts", ".mpe": "mpeg", ".qt": "mov", ".asf": "asf"}
"""FFmpeg's name of the format where the suffix does not give it."""


@pytest.mark.parametrize("suffix", VIDEO_SUFFIXES)
def test_every_video_suffix_decodes_exactly(tmp_path, suffix):
    codec = CODECS.get(suffix, "libx264")
    if codec not in av.codecs_available:
        pytest.skip(f"no {codec} here")
    path = tmp_path / f"a{suffix}"
    make_video(path, 30, codec=codec, muxer=MUXERS.get(suffix))
    assert find_media(tmp_path) == find_media(path) == [path]
    assert find_media(path.rename(path.with_suffix(suffix.upper()))) != []
    path = path.with_suffix(suffix.upper())
    video = VideoFile(path, num_threads=1)
    with av.open(str(path)) as container:
        exact = dict(format="gbrp", interpolation=0x4 | 0x40000 | 0x2000)
        if codec in ("apng", "gif"):
            exact["format"] = "rgba"
        truth = [frame.to_ndarray(**exact)[..., :3] for frame in container.decode(video=0)]
    assert video.num_frames == len(truth) == 30
    assert video.fps == pytest.approx(25, rel=2e-3)
    for numbers in ([29], [3, 4, 17], [0, 13, 28]):
        for number, frame in zip(numbers, video.read(numbers), strict=True):
            assert torch.equal(frame, torch.from_numpy(truth[number])), number
    assert describe_file(path)["num_frames"] == 30
    assert VideoDataset(tmp_path, ClipSpec(num_frames=5, image_size=16))[0].shape == (3, 5, 16, 16)


@pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
def test_every_image_suffix_is_written_and_read(tmp_path, suffix):
    if suffix == ".avif" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    frame = torch.from_numpy(next(pictures(1))) // 4 + 90
    smooth = torch.nn.functional.avg_pool2d(frame.permute(2, 0, 1).float(), 9, 1, 4)
    frame = smooth.permute(1, 2, 0).to(torch.uint8)
    path = tmp_path / f"a{suffix}"
    write_image(path, frame)
    assert find_media(tmp_path, "image") == [path]
    assert (read_image(path).float() - frame.float()).abs().mean() < 4
    half = torch.cat((frame, torch.full_like(frame[..., :1], 128)), -1)
    write_image(path, half)
    assert (read_image(path).float() - frame.float() * 128 / 255).abs().mean() < 4
    assert describe_file(path) == {"kind": "image", "height": 48, "width": 64}
    assert ImageDataset(path, ClipSpec(num_frames=1, image_size=16))[0].shape == (3, 16, 16)


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def left_out(caplog) -> list[str]:
    return [text for text in caplog.messages if "left out" in text]


def test_one_line_counts_what_a_folder_holds_beside(tmp_path, caplog):
    touch(tmp_path, "a.mp4", "b.rm", "deep/c.RM", "d.txt", "noext", "e.jpg", ".hidden.rm", "f.TS")
    assert [path.name for path in find_media(tmp_path)] == ["a.mp4", "f.TS"]
    expected = "5 other files left out: 2 .rm, 1 .txt, 1 .jpg, 1 without a suffix"
    (told,) = left_out(caplog)
    assert sorted(told.split(": ")[-1].split(", ")) == sorted(expected.split(": ")[-1].split(", "))
    assert told.startswith(f"{tmp_path}: 5 other files left out: 2 .rm, ")
    find_media(tmp_path)  # a second time says nothing new
    assert len(left_out(caplog)) == 1
    find_media(tmp_path, "video", beside=["image"])
    assert "4 other files" in left_out(caplog)[-1]
    assert ".jpg" not in left_out(caplog)[-1]


def test_nothing_is_said_of_nothing(tmp_path, caplog):
    touch(tmp_path, "a.mp4", "b.tif")
    find_media(tmp_path / "a.mp4")
    find_media(tmp_path, "image", beside=["video"])
    assert not left_out(caplog)
    log_left_out("folder", [tmp_path / f"x.{i}" for i in range(9)])
    assert left_out(caplog)[0].endswith(
        "9 other files left out: 1 .0, 1 .1, 1 .2, 1 .3, 1 .4, 1 .5, ..."
    )


def test_lines_of_a_list(tmp_path, caplog):
    """Names that begin with #, comments, and lines with other suffixes."""
    touch(tmp_path, "#1.mp4", "b.ts")
    lines = ["# clips of May", "#1.mp4", "#2.mp4", "#", "b.ts", "c.rm", "d.xyz label"]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    assert [path.name for path in find_media(tmp_path / "list.txt")] == ["#1.mp4", "b.ts"]
    assert "list.txt: 2 other files left out: 1 .rm, 1 .xyz label" in left_out(caplog)[0]


@pytest.mark.parametrize(
    ("table", "names", "told"),
    [
        ("label,path\ncat,a.mp4\ndog\nowl,b.ts\n", "a.mp4 b.ts", "1 row without a path: line 3"),
        ("label,path\ncat,\n\ndog,b.ts\nx\n", "b.ts", "2 rows without a path: lines 2, 5"),
        ("a.rm,cat\nb.ts,dog\n", "b.ts", "1 other file left out: 1 .rm"),
        ("file,label\na.mp4,cat\nb.xyz,dog\n", "a.mp4", "1 other file left out: 1 .xyz"),
        ("B.TS,cat\na.mp4,dog\n", "B.TS a.mp4", None),
    ],
)  # fmt: skip
def test_rows_of_a_table(tmp_path, caplog, table, names, told):
    (tmp_path / "table.csv").write_text(table)
    assert [path.name for path in find_media(tmp_path / "table.csv")] == names.split()
    if told is None:
        assert not left_out(caplog)
    else:
        assert told in left_out(caplog)[0]


def test_given_paths(caplog):
    assert len(find_media(["a.mp4", "b.rm", "c.jpg"])) == 1
    assert "the 3 given paths: 2 other files left out: 1 .rm, 1 .jpg" in left_out(caplog)


@pytest.mark.parametrize("separator", [" ", "\t", ", ", ";", " | "])
def test_labels_after_the_paths_of_a_list(tmp_path, caplog, separator):
    touch(tmp_path, "a.mp4", "b c.TS", "d.mp4 7.mp4")
    lines = [f"a.mp4{separator}cat", f"b c.TS{separator}3", "d.mp4 7.mp4"]
    (tmp_path / "list.txt").write_text("\n".join([*lines, f"gone.mp4{separator}a dog"]))
    names = [path.name for path in find_media(tmp_path / "list.txt")]
    assert names == ["a.mp4", "b c.TS", "d.mp4 7.mp4", "gone.mp4"]
    assert left_out(caplog) == [f"{tmp_path / 'list.txt'}: labels after the paths are left out"]
