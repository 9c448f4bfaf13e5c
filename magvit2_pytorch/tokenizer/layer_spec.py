"""Layer specs: named steps, each with an encoder and a decoder module."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from magvit2_pytorch.config import Registry
from magvit2_pytorch.layers.attention import AttentionSize
from magvit2_pytorch.layers.conv import PadMode, Triple
from magvit2_pytorch.layers.norm import NormSpec
from magvit2_pytorch.layers.stateful import StatefulLayer

LayerEntry = str | tuple[Any, ...]
"""'residual', ('compress_space', 256) or ('attend_time', {'window': 8})."""


@dataclass(frozen=True)
class Grid:
    """A level of the encoder: channels, and frames and pixels per cell."""

    dim: int
    time: int = 1
    space: int = 1


@dataclass(frozen=True)
class LayerOptions:
    """Options of the model that all layers share."""

    max_dim: int | None = None
    kernel_size: int | Triple = 3
    pad_mode: PadMode = "constant"
    norm: NormSpec = field(default_factory=NormSpec)
    quantized_dim: int | None = None
    """Channels of the quantized latents; set when modules are built."""
    dim_cond: int | None = None
    """Width of the embedded condition; None if the model is unconditional."""
    attention: AttentionSize = field(default_factory=AttentionSize)
    linear_attention: AttentionSize = field(default_factory=lambda: AttentionSize(8, 16))
    first_frames: int = 1
    """Frames of the first latent, copies included; set when modules are built."""

    def doubled(self, dim: int) -> int:
        """Twice as many channels, at most `max_dim`."""
        return dim * 2 if self.max_dim is None else min(dim * 2, self.max_dim)

    def first_cells(self, grid: Grid) -> int:
        """Cells along time that the first latent has at a level."""
        return max(self.first_frames // grid.time, 1)


class LayerSpec(ABC):
    """Base of layer specs, frozen dataclasses whose fields are the parameters."""

    name: str
    conditional = False
    one_frame_start = False
    """The layer takes a first latent of one frame only: it excludes `repeat_first_frame`."""
    reads_latents = False
    """The decoder module reads the quantized latents of the frames that it gets."""

    def look_ahead(self, grid: Grid) -> int:
        """Frames before its own that the decoder lets a latent change."""
        return 0

    def after(self, grid: Grid, options: LayerOptions) -> Grid:
        """The grid after the encoder module."""
        return grid

    @abstractmethod
    def build(self, grid: Grid, options: LayerOptions) -> tuple[StatefulLayer, StatefulLayer]:
        """The encoder module, from `grid` to `after(grid)`, and its decoder counterpart."""


LAYERS: Registry[type[LayerSpec]] = Registry("layer")


def register_layer(name: str):
    """Register a `LayerSpec` under the name that `layers` uses."""

    def register(spec: type[LayerSpec]) -> type[LayerSpec]:
        spec.name = name
        return LAYERS.register(name)(spec)

    return register


def normalize_entry(entry: Any) -> LayerEntry:
    """The entry as a tuple, or its name if without parameters."""
    if isinstance(entry, str):
        return entry
    if not isinstance(entry, Sequence) or not entry or not isinstance(entry[0], str):
        raise ValueError(
            f"{entry!r} is not a layer: write 'residual', ('compress_space', 256) "
            "or ('attend_time', {'window': 8})"
        )
    name, *parameters = entry
    return (name, *parameters) if parameters else name


def parse_layer(entry: LayerEntry) -> LayerSpec:
    """The spec of an entry of `layers`, with positional or keyword parameters."""
    name, *parameters = (entry,) if isinstance(entry, str) else entry
    spec = LAYERS[name]
    keywords = parameters.pop() if parameters and isinstance(parameters[-1], dict) else {}
    for value in (*parameters, *keywords.values()):
        if value is not None and (type(value) is not int or value < 1):
            raise ValueError(f"layer {entry!r}: {value!r} is not a positive integer")
    try:
        return spec(*parameters, **keywords)
    except TypeError as error:
        known = ", ".join(f.name for f in fields(spec)) or "none"
        raise ValueError(f"layer {entry!r}: parameters of {name!r} are: {known}") from error
