"""Tasks of masked generators: visible pixels, and the codes known by them.

Source: MAGVIT (arXiv 2212.05199), sections 3.2 and 4: conditional masked modeling by interior
tokens. A code is known if all pixels that it depends on are visible. A code whose own block has
visible pixels, but which depends on hidden ones too, is a hint: its video was completed somehow
before it was encoded.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn import functional as F

from magvit2_pytorch.config import Registry


class CodeGeometry(NamedTuple):
    """Pixels behind the codes of a causal tokenizer."""

    time_factor: int = 4
    """Frames to a latent frame; the first has one."""
    space_factor: int = 8
    """Side of a code's block in pixels."""
    halo: int | None = None
    """Pixels beyond its block that a code depends on, to each side; None for the full frame."""


class GivenCells(NamedTuple):
    """Cells with a code; `hinted` ones may be wrong."""

    known: Bool[Tensor, "*b j y x"]
    hinted: Bool[Tensor, "*b j y x"]


def given_cells(visible: Bool[Tensor, "t h w"], geometry: CodeGeometry) -> GivenCells:
    """Cells with known or hinted codes, given the visible pixels.

    A causal encoder lets a latent frame depend on all frames before it, so of F visible frames the
    first 1 + (F - 1) // time_factor latent frames are known.
    """
    factor, side, halo = geometry
    num_frames, height, width = visible.shape
    if (num_frames - 1) % factor or height % side or width % side:
        raise ValueError(
            f"{num_frames} frames of {height} x {width} pixels: give 1 + k * {factor} frames with "
            f"sides that are multiples of {side}"
        )
    shown = visible.float()[:, None]
    hidden = 1 - shown
    if halo is None:
        hidden = hidden.amax(dim=(2, 3), keepdim=True)
        hidden = hidden.expand(-1, -1, height // side, width // side)
    else:
        reach = side + 2 * halo
        hidden = F.max_pool2d(hidden, (reach, 1), (side, 1), (halo, 0))
        hidden = F.max_pool2d(hidden, (1, reach), (1, side), (0, halo))
    known = hidden[:, 0].cummax(dim=0).values[::factor] == 0
    blocks = F.max_pool2d(shown, side)[:, 0] > 0
    touched = torch.cat((blocks[:1], blocks[1:].unflatten(0, (-1, factor)).any(dim=1)))
    return GivenCells(known, touched & ~known)


class TaskVideo(NamedTuple):
    """Size of a video of which a task shows a part."""

    num_frames: int
    height: int
    width: int
    given: int
    """Frames that frame prediction shows."""

    def box(self, rows: float = 1.0, columns: float = 1.0, moving: bool = False) -> Tensor:
        """True inside a box in the middle of each frame.

        Its sides are shares of the rows and columns.

        If `moving`, it goes from the left edge in the first frame to the right edge in the last.
        """
        box_height, box_width = round(self.height * rows), round(self.width * columns)
        y = torch.arange(self.height) - (self.height - box_height) // 2
        left = torch.full((self.num_frames,), 0.5)
        if moving:
            left = torch.linspace(0, 1, self.num_frames)
        left = (left * (self.width - box_width)).round()
        x = torch.arange(self.width) - left[:, None]
        inside = (x >= 0) & (x < box_width)
        return ((y >= 0) & (y < box_height))[None, :, None] & inside[:, None, :]

    def frames(self, *numbers: int) -> Tensor:
        """True in some frames."""
        visible = torch.zeros(self.num_frames, self.height, self.width, dtype=torch.bool)
        visible[list(numbers)] = True
        return visible


TASKS: Registry[Callable[[TaskVideo], Bool[Tensor, "t h w"]]] = Registry("task")
"""Visible pixels of each task. A task's number is its place here."""


_VISIBLE: dict[str, Callable[[TaskVideo], Tensor]] = {
    # Nothing is given; a class or text may be.
    "unconditional": lambda video: video.frames(),
    # The first frames.
    "frame_prediction": lambda video: video.frames(*range(video.given)),
    # The first and the last frame.
    "interpolation": lambda video: video.frames(0, -1),
    # The middle half of columns, rows, or both; or a strip of half the columns, moving right.
    "outpainting_horizontal": lambda video: video.box(columns=0.5),
    "outpainting_vertical": lambda video: video.box(rows=0.5),
    "outpainting_central": lambda video: video.box(rows=0.5, columns=0.5),
    "outpainting_dynamic": lambda video: video.box(columns=0.5, moving=True),
    # All but the middle half of rows and columns; or but a box of half the sides, moving right.
    "inpainting_central": lambda video: ~video.box(rows=0.5, columns=0.5),
    "inpainting_dynamic": lambda video: ~video.box(rows=0.5, columns=0.5, moving=True),
}
for _name, _visible_pixels in _VISIBLE.items():
    TASKS.register(_name)(_visible_pixels)


def task_number(name: str) -> int:
    """Place of a task in the registry, the number of its token."""
    TASKS[name]
    return list(TASKS).index(name)


@lru_cache(maxsize=256)
def task_cells(
    name: str, grid: tuple[int, int, int], geometry: CodeGeometry, given: int = 1
) -> GivenCells:
    """Known and hinted cells of a task on a grid of codes.

    `given` is the number of latent frames that frame prediction has.
    """
    num_latents, rows, columns = grid
    num_frames = 1 + (num_latents - 1) * geometry.time_factor
    frames_given = 1 + (given - 1) * geometry.time_factor
    side = geometry.space_factor
    video = TaskVideo(num_frames, rows * side, columns * side, frames_given)
    return given_cells(TASKS[name](video), geometry)


def draw_tasks(
    weights: Mapping[str, float],
    batch: int,
    grid: tuple[int, int, int],
    geometry: CodeGeometry,
    generator: torch.Generator | None = None,
) -> tuple[Int[Tensor, " b"], GivenCells]:
    """Random tasks of a training batch, and their cells.

    Frame prediction is given 1 or more latent frames. A task that leaves nothing to generate, as on
    a single frame, becomes unconditional.
    """
    names = list(weights)
    chances = torch.tensor([float(weights[name]) for name in names])
    picks = torch.multinomial(chances, batch, replacement=True, generator=generator).tolist()
    given = torch.randint(1, max(2, grid[0]), (batch,), generator=generator).tolist()
    numbers, cells = [], []
    for pick, count in zip(picks, given, strict=True):
        name = names[pick]
        count = count if name == "frame_prediction" else 1
        one = task_cells(name, grid, geometry, count)
        if one.known.all():
            name, one = "unconditional", task_cells("unconditional", grid, geometry)
        numbers.append(task_number(name))
        cells.append(one)
    known, hinted = (torch.stack(parts) for parts in zip(*cells, strict=True))
    return torch.tensor(numbers), GivenCells(known, hinted)
