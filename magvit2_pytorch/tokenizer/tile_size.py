"""How large a tile may be: as large as memory allows, found without computing anything."""

import weakref
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from magvit2_pytorch.memory import free_memory
from magvit2_pytorch.types import Context

if TYPE_CHECKING:
    from magvit2_pytorch.tokenizer.model import VideoTokenizer

TileSize = int | Literal["auto"]
"""Pixels to the side of a tile, or as many as memory allows."""

Tower = Literal["encoder", "decoder"]

SHARE_OF_FREE_MEMORY = 0.5
"""What `auto` plans with: a convolution needs room of its own, and others need memory too. On a CPU
its library takes some 0.2 GB whatever the tile (benchmarks/LOG.md, section 15)."""


def check_tile_size(tile_size: TileSize | None, space_factor: int) -> None:
    """Raises `ValueError` unless tiles of this size are whole latents."""
    if tile_size is None or tile_size == "auto":
        return
    if tile_size < space_factor or tile_size % space_factor:
        below = max(tile_size // space_factor, 1) * space_factor
        raise ValueError(
            f"tile_size {tile_size} does not divide by the tokenizer's {space_factor} pixels to a "
            f"latent: use {below} or {below + space_factor}"
        )


def fit_tile_size(
    tokenizer: "VideoTokenizer", tower: Tower, x: Tensor, memory: int | None = None
) -> int:
    """The largest tile, in pixels to a side, that a tower takes in so many bytes of memory.

    `x` is what the tower is to be given, video or quantized latents. Bytes are those of
    activations on the tokenizer's device: half of what is free, if not said. Raises `MemoryError`
    where the smallest tile, of one latent, would not fit.
    """
    memory = free_memory(tokenizer.device) * SHARE_OF_FREE_MEMORY if memory is None else memory
    to_latent = tokenizer.space_factor if tower == "encoder" else 1
    longest = max(x.shape[3], x.shape[4]) // to_latent
    fits, too_large = 0, longest + 1
    while too_large - fits > 1:
        tile = (fits + too_large) // 2
        shape = (*x.shape[:3], tile * to_latent, tile * to_latent)
        if peak_bytes(tokenizer, tower, shape) <= memory:
            fits = tile
        else:
            too_large = tile
    if not fits:
        raise MemoryError(
            f"one latent of this tokenizer takes more than the {memory / 2**20:.0f} MB to be had: "
            "give fewer frames at a time, or a smaller batch"
        )
    return fits * tokenizer.space_factor


def peak_bytes(tokenizer: "VideoTokenizer", tower: Tower, shape: tuple[int, ...]) -> int:
    """Bytes that a tower's activations take at most, for an input of this shape, input included.

    Under autocast, what it takes under autocast. Nothing is computed: tensors are made without
    memory, and their sizes counted while they live.
    """
    layers = tokenizer.encoder if tower == "encoder" else tokenizer.decoder
    options = dict(device=tokenizer.device, dtype=tokenizer.dtype)
    ledger = Ledger()
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True), ledger:
        x = torch.empty(shape, **options).contiguous(memory_format=torch.channels_last_3d)
        dim_cond = tokenizer.config.layer_options.dim_cond
        cond = None if dim_cond is None else torch.empty(shape[0], dim_cond, **options)
        layers(x, None, Context(cond=cond, latents=x if tower == "decoder" else None))
    return ledger.peak


class Ledger(TorchDispatchMode):
    """Counts the bytes of all tensors that live, as they come and go."""

    def __init__(self):
        super().__init__()
        self.live = self.peak = self.total = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._enter(tensor.untyped_storage())
        self.peak = max(self.peak, self.live)
        return out

    def _enter(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.live += size
            self.total += size
            weakref.finalize(storage, self._leave, key, size)

    def _leave(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size
