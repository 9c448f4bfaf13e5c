"""Exact tiles of frames, and the tile size that fits into memory."""

import weakref
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from math import ceil, floor, lcm
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from magvit2_pytorch.layers.norm import FrameGroupNorm, LatentNorm, NormLayer
from magvit2_pytorch.layers.stateful import (
    Chain,
    ReceptiveField,
    Residual,
    StatefulLayer,
    chain_receptive_field,
)
from magvit2_pytorch.metrics.moments import MomentSums
from magvit2_pytorch.runtime import free_memory
from magvit2_pytorch.tokenizer.protocol import CausalTokenizer, TiledModel
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


def encoder_halo(tokenizer: CausalTokenizer) -> int | None:
    """Pixels beyond its block that a code depends on; None: the frame."""
    field = tokenizer.encoder.receptive_field
    return None if field is None else ceil(field.halo)


class Tiling:
    """Runs layers tile by tile.

    Frames have `rows` x `columns` latents, tiles `tile` x `tile`. `run(layer, x, past)` equals
    `layer(x, past, context)` except for rounding. Layers compute on `device`; the result is on the
    device of `x`.
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
        chain, out, next_pasts = Chain(segment), None, []
        for number, tile_spans in enumerate(self.tiles):
            target = [span * int(cells / field.scale) for span in tile_spans]
            source = [s.input_span(field, n, align) for s, n in zip(target, sides, strict=True)]
            latents = self.context.latents
            if reads_latents and latents is not None:
                latents = crop(latents, *(span // cells for span in source)).to(self.device)
            context = self.context._replace(latents=latents, frame_statistics=statistics)
            tile_past = None if past is None else past[number]
            tile = crop(x, *source).to(self.device)
            tile, next_past = chain(tile, tile_past, context)
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
        """Statistics of frames, merged from those of tiles."""
        sums, cells = MomentSums.empty(), self._cells_per_latent(x)
        for tile_spans in self.tiles:
            tile = crop(x, *(span * cells for span in tile_spans)).to(self.device)
            count = tile.shape[3] * tile.shape[4]
            mean, variance = norm.statistics(tile)
            sums = sums.merged(MomentSums(count, mean, variance * count))
        return sums.mean, sums.squares / sums.count

    def _cells_per_latent(self, x: Features) -> int:
        """Cells of `x` to the side of a latent."""
        return x.shape[3] // self.num_rows


def split_into_segments(layers: Iterable[StatefulLayer]) -> list[list[StatefulLayer]]:
    """Groups of consecutive layers that run tile by tile; others alone."""
    segments: list[list[StatefulLayer]] = []
    can_tile = False
    for layer in layers:
        if layer.receptive_field is None or not can_tile:
            segments.append([])
            can_tile = layer.receptive_field is not None or frame_norm(layer) is not None
        segments[-1].append(layer)
    return segments


def frame_norm(layer: StatefulLayer) -> FrameGroupNorm | None:
    """The norm over whole frames that this layer contains, or None."""
    return layer.frame_norm if isinstance(layer, NormLayer) else None


TileSize = int | Literal["auto"]
"""Side of a tile in pixels, or the largest that fits into memory."""

FREE_MEMORY_FRACTION = 0.5
"""Fraction of free memory that `auto` may use; the rest is for the workspaces of convolutions and
for other processes. On a CPU the convolution library takes about 0.2 GB for any
tile (benchmarks/LOG.md, section 15)."""


def check_tile_size(tile_size: TileSize | None, space_factor: int) -> None:
    """Raise `ValueError` unless the tile size is a multiple of `space_factor`."""
    if tile_size is None or tile_size == "auto":
        return
    if tile_size < space_factor or tile_size % space_factor:
        below = max(tile_size // space_factor, 1) * space_factor
        raise ValueError(
            f"tile_size {tile_size} is not a multiple of {space_factor}, the pixels to the side of "
            f"a latent: use {below} or {below + space_factor}"
        )


def in_tiles(
    model: TiledModel, module: StatefulLayer, tile_size: TileSize | None
) -> Callable[[Features, Past, Context], tuple[Output, Past]]:
    """`module`, computed in tiles; the module itself without a tile size."""
    return module if tile_size is None else partial(_run_tiled, model, module, tile_size)


@torch.no_grad()
def _run_tiled(
    model: TiledModel,
    module: StatefulLayer,
    tile_size: TileSize,
    x: Features,
    past: Past,
    context: Context,
) -> tuple[Output, Past]:
    if tile_size == "auto":
        tile_size = fit_tile_size(model, module, x)
    check_tile_size(tile_size, model.space_factor)
    cells = _input_cells(model, module)
    grid = (x.shape[3] // cells, x.shape[4] // cells)
    tiling = Tiling(*grid, tile_size // model.space_factor, model.device, context)
    return tiling.run(module, x, past)


def _input_cells(model: TiledModel, module: StatefulLayer) -> int:
    """Cells of the input of `module` to the side of a latent."""
    return 1 if module is getattr(model, "decoder", None) else model.space_factor


def fit_tile_size(
    model: TiledModel, module: StatefulLayer, x: Tensor, memory: int | None = None
) -> int:
    """Largest tile size, in pixels, with which activations fit into `memory` bytes.

    `module` is a tokenizer's `encoder` or `decoder`, or another network of the model, and `x` its
    input; without `memory` it is half of what is free. Raises `MemoryError` if the smallest tile
    does not fit.
    """
    memory = free_memory(model.device) * FREE_MEMORY_FRACTION if memory is None else memory
    cells = _input_cells(model, module)
    num_latents = max(x.shape[3], x.shape[4]) // cells
    fits, too_large = 0, num_latents + 1
    while too_large - fits > 1:
        tile = (fits + too_large) // 2
        shape = (*x.shape[:3], tile * cells, tile * cells)
        if peak_bytes(model, module, shape) <= memory:
            fits = tile
        else:
            too_large = tile
    if not fits:
        raise MemoryError(
            f"the smallest tile of this model, {model.space_factor} pixels to a side, needs more "
            f"than the available {memory / 2**20:.0f} MB: give fewer frames at a time, or a "
            "smaller batch"
        )
    return fits * model.space_factor


def peak_bytes(model: TiledModel, module: StatefulLayer, shape: tuple[int, ...]) -> int:
    """Peak bytes of activations, input included, by tensors without memory."""
    options = dict(device=model.device, dtype=model.dtype)
    tracker = MemoryTracker()
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True), tracker:
        x = torch.empty(shape, **options).contiguous(memory_format=torch.channels_last_3d)
        dim_cond = model.config.layer_options.dim_cond
        cond = None if dim_cond is None else torch.empty(shape[0], dim_cond, **options)
        module(x, None, Context(cond=cond, latents=x))  # an encoder reads no latents
    return tracker.peak


class MemoryTracker(TorchDispatchMode):
    """Counts the bytes of all tensors created inside it, while they live."""

    def __init__(self):
        super().__init__()
        self.live = self.peak = self.total = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        self.peak = max(self.peak, self.live)
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.live += size
            self.total += size
            weakref.finalize(storage, self._remove, key, size)

    def _remove(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size
