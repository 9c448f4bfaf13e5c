"""A tower over one tile of the frame after the other, exactly as over the whole.

Layers that see a bounded neighbourhood run in a row, tile by tile, each tile with as much of its
surroundings as the row can see (its halo), which is cut off the result. A group norm has the
statistics of the frame merged from those of the tiles first, and the row goes on behind it. What is
left, attention over the frame, gets the frame brought together; it comes where frames are small.

So nothing is blended, and nothing is approximate but for rounding. What differs is how much there
is in memory at once. A tower without group norm and attention over space is one row: beside its
input and its output (and, in a stream, the pasts of all tiles) there is one tile. Otherwise the
frames between two rows are kept, where the video is: give one that is on the CPU to a tokenizer on
a GPU, and only tiles and attention are on the GPU.
"""

from collections.abc import Iterable, Sequence
from math import ceil, floor, lcm
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from magvit2_pytorch.layers.norm import FrameGroupNorm, LatentNorm, NormLayer
from magvit2_pytorch.layers.stateful import (
    Chain,
    ReceptiveField,
    Residual,
    StatefulLayer,
    chain_receptive_field,
    run_chain,
)
from magvit2_pytorch.types import Context, FrameStatistics, Past

Features = Float[Tensor, "b c t h w"]
Made = Float[Tensor, "b d u y x"]


class Span(NamedTuple):
    """Cells along one axis: those from `start` on, `stop` excluded."""

    start: int
    stop: int

    def seen(self, reach: ReceptiveField, size: int, align: int) -> "Span":
        """What these cells of an output see of an input of `size` cells, in units of `align`."""
        start = floor((self.start * reach.scale - reach.halo) / align) * align
        stop = ceil((self.stop * reach.scale + reach.halo) / align) * align
        return Span(max(start, 0), min(stop, size))

    def __mul__(self, factor: int) -> "Span":
        return Span(self.start * factor, self.stop * factor)

    def __floordiv__(self, factor: int) -> "Span":
        return Span(self.start // factor, self.stop // factor)

    def __sub__(self, offset: int) -> "Span":
        return Span(self.start - offset, self.stop - offset)


def cut(x: Features, rows: Span, columns: Span) -> Made:
    """A view of some rows and columns."""
    return x[:, :, :, slice(*rows), slice(*columns)]


class Tiling:
    """Runs layers on `rows` x `columns` latents, `tile` x `tile` of them at a time.

    `run(layer, x, past)` gives what `layer(x, past, context)` gives but for rounding, and a past
    for the next such call. The result is where `x` is; layers compute on `device`.
    """

    def __init__(self, rows: int, columns: int, tile: int, device: torch.device, context: Context):
        self.num_rows, self.device, self.context = rows, device, context
        self.places = [
            (Span(top, min(top + tile, rows)), Span(left, min(left + tile, columns)))
            for top in range(0, rows, tile)
            for left in range(0, columns, tile)
        ]

    def run(self, layer: StatefulLayer, x: Features, past: Past) -> tuple[Made, Past]:
        if isinstance(layer, Residual) and layer.receptive_field is None:
            out, past = self.run(layer.layer, x, past)
            if layer.shortcut is not None:
                x, _ = self._tile_by_tile([layer.shortcut], x, None)
            return out + x, past
        rows = in_rows(layer.layers if isinstance(layer, Chain) else [layer])
        next_pasts = []
        for row, row_past in zip(rows, past or [None] * len(rows), strict=True):
            x, next_past = self._run_row(row, x, row_past)
            next_pasts.append(next_past)
        return x, next_pasts

    def _run_row(self, row: Sequence[StatefulLayer], x: Features, past: Past) -> tuple[Made, Past]:
        first, *_ = row
        if norm := group_norm(first):
            return self._tile_by_tile(row, x, past, self._frame_statistics(norm, x))
        if first.receptive_field is not None:
            return self._tile_by_tile(row, x, past)
        if isinstance(first, Chain | Residual):
            return self.run(first, x, past)
        out, past = first(x.to(self.device), past, self.context)
        return out.to(x.device), past

    def _tile_by_tile(
        self,
        row: Sequence[StatefulLayer],
        x: Features,
        past: Past,
        statistics: FrameStatistics | None = None,
    ) -> tuple[Made, Past]:
        reach = chain_receptive_field(layer for layer in row if group_norm(layer) is None)
        assert reach is not None, "in_rows looked"
        reads_latents = any(isinstance(m, LatentNorm) for layer in row for m in layer.modules())
        cells, sides = self._cells(x), x.shape[3:]
        # Layers that read the latents need whole ones, so that these can be cut out too.
        align = lcm(reach.align, cells) if reads_latents else reach.align
        out, next_pasts = None, []
        for number, place in enumerate(self.places):
            target = [span * int(cells / reach.scale) for span in place]
            source = [s.seen(reach, n, align) for s, n in zip(target, sides, strict=True)]
            latents = self.context.latents
            if reads_latents and latents is not None:
                latents = cut(latents, *(span // cells for span in source)).to(self.device)
            context = self.context._replace(latents=latents, frame_statistics=statistics)
            tile_past = None if past is None else past[number]
            tile = cut(x, *source).to(self.device)
            tile, next_past = run_chain(row, tile, tile_past, context)
            next_pasts.append(next_past)
            # What lies around the tile in the result was there to be seen, and is wrong itself.
            inner = [
                span - int(seen.start / reach.scale)
                for span, seen in zip(target, source, strict=True)
            ]
            if out is None:
                shape = (*tile.shape[:3], *(int(side / reach.scale) for side in sides))
                memory = dict(device=x.device, memory_format=torch.channels_last_3d)
                out = torch.empty(shape, dtype=tile.dtype, **memory)
            cut(out, *target).copy_(cut(tile, *inner))
        return out, next_pasts

    def _frame_statistics(self, norm: FrameGroupNorm, x: Features) -> FrameStatistics:
        """Those of whole frames, from those of their tiles (Chan et al., 1979)."""
        count, mean, variance = 0, torch.zeros(()), torch.zeros(())
        for place in self.places:
            tile = cut(x, *(span * self._cells(x) for span in place)).to(self.device)
            more = tile.shape[3] * tile.shape[4]
            tile_mean, tile_variance = norm.statistics(tile)
            share = more / (count + more)
            apart = tile_mean - mean.to(tile_mean)
            variance = variance.to(apart) * (1 - share) + tile_variance * share
            variance = variance + apart.square() * (share * (1 - share))
            mean = mean.to(apart) + apart * share
            count += more
        return mean, variance

    def _cells(self, x: Features) -> int:
        """Cells of `x` to the side of a latent."""
        return x.shape[3] // self.num_rows


def in_rows(layers: Iterable[StatefulLayer]) -> list[list[StatefulLayer]]:
    """Layers in groups that can go tile by tile; one that cannot is alone.

    A group norm may begin a group: once it is told the frames' statistics, it sees positions only.
    """
    rows: list[list[StatefulLayer]] = []
    for layer in layers:
        if layer.receptive_field is not None and rows and _goes_by_tiles(rows[-1][0]):
            rows[-1].append(layer)
        else:
            rows.append([layer])
    return rows


def _goes_by_tiles(layer: StatefulLayer) -> bool:
    return layer.receptive_field is not None or group_norm(layer) is not None


def group_norm(layer: StatefulLayer) -> FrameGroupNorm | None:
    """The norm over whole frames that this layer is, if it is one."""
    return layer.frame_norm if isinstance(layer, NormLayer) else None


@torch.no_grad()
def run_tiled(
    tower: StatefulLayer,
    x: Features,
    past: Past,
    context: Context,
    grid: tuple[int, int],
    tile: int,
    device: torch.device,
) -> tuple[Made, Past]:
    """`tower(x, past, context)` for frames of `grid` latents, `tile` x `tile` of them at a time."""
    return Tiling(*grid, tile, device, context).run(tower, x, past)
