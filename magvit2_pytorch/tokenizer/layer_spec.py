"""The language of `layers`: a named step that changes the grid and stands for two modules."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from magvit2_pytorch.layers.attention import AttentionSize
from magvit2_pytorch.layers.conv import PadMode, Triple
from magvit2_pytorch.layers.norm import NormSpec
from magvit2_pytorch.layers.stateful import StatefulLayer
from magvit2_pytorch.registry import Registry

LayerEntry = str | tuple[Any, ...]
"""'residual', ('compress_space', 256) or ('attend_time', {'window': 8})."""


@dataclass(frozen=True)
class Grid:
    """Where we are on the way down: channels, and frames and pixels to one cell."""

    dim: int
    time: int = 1
    space: int = 1


@dataclass(frozen=True)
class LayerOptions:
    """What the whole model decides for every layer."""

    max_dim: int | None = None
    kernel_size: int | Triple = 3
    pad_mode: PadMode = "constant"
    norm: NormSpec = field(default_factory=NormSpec)
    quantized_dim: int | None = None
    """Channels of the quantized latents; known when modules are built."""
    dim_cond: int | None = None
    """Width of the embedded condition; None where the model takes none."""
    attention: AttentionSize = field(default_factory=AttentionSize)
    linear_attention: AttentionSize = field(default_factory=lambda: AttentionSize(8, 16))

    def wider(self, dim: int) -> int:
        """Twice the channels, up to `max_dim`."""
        return dim * 2 if self.max_dim is None else min(dim * 2, self.max_dim)


class LayerSpec(ABC):
    """A step of the ladder. Subclasses are frozen dataclasses; their fields are its parameters."""

    name: str
    conditional = False

    def after(self, grid: Grid, options: LayerOptions) -> Grid:
        """The grid that the encoder module leaves."""
        return grid

    @abstractmethod
    def build(self, grid: Grid, options: LayerOptions) -> tuple[StatefulLayer, StatefulLayer]:
        """The encoder module, from `grid` to `after(grid)`, and the decoder module, back."""


LAYERS: Registry[type[LayerSpec]] = Registry("layer")


def register_layer(name: str):
    """Makes a LayerSpec known to users as `name`."""

    def register(spec: type[LayerSpec]) -> type[LayerSpec]:
        spec.name = name
        return LAYERS.register(name)(spec)

    return register


def normalize_entry(entry: Any) -> LayerEntry:
    """Lists (as JSON gives them) to tuples, a name with no parameters to the bare name."""
    if isinstance(entry, str):
        return entry
    if not isinstance(entry, Sequence) or not entry or not isinstance(entry[0], str):
        raise ValueError(
            f"{entry!r} is no layer: write 'residual', ('compress_space', 256) "
            "or ('attend_time', {'window': 8})"
        )
    name, *parameters = entry
    return (name, *parameters) if parameters else name


def parse_layer(entry: LayerEntry) -> LayerSpec:
    """The spec that an entry of `layers` names, its parameters in order or by keyword."""
    name, *parameters = (entry,) if isinstance(entry, str) else entry
    spec = LAYERS[name]
    keywords = parameters.pop() if parameters and isinstance(parameters[-1], dict) else {}
    for value in (*parameters, *keywords.values()):
        if value is not None and (type(value) is not int or value < 1):
            raise ValueError(f"layer {entry!r}: {value!r} is no size or count, give 1 or more")
    try:
        return spec(*parameters, **keywords)
    except TypeError as error:
        known = ", ".join(f.name for f in fields(spec)) or "none"
        raise ValueError(f"layer {entry!r}: parameters of {name!r} are: {known}") from error


def grids(layers: Sequence[LayerSpec], start: Grid, options: LayerOptions) -> list[Grid]:
    """The grid before each layer, and after the last."""
    walk = [start]
    for layer in layers:
        walk.append(layer.after(walk[-1], options))
    return walk
