"""Random windows of stored codes: the examples that generators are trained on."""

import math
import warnings
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import Dataset

from magvit2_pytorch.codes.codes_dataset import CodesDataset
from magvit2_pytorch.codes.views import is_view, without_view
from magvit2_pytorch.runtime import draw_names, keyed_seed

GAP_LATENTS = 2
"""Latent frames between those to train on and those held out: a tokenizer's latents share what
they see with their neighbours."""


class Stretch(NamedTuple):
    """Latent frames `start` to `stop`, excluded, of a video."""

    video: int
    start: int
    stop: int


class CodeWindow(NamedTuple):
    """A window of a video's codes."""

    codes: Int[Tensor, "j y x *q"]
    start: int
    """Index of its first latent frame in the video."""
    label: int
    """Number of the video's class, 0 without classes."""


def split_in_time(
    codes: CodesDataset,
    num_latent_frames: int,
    fraction: float,
    num_held_out: int | None = None,
    recorded: Mapping[str, int] | None = None,
) -> tuple[list[Stretch], list[Stretch]]:
    """Stretches to train on, and the held-out end of each video.

    Held out is a `fraction` of each video's latent frames, or `num_held_out` of them. Between both
    parts `GAP_LATENTS` are left out. Of a video that is mirrored or shifted in time (a view) only
    the part to train on is used. Videos that are too short for both parts are trained on whole. If
    all of them are, a `fraction` of the videos is held out, chosen by their paths, and views of
    these are not used. Of the videos in `recorded`, the record of a run, the number of latent
    frames there is held out instead. No other video changes the side of one, nor the order of
    those held out. Raises `ValueError` if there are fewer than two such videos.
    """
    train, held_out, recorded = [], [], recorded or {}
    for number, path in enumerate(codes.paths):
        length = codes.grid(number)[0]
        if not length:  # fewer frames than a part of a 1-D tokenizer
            continue
        held = math.ceil(length * fraction) if num_held_out is None else num_held_out
        held = recorded.get(without_view(path), held)
        end = length - held - GAP_LATENTS
        if end < num_latent_frames and without_view(path) not in recorded:
            train.append(Stretch(number, 0, length))
            continue
        if end > 0:
            train.append(Stretch(number, 0, end))
        if not is_view(path):
            held_out.append(Stretch(number, max(length - held, 0), length))
    if not held_out:
        train, held_out = _split_by_path(codes, train, fraction)
    held_out.sort(key=lambda stretch: keyed_seed("held-out order", codes.paths[stretch.video]))
    return train, held_out


def _split_by_path(
    codes: CodesDataset, stretches: list[Stretch], fraction: float
) -> tuple[list[Stretch], list[Stretch]]:
    names = sorted({without_view(codes.paths[stretch.video]) for stretch in stretches})
    if len(names) < 2:
        raise ValueError(
            f"{codes.folder} holds codes of one video, too short to hold out its end: use a "
            "smaller num_latent_frames, or tokenize more videos"
        )
    chosen = draw_names(names, fraction, "held out")
    paths = codes.paths
    train = [s for s in stretches if without_view(paths[s.video]) not in chosen]
    return train, [s for s in stretches if paths[s.video] in chosen]


class CodeWindows(Dataset):
    """Windows of codes at places drawn from seed, epoch and number.

    A key is (epoch, number), as training's sampler gives them. Each stretch has as many windows in
    an epoch as cover it once. A window has `num_latent_frames` and, with `crop`, at most so many
    rows and columns, fewer if a video has fewer. Of sequences, a frame is a row with all tokens of
    a part. `classes` are names of top folders; then each video needs to be in one of them.
    """

    takes_epoch = True

    def __init__(
        self,
        codes: CodesDataset,
        stretches: Sequence[Stretch],
        num_latent_frames: int,
        crop: tuple[int, int] | None = None,
        seed: int = 0,
        classes: Sequence[str] | None = None,
    ):
        self.codes, self.num_latent_frames, self.seed = codes, num_latent_frames, seed
        grids = [codes.grid(number) for number in range(len(codes.paths))]
        self.size = tuple(min(grid[axis] for grid in grids) for axis in (1, 2))
        if codes.is_sequence:
            self.size = (1, tokens_of_part(codes))
        elif crop is not None:
            self.size = tuple(map(min, crop, self.size))
        elif len({grid[1:] for grid in grids}) > 1:
            raise ValueError(
                f"the videos in {codes.folder} have grids of different sizes: give a crop of rows "
                f"and columns, at most {self.size}"
            )
        self.stretches: list[Stretch] = []
        self._ends, total = [], 0
        short = 0
        for stretch in stretches:
            length, grid = stretch.stop - stretch.start, grids[stretch.video]
            if length < num_latent_frames:
                short += 1
                continue
            area = grid[1] * grid[2] / (self.size[0] * self.size[1])
            total += max(1, round(length / num_latent_frames * area))
            self.stretches.append(stretch)
            self._ends.append(total)
        if not self.stretches:
            raise ValueError(
                f"no video in {codes.folder} has {num_latent_frames} latent frames: use a smaller "
                "num_latent_frames"
            )
        if short:
            warnings.warn(
                f"{short} of {len(stretches)} videos have fewer than {num_latent_frames} latent "
                "frames and are left out",
                stacklevel=2,
            )
        self.labels = [0] * len(grids) if classes is None else self._find_labels(classes)

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, key: tuple[int, int]) -> CodeWindow:
        epoch, number = key
        stretch = self.stretches[bisect_right(self._ends, number)]
        generator = torch.Generator().manual_seed(keyed_seed("window", self.seed, epoch, number))

        def draw(room: int) -> int:
            return int(torch.randint(room + 1, (), generator=generator))

        start = stretch.start + draw(stretch.stop - stretch.start - self.num_latent_frames)
        codes = read_grid(self.codes, stretch.video, start, start + self.num_latent_frames)
        for axis, size in enumerate(self.size, start=1):
            codes = codes.narrow(axis, draw(codes.shape[axis] - size), size)
        return CodeWindow(codes.contiguous(), start, self.labels[stretch.video])

    def _find_labels(self, classes: Sequence[str]) -> list[int]:
        numbers, labels = {name: number for number, name in enumerate(classes)}, []
        for path in self.codes.paths:
            name = path.split("/")[0]
            if name not in numbers:
                raise ValueError(
                    f"{path} in {self.codes.folder} is in none of the folders that are classes: "
                    f"{', '.join(list(numbers)[:5])}"
                )
            labels.append(numbers[name])
        return labels


def class_folders(codes: CodesDataset) -> tuple[str, ...]:
    """Names of the top folders of all videos, as classes."""
    names = sorted({path.split("/")[0] for path in codes.paths if "/" in path})
    if len(names) < 2:
        raise ValueError(
            f"{codes.folder} has {len(names)} folder(s) of videos: classes need at least two"
        )
    return tuple(names)


def read_grid(codes: CodesDataset, video: int, start: int, stop: int) -> Int[Tensor, "j y x *q"]:
    """Latent frames of a video; a sequence's parts as rows."""
    if not codes.is_sequence:
        return codes.window(video, start, stop).codes
    _, rows, count = codes.grid(video)
    tokens = codes.window(video, start * count, stop * count).codes
    return tokens.unflatten(0, (stop - start, rows, count))


def tokens_of_part(codes: CodesDataset) -> int | None:
    """Tokens of each part of all videos; None if codes are grids.

    Raises `ValueError` if videos have different numbers, or are all shorter than a part.
    """
    if not codes.is_sequence:
        return None
    grids = [codes.grid(number) for number in range(len(codes.paths))]
    counts = {num_tokens for num_parts, _, num_tokens in grids if num_parts}
    if not counts:
        raise ValueError(
            f"no video in {codes.folder} is as long as a part of its tokenizer: use longer videos, "
            "or a tokenizer of shorter parts"
        )
    if len(counts) > 1:
        raise ValueError(
            f"the videos in {codes.folder} have {min(counts)} to {max(counts)} tokens in a part, "
            "but a generator takes one number of them: tokenize all with the same --num_tokens"
        )
    return counts.pop()
