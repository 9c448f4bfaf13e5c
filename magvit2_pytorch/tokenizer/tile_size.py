"""Largest tile that fits into memory, found without computing anything."""

import weakref
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from magvit2_pytorch.layers.stateful import Chain
from magvit2_pytorch.memory import free_memory
from magvit2_pytorch.types import Context

if TYPE_CHECKING:
    from magvit2_pytorch.tokenizer.model import VideoTokenizer

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


def fit_tile_size(
    tokenizer: "VideoTokenizer", module: Chain, x: Tensor, memory: int | None = None
) -> int:
    """Largest tile size, in pixels, that fits into memory.

    `module` is the tokenizer's `encoder` or `decoder`, and `x` its input, video or quantized
    latents. `memory` is the bytes for activations on the tokenizer's device, by default half of
    the free memory. Raises `MemoryError` if the smallest tile, one latent, does not fit.
    """
    memory = free_memory(tokenizer.device) * FREE_MEMORY_FRACTION if memory is None else memory
    cells = tokenizer.space_factor if module is tokenizer.encoder else 1
    num_latents = max(x.shape[3], x.shape[4]) // cells
    fits, too_large = 0, num_latents + 1
    while too_large - fits > 1:
        tile = (fits + too_large) // 2
        shape = (*x.shape[:3], tile * cells, tile * cells)
        if peak_bytes(tokenizer, module, shape) <= memory:
            fits = tile
        else:
            too_large = tile
    if not fits:
        raise MemoryError(
            f"one latent of this tokenizer needs more than the available {memory / 2**20:.0f} MB: "
            "give fewer frames at a time, or a smaller batch"
        )
    return fits * tokenizer.space_factor


def peak_bytes(tokenizer: "VideoTokenizer", module: Chain, shape: tuple[int, ...]) -> int:
    """Peak bytes of activations, input included, for an input of this shape.

    `module` is the tokenizer's `encoder` or `decoder`. Autocast is taken into account. Nothing is
    computed: fake tensors have no memory, and their sizes are summed while they live.
    """
    options = dict(device=tokenizer.device, dtype=tokenizer.dtype)
    tracker = MemoryTracker()
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True), tracker:
        x = torch.empty(shape, **options).contiguous(memory_format=torch.channels_last_3d)
        dim_cond = tokenizer.config.layer_options.dim_cond
        cond = None if dim_cond is None else torch.empty(shape[0], dim_cond, **options)
        latents = x if module is tokenizer.decoder else None
        module(x, None, Context(cond=cond, latents=latents))
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
