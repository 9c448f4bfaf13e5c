"""Orders in which the cells of latent frames are generated."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

from magvit2_pytorch.generators.code_space import CodeSpace

OrderName = Literal["wave", "raster"]

Offset = tuple[int, int, int]
"""Frames, rows and columns from a cell to a neighbour."""

NEIGHBOURS: tuple[Offset, ...] = (
    (0, 0, -1), (0, -1, -1), (0, -1, 0), (0, -1, 1),
    (-1, 0, 0), (-1, 0, -1), (-1, 0, 1), (-1, -1, 0), (-1, 1, 0), (-2, 0, 0),
)  # fmt: skip
"""Cells next to a cell that are known before it in either order."""

NUM_RECENT = 2
"""Earlier frames that neighbours may lie in."""


@dataclass(frozen=True)
class CellOrder:
    """Cells of a latent frame in the order of their generation.

    Cells of one wave are generated at once. In the order "wave" cell (y, x) belongs to wave
    2 y + x: when it is its turn, the cells to its left, above, and above to either side are known.
    A frame takes 2 (Y - 1) + X steps, where the order "raster", a cell at a time, takes Y X.
    """

    height: int
    width: int
    cells: Int[Tensor, "n 2"]
    """Row and column."""
    waves: Int[Tensor, " n"]
    """Number of each cell's wave, ascending."""
    ends: tuple[int, ...]
    """Number of cells up to and including each wave."""

    @property
    def num_cells(self) -> int:
        return self.height * self.width

    @property
    def num_waves(self) -> int:
        return len(self.ends)

    def wave(self, number: int) -> slice:
        """The cells of a wave."""
        return slice(self.ends[number - 1] if number else 0, self.ends[number])

    def places(self, numbers: Int[Tensor, "*n"]) -> Int[Tensor, "*n 3"]:
        """Frame, row and column of cells, which are numbered over frames."""
        frames = numbers.div(self.num_cells, rounding_mode="floor")
        return torch.cat((frames[..., None], self.cells[numbers.remainder(self.num_cells)]), dim=-1)

    def wave_of(self, numbers: Int[Tensor, "*n"]) -> Int[Tensor, "*n"]:
        """Numbers of the waves of cells, over frames."""
        frames = numbers.div(self.num_cells, rounding_mode="floor")
        return frames * self.num_waves + self.waves[numbers.remainder(self.num_cells)]

    def to_grid(self, values: Tensor) -> Tensor:
        """Grid `b j y x ...` of a sequence of values."""
        ranks = torch.empty(self.num_cells, dtype=torch.long, device=values.device)
        index = self.cells[:, 0] * self.width + self.cells[:, 1]
        ranks[index] = torch.arange(self.num_cells, device=values.device)
        frames = values.unflatten(1, (-1, self.num_cells))
        return frames[:, :, ranks].unflatten(2, (self.height, self.width))

    def to_sequence(self, grid: Tensor) -> Tensor:
        """Inverse of `to_grid`."""
        frames = grid.flatten(2, 3)
        return frames[:, :, self.cells[:, 0] * self.width + self.cells[:, 1]].flatten(1, 2)


@lru_cache(maxsize=64)
def cell_order(
    name: OrderName, height: int, width: int, device: torch.device | str = "cpu"
) -> CellOrder:
    """The order `name` of the cells of a frame."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    if name == "wave":
        waves = (2 * rows + columns).flatten()
    elif name == "raster":
        waves = torch.arange(height * width)
    else:
        raise ValueError(f"order {name!r}: use 'wave' or 'raster'")
    # Of one wave the upper cells are first.
    sequence = waves.argsort(stable=True)
    cells = torch.stack((rows.flatten(), columns.flatten()), dim=-1)[sequence]
    waves = waves[sequence]
    # With two columns or more every number occurs; with one, every second.
    waves = waves.unique_consecutive(return_inverse=True)[1]
    ends = waves.bincount().cumsum(0)
    return CellOrder(
        height, width, cells.to(device), waves.to(device), tuple(int(end) for end in ends)
    )


def bordered(digits: Int[Tensor, "b j y x d"], code_space: CodeSpace) -> Int[Tensor, "b j v w d"]:
    """Frames with a border of unknown cells."""
    batch, num_frames, height, width, _ = digits.shape
    frames = code_space.unknown(
        batch, num_frames, height + 2, width + 2, device=digits.device
    ).clone()
    frames[:, :, 1:-1, 1:-1] = digits
    return frames


def neighbour_index(
    cells: Int[Tensor, "n 3"], offsets: tuple[Offset, ...], height: int, width: int
) -> Int[Tensor, "n o"]:
    """Index of each cell's neighbours in flattened frames with a border.

    The frames have `NUM_RECENT` earlier ones in front, and a border of one cell around each.
    """
    border = torch.tensor((NUM_RECENT, 1, 1), device=cells.device)
    places = cells[:, None] + torch.tensor(offsets, device=cells.device) + border
    frame, row, column = places.unbind(-1)
    return (frame * (height + 2) + row) * (width + 2) + column
