"""Laws of the shot detector on films that are drawn here, whose cuts are known."""

import csv
from itertools import pairwise

import av
import numpy as np
import pytest

from magvit2_pytorch.media.shots import (
    Shot,
    ShotRules,
    find_shots,
    is_grey,
    measure_frames,
    write_shots,
    write_table,
)
from magvit2_pytorch.media.video_reader import VideoFile

FPS = 24
SIZE = (36, 64)


def moving(num_frames, seed, speed=1.0, hold=1):
    """A shot: smooth grey levels that move; each picture stays for `hold` frames."""
    rng = np.random.default_rng(seed)
    level, angle = rng.uniform(70, 180), rng.uniform(0, 6)
    y, x = np.mgrid[: SIZE[0], : SIZE[1]] / 10
    for number in range(num_frames):
        phase = number // hold * speed * 0.25
        wave = np.sin(x * np.cos(angle) + y * np.sin(angle) * (1 + seed % 3) + phase)
        yield level + 60 * wave * (-1) ** seed


def still(num_frames, seed=3):
    for _ in range(num_frames):
        yield next(moving(1, seed))


def black(num_frames, level=16):
    for _ in range(num_frames):
        yield np.full(SIZE, float(level))


def faded(frames, num_frames, towards=0.0, out=True):
    """The last (or first) frames go to one level (or come from it)."""
    frames = list(frames)
    for number, frame in enumerate(frames):
        left = len(frames) - number if out else number + 1
        weight = min(1.0, left / (num_frames + 1))
        yield weight * frame + (1 - weight) * towards


def film(folder, *parts, tint=None, noise=1.0):
    """Writes parts one after the other; returns the file and the first frame of each part."""
    rng, path, starts, count = np.random.default_rng(0), folder / "film.mp4", [], 0
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.height, stream.width, stream.pix_fmt = *SIZE, "yuv420p"
        stream.options = {"crf": "12", "threads": "1", "preset": "ultrafast"}
        for part in parts:
            starts.append(count)
            for picture in part:
                grey = picture + rng.normal(0, noise, SIZE)
                colours = np.stack([grey * (1.0 if tint is None else t) for t in tint or "123"], -1)
                levels = colours.round().clip(0, 255).astype(np.uint8)
                frame = av.VideoFrame.from_ndarray(levels, "rgb24").reformat(format="yuv420p")
                frame.pts = count
                container.mux(stream.encode(frame))
                count += 1
        container.mux(stream.encode())
    return path, [*starts, count]


def shots_of(path, min_frames=1, **rules):
    return find_shots(measure_frames(VideoFile(path)), min_frames, ShotRules(**rules))


def spans(shots, kind="shot"):
    return [(shot.start, shot.stop) for shot in shots if shot.kind == kind]


@pytest.mark.parametrize(("speed", "hold"), [(1.0, 1), (2.0, 1), (1.0, 2), (0.7, 3)])
def test_hard_cuts_are_found_to_the_frame(tmp_path, speed, hold):
    lengths = (40, 25, 18, 7, 30)
    parts = [moving(length, seed, speed, hold) for seed, length in enumerate(lengths)]
    path, starts = film(tmp_path, *parts)
    shots = shots_of(path)
    assert [(shot.start, shot.stop) for shot in shots] == list(pairwise(starts))
    assert {shot.kind for shot in shots} == {"shot"}


def test_a_film_without_cuts_is_one_shot(tmp_path):
    def pan():  # slow, then sudden and fast, then slow
        yield from moving(30, 1, 0.3)
        yield from (np.roll(picture, 9 * n, 1) for n, picture in enumerate(moving(20, 1, 0.3)))

    path, _ = film(tmp_path, moving(60, 1), noise=6)
    assert shots_of(path) == [Shot(0, 60)]
    assert len(spans(shots_of(film(tmp_path, pan())[0]))) <= 2


def test_black_and_white_frames_are_left_out(tmp_path):
    path, starts = film(
        tmp_path, black(9), moving(40, 1), black(6, 16), moving(30, 2), black(12, 235)
    )
    shots = shots_of(path)
    assert [shot.kind for shot in shots] == ["blank", "shot", "blank", "shot", "blank"]
    assert [shot.start for shot in shots] == starts[:-1]


@pytest.mark.parametrize("towards", [0.0, 255.0])
def test_fades_are_left_out(tmp_path, towards):
    path, starts = film(
        tmp_path,
        faded(moving(60, 1, 0.2), 16, towards),
        black(10, towards),
        faded(moving(60, 2, 0.2), 20, towards, out=False),
        noise=0.5,
    )
    shots = shots_of(path)
    assert [shot.kind for shot in shots] == ["shot", "fade", "blank", "fade", "shot"]
    first, fade_out, blank, fade_in, second = shots
    # The faintest frames of a fade are blank already, and its first ones nearly those of the shot.
    assert abs(first.stop - (60 - 16)) <= 2
    assert starts[1] - 3 <= blank.start <= starts[1]
    assert starts[2] <= blank.stop <= starts[2] + 3
    assert abs(fade_in.stop - (starts[2] + 20)) <= 2
    assert fade_out.stop == blank.start
    assert second.stop == starts[3]


def test_still_cards_are_left_out(tmp_path):
    path, starts = film(tmp_path, still(36), moving(50, 1), still(10, 5), moving(30, 2), noise=0.5)
    shots = shots_of(path)
    assert [shot.kind for shot in shots] == ["still", "shot", "still", "shot"]
    assert [shot.start for shot in shots] == starts[:-1]
    assert {shot.kind for shot in shots_of(path, still=0.0)} == {"shot"}


def test_short_shots_have_a_reason(tmp_path):
    path, _ = film(tmp_path, moving(30, 1), moving(12, 2))
    assert shots_of(path, min_frames=13) == [Shot(0, 30), Shot(30, 42, "short")]


def test_parts_join_without_gaps(tmp_path):
    path, starts = film(tmp_path, black(5), moving(20, 1), still(30), moving(9, 2), black(1))
    shots = shots_of(path, min_frames=10)
    assert [shot.start for shot in shots[1:]] == [shot.stop for shot in shots[:-1]]
    assert (shots[0].start, shots[-1].stop) == (0, starts[-1])


@pytest.mark.parametrize(
    ("tint", "grey"), [(None, True), ((1.0, 0.99, 0.98), True), ((1.0, 0.85, 0.7), False)]
)
def test_a_grey_film_is_told_from_one_in_colour(tmp_path, tint, grey):
    path, _ = film(tmp_path, moving(30, 1), moving(30, 2), tint=tint)
    measures = measure_frames(VideoFile(path))
    assert is_grey(measures, find_shots(measures)) == grey


def test_shots_are_written_as_they_are_and_once(tmp_path):
    path, _ = film(tmp_path, moving(20, 1), black(5), moving(25, 2))
    video, shots = VideoFile(path, channels=1), shots_of(path)
    write_table(tmp_path / "shots.csv", shots, video.fps)
    used = [shot for shot in shots if shot.kind == "shot"]
    write_shots(video, used[:1], tmp_path / "shots", SIZE)
    before = (tmp_path / "shots" / "0000000.mp4").stat().st_mtime_ns
    write_shots(video, used, tmp_path / "shots", SIZE)
    assert (tmp_path / "shots" / "0000000.mp4").stat().st_mtime_ns == before
    with (tmp_path / "shots.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["kind"] for row in rows] == ["shot", "blank", "shot"]
    assert rows[1]["path"] == ""
    for row, shot in zip((rows[0], rows[2]), used, strict=True):
        frames = VideoFile(tmp_path / row["path"], channels=1).read(range(shot.num_frames))
        wanted = video.read(range(shot.start, shot.stop))
        assert (int(row["start"]), int(row["stop"])) == (shot.start, shot.stop)
        assert np.abs(frames.numpy().astype(int) - wanted.numpy()).mean() < 1.5


def test_wrong_thresholds_are_refused():
    with pytest.raises(ValueError, match="cut_ratio is -1"):
        ShotRules(cut_ratio=-1.0)
