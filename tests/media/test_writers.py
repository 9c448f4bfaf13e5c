"""What is written reads back: count, rate, size, colours; whole files or none."""

import av
import numpy as np
import pytest
import torch
from PIL import Image

from magvit2_pytorch.media.frames import to_float
from magvit2_pytorch.media.images import read_image, write_grid, write_image
from magvit2_pytorch.media.video_reader import VideoFile
from magvit2_pytorch.media.video_writer import VideoWriter, write_video
from tests.data.clip_files import pictures

COLOURS = {
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "skin": (224, 172, 105),
    "grey": (128, 128, 128),
    "black": (0, 0, 0),
    "white": (255, 255, 255),
}


def clip(num_frames=7, height=32, width=48) -> torch.Tensor:
    return torch.from_numpy(np.stack(list(pictures(num_frames, height, width))))


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv", "gif"])
def test_colours_stay(tmp_path, suffix):
    for name, colour in COLOURS.items():
        frames = torch.tensor(colour, dtype=torch.uint8).expand(3, 16, 16, 3)
        write_video(tmp_path / f"a.{suffix}", to_float(frames), 25)
        back = VideoFile(tmp_path / f"a.{suffix}").read([0, 2])
        assert (back.int() - frames[:2].int()).abs().max() <= 3, name


@pytest.mark.parametrize(("suffix", "has_x264", "size"), [
    ("mp4", True, (96, 160)), ("mp4", False, (96, 1280)), ("mp4", True, (720, 64)),
    ("mov", True, (96, 1280)), ("mov", False, (720, 64)),
    ("m4v", True, (720, 64)), ("m4v", False, (96, 160)),
    ("mkv", True, (96, 1280)), ("mkv", False, (720, 64)),
])  # fmt: skip
def test_written_colours_are_read_alike_at_any_size(tmp_path, monkeypatch, suffix, has_x264, size):
    """One matrix and its tag at every size, though readers of untagged video go by the size."""
    if not has_x264:
        monkeypatch.setattr(av, "codecs_available", av.codecs_available - {"libx264"})
    for name in ("red", "blue", "skin", "white"):
        frames = torch.tensor(COLOURS[name], dtype=torch.uint8).expand(2, *size, 3)
        write_video(tmp_path / f"a.{suffix}", frames, 25, crf=0)
        back = VideoFile(tmp_path / f"a.{suffix}").read([0, 1])
        # One level: planes of whole levels, 1.16 of RGB each, and RGB are both rounded.
        assert (back.int() - frames.int()).abs().max() <= 1


def test_chroma_is_read_where_it_was_written(tmp_path):
    """Half a pixel to the left or right of its place leaves 44 dB of 51."""
    y, x = np.mgrid[:96, :160]
    waves = (np.sin(x / 19 + y / 38), np.sin(y / 22 - x / 28), np.cos(x / 23 + y / 13))
    frame = np.rint(127.5 + 102 * np.stack(waves, -1)).astype(np.uint8)
    write_video(tmp_path / "a.mp4", torch.from_numpy(frame)[None], 25, crf=0)
    error = VideoFile(tmp_path / "a.mp4").read([0])[0].numpy().astype(float) - frame
    assert 10 * np.log10(255**2 / np.mean(error**2)) > 48


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "gif"])
@pytest.mark.parametrize("num_frames", [1, 2, 17])
def test_count_and_rate(tmp_path, suffix, num_frames):
    write_video(tmp_path / f"a.{suffix}", clip(num_frames), 12.5)
    video = VideoFile(tmp_path / f"a.{suffix}")
    assert video.num_frames == num_frames
    assert video.fps == pytest.approx(12.5, rel=1e-3)


def test_still_frames_are_all_kept(tmp_path):
    write_video(tmp_path / "a.gif", clip(1).expand(9, -1, -1, -1), 10)
    assert VideoFile(tmp_path / "a.gif").num_frames == 9


def test_film_rates_are_exact(tmp_path):
    write_video(tmp_path / "a.mp4", clip(), 30000 / 1001)
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.average_rate * 1001 == 30000
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert stream.codec_context.colorspace == 1


@pytest.mark.parametrize(("suffix", "error"), [("mp4", 12), ("gif", 25)])
def test_pictures_stay_close(tmp_path, suffix, error):
    frames = clip(5, 64, 64)
    smooth = torch.nn.functional.avg_pool2d(frames.permute(0, 3, 1, 2).float(), 9, 1, 4)
    frames = smooth.permute(0, 2, 3, 1).to(torch.uint8)
    write_video(tmp_path / f"a.{suffix}", frames, 25)
    back = VideoFile(tmp_path / f"a.{suffix}").read(range(5))
    assert (back.float() - frames.float()).pow(2).mean().sqrt() < error


def test_odd_sides_repeat_the_edge(tmp_path):
    frames = torch.zeros(2, 7, 9, 3, dtype=torch.uint8)
    frames[:, -1] = 255
    frames[:, :, -1] = 255
    write_video(tmp_path / "a.mp4", frames, 25)
    back = VideoFile(tmp_path / "a.mp4").read([0])[0]
    assert back.shape == (8, 10, 3)
    assert back[-1].float().mean() > 240
    assert back[:, -1].float().mean() > 240
    write_video(tmp_path / "a.gif", frames, 25)
    assert torch.equal(VideoFile(tmp_path / "a.gif").read([1]), frames[:1])


@pytest.mark.parametrize("channels", [1, 4])
def test_other_channels(tmp_path, channels):
    frames = torch.full((2, 8, 8, channels), 200, dtype=torch.uint8)
    if channels == 4:
        frames[..., 3] = 128
    write_video(tmp_path / "a.mp4", frames, 25)
    back = VideoFile(tmp_path / "a.mp4").read([0])
    assert back.float().mean() == pytest.approx(200 if channels == 1 else 100, abs=2)


def test_frames_are_pushed_one_by_one(tmp_path):
    frames = clip()
    with VideoWriter(tmp_path / "new" / "a.mp4", fps=25) as writer:
        for frame in frames:
            writer.write(to_float(frame))
        assert not (tmp_path / "new" / "a.mp4").exists()
    assert writer.num_frames == 7
    pushed = VideoFile(tmp_path / "new" / "a.mp4").read(range(7)).float()
    write_video(tmp_path / "b.mp4", frames, 25)
    # Not equal bytes: x264 itself writes a little differently now and then.
    at_once = VideoFile(tmp_path / "b.mp4").read(range(7)).float()
    assert (pushed - at_once).abs().mean() < 3


@pytest.mark.parametrize("suffix", ["mp4", "gif"])
def test_an_error_leaves_the_older_file(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(b"older")

    def fail():
        with VideoWriter(path, fps=25) as writer:
            writer.write(clip(1)[0])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_bytes() == b"older"
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written(tmp_path):
    with pytest.raises(ValueError, match=r"cannot write a\.txt: use \.mp4"):
        write_video(tmp_path / "a.txt", clip(), 25)
    with pytest.raises(ValueError, match="fps is 0"):
        write_video(tmp_path / "a.mp4", clip(), 0)
    with pytest.raises(ValueError, match="no frame was written"):
        write_video(tmp_path / "a.mp4", clip()[:0], 25)
    with pytest.raises(ValueError, match="look like bytes"):
        write_video(tmp_path / "a.mp4", clip().permute(3, 0, 1, 2).float(), 25)
    with VideoWriter(tmp_path / "a.mp4", 25) as writer:
        writer.write(clip(1)[0])
        with pytest.raises(ValueError, match="resize it"):
            writer.write(clip(1)[0, :8])
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_picture_comes_back(tmp_path, channels):
    frame = torch.randint(0, 256, (9, 11, channels), dtype=torch.uint8)
    write_image(tmp_path / "a.png", to_float(frame))
    assert torch.equal(read_image(tmp_path / "a.png", channels), frame)
    write_image(tmp_path / "a.jpg", frame)
    assert Image.open(tmp_path / "a.jpg").size == (11, 9)


def test_a_grid_puts_rows_under_each_other(tmp_path):
    first, second = clip(3, 8, 12), clip(2, 8, 12).flip(0)
    write_grid(tmp_path / "a.png", [to_float(first), [to_float(second[0]), second[1]]])
    grid = read_image(tmp_path / "a.png")
    assert grid.shape == (18, 40, 3)
    assert torch.equal(grid[:8, 14:26], first[1])
    assert torch.equal(grid[10:, :12], second[0])
    assert (grid[8:10] == 255).all()
    assert (grid[10:, 26:] == 255).all()
    with pytest.raises(ValueError, match="one size"):
        write_grid(tmp_path / "b.png", [first, second[:, :4]])
    with pytest.raises(ValueError, match="got none"):
        write_grid(tmp_path / "b.png", [])
    with pytest.raises(ValueError, match="4 axes"):
        write_grid(tmp_path / "b.png", [first[0]])
