"""Frames of uneven rates keep their times: in videos, in codes, and with their sound."""

from fractions import Fraction
from itertools import pairwise

import av
import numpy as np
import pytest
import torch

from magvit2_pytorch.codes.code_file import read_codes, write_codes
from magvit2_pytorch.codes.code_header import in_ticks
from magvit2_pytorch.media.video_reader import VideoFile
from magvit2_pytorch.media.video_writer import VideoWriter, write_video
from magvit2_pytorch.pipelines.files import decode_file, reconstruct_file, tokenize_file
from tests.conftest import build
from tests.data.clip_files import tone

TIMES_MS = {
    "variable": [0, 40, 80, 400, 410, 1000, 1900, 1940, 2500, 3000],
    "a gap": [0, 40, 80, 120, 1120, 1160, 1200],
    "a still": [0, 60_000, 60_040],
    "two rates": [*range(0, 500, 100), *range(500, 700, 20)],
    "an even rate": list(range(0, 400, 40)),
}

SUFFIXES = [".mp4", ".mkv", ".mov", ".m4v", ".gif"]


def make(path, times_ms, last_ms=40, sound_s=0.0, picture_at_s=0.0):
    """A video with frames at these times, and a tone from 0 on."""
    with av.open(str(path), "w") as file:
        video = file.add_stream("libx264", rate=1000)
        video.height, video.width, video.pix_fmt = 32, 48, "yuv420p"
        video.options = {"threads": "1", "bf": "2"}
        sound = file.add_stream("aac", rate=48000, layout="mono") if sound_s else None
        packets = []
        for i, time in enumerate(times_ms):
            picture = np.full((32, 48, 3), i * 20 % 250, np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, "rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = time + round(picture_at_s * 1000), Fraction(1, 1000)
            packets += video.encode(frame)
        packets += video.encode()
        for frame in tone(sound_s, 48000, "mono"):
            packets += sound.encode(frame)
        packets += sound.encode() if sound else []
        last = round((times_ms[-1] / 1000 + picture_at_s) * 1000)
        for packet in sorted(packets, key=lambda p: p.dts * p.time_base):
            if packet.stream is video and packet.pts == last:
                packet.duration = last_ms
            file.mux(packet)
    return path


@pytest.mark.filterwarnings("ignore:.*left out, as a gif")
@pytest.mark.parametrize(
    ("name", "suffix"),
    [*((name, ".mp4") for name in TIMES_MS), *(("variable", s) for s in SUFFIXES[1:])],
)
def test_times_go_from_file_to_file_and_through_codes(tmp_path, name, suffix):
    times = np.array(TIMES_MS[name]) / 1000
    last_ms = 40 if name == "an even rate" else 80
    container = ".mkv" if suffix == ".mp4" else ".mp4"
    source = make(tmp_path / f"a{container}", TIMES_MS[name], last_ms)
    video = VideoFile(source)
    assert (video.durations is None) == (name == "an even rate")
    tokenizer = build("residual", "compress_space")
    reconstruct_file(tokenizer, source, tmp_path / f"b{suffix}")
    write_codes(tmp_path / "c.codes.safetensors", *tokenize_file(tokenizer, source))
    decode_file(tokenizer, *read_codes(tmp_path / "c.codes.safetensors"), tmp_path / f"d{suffix}")
    for path in (tmp_path / f"b{suffix}", tmp_path / f"d{suffix}"):
        shown = VideoFile(path)
        expected = times
        if suffix == ".gif" and name == "variable":  # 10 ms are too short for a gif
            expected = np.delete(times, 4)
        assert shown.times == pytest.approx(expected, abs=6e-3 if suffix == ".gif" else 1.1e-3)
        assert shown.duration_s == pytest.approx(times[-1] + last_ms / 1000, abs=0.011)
        assert shown.fps == pytest.approx((len(expected) - 1) / times[-1], rel=0.02)


def test_one_frame_of_a_minute(tmp_path):
    for suffix in ("mp4", "mkv"):
        source = make(tmp_path / f"a.{suffix}", [0], last_ms=60_000)
        reconstruct_file(build("residual"), source, tmp_path / f"b.{suffix}")
        for path in (source, tmp_path / f"b.{suffix}"):
            assert VideoFile(path).duration_s == pytest.approx(60, rel=1e-3)


def test_picture_and_sound_stay_together(tmp_path):
    """The brightness of the picture at a moment of the sound is that of the source."""
    source = make(tmp_path / "a.mp4", TIMES_MS["variable"], sound_s=3)
    reconstruct_file(build("residual"), source, tmp_path / "b.mp4")
    begins = [first_times(path) for path in (source, tmp_path / "b.mp4")]
    assert begins[0] == pytest.approx(begins[1], abs=2e-3)


def first_times(path) -> list[float]:
    """Of each frame and of the first packet of sound, in seconds."""
    with av.open(str(path)) as file:
        times = [float(frame.pts * frame.time_base) for frame in file.decode(video=0)]
    with av.open(str(path)) as file:
        first = next(file.decode(audio=0))
        return [*times, float(first.pts * first.time_base)]


@pytest.mark.parametrize(
    ("suffix", "times"), [("mp4", "variable"), ("mkv", "an even rate"), ("mov", "an even rate")]
)
def test_a_late_first_frame_stays_late(tmp_path, suffix, times):
    source = make(tmp_path / "a.mkv", TIMES_MS[times], sound_s=3, picture_at_s=0.7)
    reconstruct_file(build("residual"), source, tmp_path / f"b.{suffix}")
    ours, theirs = first_times(tmp_path / f"b.{suffix}"), first_times(source)
    assert np.diff(ours) == pytest.approx(np.diff(theirs), abs=3e-3)
    assert ours[0] == pytest.approx(0.7, abs=0.03)


def test_a_gif_leaves_out_what_it_cannot_show(tmp_path):
    frames = torch.arange(120, dtype=torch.uint8)[:, None, None, None].repeat(1, 8, 8, 3)
    with pytest.warns(UserWarning, match=r"a\.gif: 60 of 120 frames are left out"):
        write_video(tmp_path / "a.gif", frames, fps=100)
    gif = VideoFile(tmp_path / "a.gif")
    assert (gif.num_frames, gif.fps) == (60, pytest.approx(50))
    assert min(b - a for a, b in pairwise(gif.times)) >= 0.02 - 1e-9


def test_sums_of_ticks_are_rounded():
    durations = [1 / 3 / 10_000] * 3 + [0.12344999] * 1000
    ticks = in_ticks(durations, 1003)
    assert min(ticks) >= 1
    assert sum(ticks) == pytest.approx(sum(durations) * 10_000, abs=3)
    assert len(in_ticks(durations, 1010)) == 1010
    assert in_ticks(None, 5) is None


def test_an_animation_keeps_its_delays(tmp_path):
    from PIL import Image

    delays = [100, 50, 700, 30, 2000]
    pictures = [Image.new("RGB", (16, 16), (i * 50, 0, 0)) for i in range(5)]
    pictures[0].save(
        tmp_path / "a.gif", save_all=True, append_images=pictures[1:], duration=delays, loop=0
    )
    for suffix in ("gif", "mp4"):
        out = tmp_path / f"b.{suffix}"
        reconstruct_file(build("residual"), tmp_path / "a.gif", out)
        assert VideoFile(out).times == pytest.approx(np.cumsum([0, *delays[:-1]]) / 1000)
        assert VideoFile(out).duration_s == pytest.approx(sum(delays) / 1000)


def test_times_in_mpeg4_where_there_is_no_x264(tmp_path, monkeypatch):
    monkeypatch.setattr(av, "codecs_available", av.codecs_available - {"libx264"})
    durations = [0.04, 0.5, 0.1, 0.04, 1.0]
    with VideoWriter(tmp_path / "a.mp4", 5, durations=durations) as writer:
        for number in range(5):
            writer.write(torch.full((16, 16, 3), number * 40, dtype=torch.uint8))
    assert VideoFile(tmp_path / "a.mp4").times == pytest.approx(np.cumsum([0, *durations[:-1]]))
