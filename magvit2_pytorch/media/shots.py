"""Shots of a film: cuts, fades, blank frames and still cards.

Decisions are made from five numbers of a thumbnail of each frame (`FrameMeasures`):

- cut: the frame differs from the one before by `cut` levels or more, and by `cut_ratio` times the
  third largest of the `NEIGHBOURS` differences on either side. So a fast pan, a drawn film whose
  pictures stay for two to four frames, and flicker are not cut, and two cuts near each other are.
  Amid fast motion the same ratio of the difference of histograms, which motion hardly changes, and
  `AMID_MOTION` times the usual difference suffice.
- blank: the levels of the thumbnail deviate by less than `blank`: black, white, or any one colour.
- fade: beside blank frames, as long as the deviation grows from frame to frame away from them.
- still: a shot most of whose frames differ by less than `still` levels from those half a second
  before. Title cards are; so is a picture that nobody moves in.

A dissolve is not found, nor is a cut amid fast motion between shots of the same histogram. A flash
may divide a shot. Titles that move stay.
"""

import csv
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32

from magvit2_pytorch.atomic import remove_abandoned, replacing
from magvit2_pytorch.media.frames import as_channels
from magvit2_pytorch.media.video_reader import VideoFile
from magvit2_pytorch.media.video_writer import VideoWriter

THUMBNAIL = (36, 64)
"""Height and width that frames are shrunk to, whatever their proportions."""
NEIGHBOURS = 8
"""Differences before and after a frame that a cut is compared with."""
AMID_MOTION = 1.5
"""Least ratio of a cut's difference to those around it where histograms say that it is one."""
FADE_GROWTH = 1.01
"""Least growth of the deviation from one frame of a fade to the next, away from blank frames."""
MIN_FADE_FRAMES = 3
MAX_FADE_S = 4.0
STILL_SHARE = 0.75
"""Share of a shot's frames by which it is still."""
COLOUR_SHARE = 0.02
"""Share of frames with colour by which a film is a colour film: a tinted title is not enough."""

Kind = Literal["shot", "blank", "fade", "still", "short"]


@dataclass(frozen=True, kw_only=True)
class ShotRules:
    """Thresholds of cutting a film; levels go from 0 to 255."""

    cut: float = 10.0
    """Least mean difference of a cut's two frames in levels."""
    cut_ratio: float = 3.0
    """Least ratio of a cut's difference to those of the frames around it."""
    blank: float = 6.0
    """Standard deviation of a frame's levels below which it is black, white or of one colour."""
    still: float = 1.0
    """Mean difference in levels over half a second below which a picture is still; 0 keeps title
    cards."""
    colour: float = 6.0
    """Mean difference between a pixel's strongest and weakest colour above which a frame has
    colour."""

    def __post_init__(self):
        for name in ("cut", "cut_ratio", "blank", "still", "colour"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be 0 or above")


class Shot(NamedTuple):
    """Frames `start` to `stop`, excluded, of a film."""

    start: int
    stop: int
    kind: Kind = "shot"
    """"shot", or the reason why it is left out."""

    @property
    def num_frames(self) -> int:
        return self.stop - self.start


COLUMNS = ("difference", "histogram", "deviation", "movement", "colour")
"""Measures of a frame."""


@dataclass(frozen=True)
class FrameMeasures:
    """Numbers of each frame of a film, in columns.

    `difference`: mean absolute difference from the frame before, 0 for the first.
    `histogram`: the same of sorted levels, the distance of their histograms in levels.
    `deviation`: standard deviation of the grey levels.
    `movement`: mean absolute difference from half a second before, NaN where there is no frame.
    `colour`: mean difference between the strongest and the weakest colour of a pixel.
    """

    rows: Float32[np.ndarray, "t 5"]
    fps: float

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, name: str) -> Float32[np.ndarray, " t"]:
        """A column by its name."""
        return self.rows[:, COLUMNS.index(name)]

    def save(self, path: Path) -> None:
        """Writes a NumPy file, atomically; its last row is the frame rate."""
        with replacing(path) as part, part.open("wb") as file:
            np.save(file, np.concatenate((self.rows, np.full((1, 5), self.fps, np.float32))))

    @classmethod
    def load(cls, path: Path) -> "FrameMeasures":
        """Reads a file that `save` wrote."""
        rows = np.load(path, allow_pickle=False)
        return cls(rows[:-1], float(rows[-1, 0]))


def half_second(fps: float) -> int:
    """Frames in half a second, at least one."""
    return max(1, round(fps / 2))


def measure_frames(video: VideoFile) -> FrameMeasures:
    """Measures all frames, of three channels, in one pass."""
    lag = half_second(video.fps)
    recent: list[np.ndarray] = []
    sorted_before: np.ndarray | None = None
    values = array("f")
    for frame in video.frames(THUMBNAIL):
        pixels = frame.numpy()
        grey = as_channels(pixels, 1)[..., 0].astype(np.float32)
        before = recent[-1] if recent else grey
        earlier = recent[0] if len(recent) == lag else np.float32(np.nan)
        spread = pixels.max(axis=-1).astype(np.float32) - pixels.min(axis=-1)
        sorted_levels = np.sort(grey, axis=None)
        values += array("f", (
            np.abs(grey - before).mean(),
            np.abs(sorted_levels - sorted_before).mean() if values else 0.0,
            grey.std(),
            np.abs(grey - earlier).mean(),
            spread.mean(),
        ))  # fmt: skip
        sorted_before = sorted_levels
        recent = [*recent, grey][-lag:]
    return FrameMeasures(np.array(values).reshape(-1, len(COLUMNS)), video.fps)


def find_shots(
    measures: FrameMeasures, min_frames: int = 1, rules: ShotRules = ShotRules()
) -> list[Shot]:
    """All parts of a film in order; a shot has `min_frames`."""
    blank = measures["deviation"] < rules.blank
    fade = _fades(measures, blank)
    kinds = np.where(blank, 1, np.where(fade, 2, 0))
    starts = _cuts(measures, rules) & (kinds == 0)
    starts[1:] |= kinds[1:] != kinds[:-1]
    starts[0] = True
    bounds = [*np.flatnonzero(starts).tolist(), len(kinds)]
    shots = []
    for start, stop in pairwise(bounds):
        kind: Kind = ("shot", "blank", "fade")[kinds[start]]
        if kind == "shot" and _is_still(measures, start, stop, rules.still):
            kind = "still"
        if kind == "shot" and stop - start < min_frames:
            kind = "short"
        shots.append(Shot(start, stop, kind))
    return shots


def is_grey(measures: FrameMeasures, shots: Sequence[Shot], rules: ShotRules = ShotRules()) -> bool:
    """True if the used shots are grey; a tinted film is not."""
    used = [measures["colour"][s.start : s.stop] for s in shots if s.kind == "shot"]
    colour = np.concatenate(used) if used else measures["colour"]
    return float((colour > rules.colour).mean()) < COLOUR_SHARE


def _cuts(measures: FrameMeasures, rules: ShotRules) -> Bool[np.ndarray, " t"]:
    """True for the first frame after a cut."""
    difference, histogram = measures["difference"], measures["histogram"]
    usual = _usual(difference)
    by_difference = difference >= rules.cut_ratio * usual
    by_histogram = (histogram >= rules.cut_ratio * _usual(histogram)) & (histogram >= rules.cut / 2)
    by_histogram &= difference >= AMID_MOTION * usual
    return (difference >= rules.cut) & (by_difference | by_histogram)


def _usual(values: Float32[np.ndarray, " t"]) -> Float32[np.ndarray, " t"]:
    """The third largest of the values around each one."""
    windows = np.lib.stride_tricks.sliding_window_view(
        np.pad(values, NEIGHBOURS), 2 * NEIGHBOURS + 1
    )
    around = np.delete(windows, NEIGHBOURS, axis=1)
    return np.partition(around, -3, axis=1)[:, -3]


def _fades(measures: FrameMeasures, blank: Bool[np.ndarray, " t"]) -> Bool[np.ndarray, " t"]:
    """Frames beside blank ones whose deviation grows away from these."""
    fade = np.zeros_like(blank)
    limit = round(MAX_FADE_S * measures.fps)
    edges = np.flatnonzero(blank[1:] != blank[:-1])
    for edge in edges.tolist():
        # Blank frames before the edge: the fade goes on from it, and else comes to it.
        step, at = (1, edge + 1) if blank[edge] else (-1, edge)
        frames = []
        for frame in range(at, at + step * limit, step):
            following = frame + step
            if not 0 <= following < len(blank) or blank[frame] or blank[following]:
                break
            if measures["deviation"][following] < FADE_GROWTH * measures["deviation"][frame]:
                break
            frames.append(frame)
        if len(frames) >= MIN_FADE_FRAMES:
            fade[frames] = True
    return fade


def _is_still(measures: FrameMeasures, start: int, stop: int, limit: float) -> bool:
    """True if most frames hardly differ from earlier ones."""
    moved = measures["movement"][start + half_second(measures.fps) : stop]
    if not len(moved):  # less than half a second
        moved = measures["difference"][start + 1 : stop]
    return len(moved) > 0 and float((moved < limit).mean()) >= STILL_SHARE


def write_shots(film: VideoFile, shots: list[Shot], folder: Path, size: tuple[int, int]) -> None:
    """Writes missing files of shots, named by first frame, in one pass."""
    folder.mkdir(exist_ok=True)
    remove_abandoned(folder)
    names = _shot_names(shots)
    frames, position = film.frames(size), 0
    for shot, name in zip(shots, names, strict=True):
        path = folder / name
        if path.exists():
            continue
        for _ in islice(frames, shot.start - position):
            pass
        with VideoWriter(path, film.fps, crf=12) as writer:
            for frame in islice(frames, shot.num_frames):
                writer.write(frame)
        position = shot.stop
    frames.close()


def _shot_names(shots: list[Shot]) -> list[str]:
    return [f"{shot.start:07}.mp4" for shot in shots]


def write_table(path: Path, shots: list[Shot], fps: float) -> None:
    """Writes a table of all parts; unused ones have no `path`."""
    with replacing(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "kind", "start", "stop", "start_s", "stop_s"))
        for shot, name in zip(shots, _shot_names(shots), strict=True):
            times = (f"{frame / fps:.3f}" for frame in (shot.start, shot.stop))
            place = f"shots/{name}" if shot.kind == "shot" else ""
            writer.writerow((place, shot.kind, shot.start, shot.stop, *times))
