"""Exact tiling: tile by tile, the same result as for whole frames.

Consecutive layers with a bounded receptive field form a segment. A segment runs tile by tile; each
tile is read with the margin that the segment's receptive field needs (its halo), and the margin is
cropped from the result. A group norm starts a new segment: the statistics of the frame are first
merged from those of all tiles. The remaining layers, attention over space, run on the whole frame;
they come where frames are small.

So nothing is blended, and the result is exact except for rounding. Only the peak memory differs. A
network without group norm and attention over space is one segment: in addition to its input and
output (and, in a stream, the pasts of all tiles) memory holds one tile. Otherwise the full frames
between two segments are kept on the device of the video. If the video is on the CPU and the
tokenizer on a GPU, the GPU holds only tiles and the input of attention.
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
Output = Float[Tensor, "b d u y x"]


class Span(NamedTuple):
    """A range of cells along one axis; `stop` is excluded."""

    start: int
    stop: int

    def input_span(self, field: ReceptiveField, size: int, align: int) -> "Span":
        """The input cells that this output needs, within `size`, aligned to `align`."""
        start = floor((self.start * field.scale - field.halo) / align) * align
        stop = ceil((self.stop * field.scale + field.halo) / align) * align
        return Span(max(start, 0), min(stop, size))

    def __mul__(self, factor: int) -> "Span":
        return Span(self.start * factor, self.stop * factor)

    def __floordiv__(self, factor: int) -> "Span":
        return Span(self.start // factor, self.stop // factor)

    def __sub__(self, offset: int) -> "Span":
        return Span(self.start - offset, self.stop - offset)


def crop(x: Features, rows: Span, columns: Span) -> Output:
    """A view of some rows and columns."""
    return x[:, :, :, slice(*rows), slice(*columns)]


class Tiling:
    """Runs layers tile by tile.

    Frames have `rows` x `columns` latents, tiles `tile` x `tile`. `run(layer, x, past)` equals
    `layer(x, past, context)` except for rounding, and returns a past for the next `run`. Layers
    compute on `device`; the result is on the device of `x`.
    """

    def __init__(self, rows: int, columns: int, tile: int, device: torch.device, context: Context):
        self.num_rows, self.device, self.context = rows, device, context
        self.tiles = [
            (Span(top, min(top + tile, rows)), Span(left, min(left + tile, columns)))
            for top in range(0, rows, tile)
            for left in range(0, columns, tile)
        ]

    def run(self, layer: StatefulLayer, x: Features, past: Past) -> tuple[Output, Past]:
        if isinstance(layer, Residual) and layer.receptive_field is None:
            out, past = self.run(layer.layer, x, past)
            if layer.shortcut is not None:
                x, _ = self._tile_by_tile([layer.shortcut], x, None)
            return out + x, past
        segments = split_into_segments(layer.layers if isinstance(layer, Chain) else [layer])
        next_pasts = []
        for segment, segment_past in zip(segments, past or [None] * len(segments), strict=True):
            x, next_past = self._run_segment(segment, x, segment_past)
            next_pasts.append(next_past)
        return x, next_pasts

    def _run_segment(
        self, segment: Sequence[StatefulLayer], x: Features, past: Past
    ) -> tuple[Output, Past]:
        first, *_ = segment
        if norm := frame_norm(first):
            return self._tile_by_tile(segment, x, past, self._frame_statistics(norm, x))
        if first.receptive_field is not None:
            return self._tile_by_tile(segment, x, past)
        if isinstance(first, Chain | Residual):
            return self.run(first, x, past)
        out, past = first(x.to(self.device), past, self.context)
        return out.to(x.device), past

    def _tile_by_tile(
        self,
        segment: Sequence[StatefulLayer],
        x: Features,
        past: Past,
        statistics: FrameStatistics | None = None,
    ) -> tuple[Output, Past]:
        field = chain_receptive_field(layer for layer in segment if frame_norm(layer) is None)
        assert field is not None, "split_into_segments isolates layers without one"
        reads_latents = any(isinstance(m, LatentNorm) for layer in segment for m in layer.modules())
        cells, sides = self._cells_per_latent(x), x.shape[3:]
        # Layers that read the latents need tiles of whole latents, so that both can be cropped.
        align = lcm(field.align, cells) if reads_latents else field.align
        out, next_pasts = None, []
        for number, tile_spans in enumerate(self.tiles):
            target = [span * int(cells / field.scale) for span in tile_spans]
            source = [s.input_span(field, n, align) for s, n in zip(target, sides, strict=True)]
            latents = self.context.latents
            if reads_latents and latents is not None:
                latents = crop(latents, *(span // cells for span in source)).to(self.device)
            context = self.context._replace(latents=latents, frame_statistics=statistics)
            tile_past = None if past is None else past[number]
            tile = crop(x, *source).to(self.device)
            tile, next_past = run_chain(segment, tile, tile_past, context)
            next_pasts.append(next_past)
            # The margin of the result lacked a part of its own receptive field: it is wrong.
            inner = [
                output - int(read.start / field.scale)
                for output, read in zip(target, source, strict=True)
            ]
            if out is None:
                shape = (*tile.shape[:3], *(int(side / field.scale) for side in sides))
                memory = dict(device=x.device, memory_format=torch.channels_last_3d)
                out = torch.empty(shape, dtype=tile.dtype, **memory)
            crop(out, *target).copy_(crop(tile, *inner))
        return out, next_pasts

    def _frame_statistics(self, norm: FrameGroupNorm, x: Features) -> FrameStatistics:
        """Statistics of frames, merged from those of tiles (Chan et al., 1979)."""
        count, mean, variance = 0, torch.zeros(()), torch.zeros(())
        cells = self._cells_per_latent(x)
        for tile_spans in self.tiles:
            tile = crop(x, *(span * cells for span in tile_spans)).to(self.device)
            tile_count = tile.shape[3] * tile.shape[4]
            tile_mean, tile_variance = norm.statistics(tile)
            share = tile_count / (count + tile_count)
            difference = tile_mean - mean.to(tile_mean)
            variance = variance.to(difference) * (1 - share) + tile_variance * share
            variance = variance + difference.square() * (share * (1 - share))
            mean = mean.to(difference) + difference * share
            count += tile_count
        return mean, variance

    def _cells_per_latent(self, x: Features) -> int:
        """Cells of `x` to the side of a latent."""
        return x.shape[3] // self.num_rows


def split_into_segments(layers: Iterable[StatefulLayer]) -> list[list[StatefulLayer]]:
    """Groups of consecutive layers that run tile by tile; others alone.

    A group norm may start a group: given the statistics of the frame, it is pointwise.
    """
    segments: list[list[StatefulLayer]] = []
    for layer in layers:
        if layer.receptive_field is not None and segments and _can_tile(segments[-1][0]):
            segments[-1].append(layer)
        else:
            segments.append([layer])
    return segments


def _can_tile(layer: StatefulLayer) -> bool:
    return layer.receptive_field is not None or frame_norm(layer) is not None


def frame_norm(layer: StatefulLayer) -> FrameGroupNorm | None:
    """The norm over whole frames that this layer contains, or None."""
    return layer.frame_norm if isinstance(layer, NormLayer) else None


@torch.no_grad()
def run_tiled(
    module: StatefulLayer,
    x: Features,
    past: Past,
    context: Context,
    grid: tuple[int, int],
    tile: int,
    device: torch.device,
) -> tuple[Output, Past]:
    """`module(x, past, context)` in tiles; `grid` and `tile` are counted in latents."""
    return Tiling(*grid, tile, device, context).run(module, x, past)
