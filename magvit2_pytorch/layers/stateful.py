"""Layers from frames and a past to frames and the next past."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from fractions import Fraction
from functools import reduce
from math import lcm
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from magvit2_pytorch.types import Context, Past


class ReceptiveField(NamedTuple):
    """Spatial receptive field of a layer, for rows and columns alike.

    Output rows a to b (b excluded) depend on the input rows a * scale - halo to b * scale + halo,
    rounded outwards and clipped to the frame. A crop of the input that starts at a multiple of
    `align` therefore gives the same output as the full frame, except within `halo` input rows of
    an edge that the crop has cut.
    """

    scale: Fraction = Fraction(1)
    """Input rows per output row: 2 if the layer halves the size, 1/2 if it doubles it."""

    halo: Fraction = Fraction(0)
    """Input rows needed beyond either end: 1 for a 3x3 convolution."""

    align: int = 1
    """A crop may start at multiples of this many input rows: 2 if the layer halves the size."""

    def then(self, later: "ReceptiveField") -> "ReceptiveField":
        """Receptive field of this layer followed by `later`."""
        return ReceptiveField(
            later.scale * self.scale,
            later.halo * self.scale + self.halo,
            lcm(self.align, (later.align * self.scale).numerator),
        )


class StatefulLayer(nn.Module, ABC):
    """Causal layer with explicit state: the module stores none between calls.

    `past` is None for the first chunk of a video, and then the past that the previous call
    returned. A whole video is one chunk without a past; a stream is the same code in a loop.
    The returned past is never None; a layer without memory returns ().
    """

    receptive_field: ReceptiveField | None = None
    """Spatial receptive field; None, which is always safe, means the full frame."""

    @abstractmethod
    def forward(
        self,
        x: Float[Tensor, "b c t h w"],
        past: Past = None,
        context: Context = Context(),
    ) -> tuple[Float[Tensor, "b d u y x"], Past]: ...


class Chain(StatefulLayer):
    """Sequence of layers; the past is the tuple of their pasts."""

    def __init__(self, layers: Iterable[StatefulLayer]):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x, past: Past = None, context: Context = Context()):
        pasts = (None,) * len(self.layers) if past is None else past
        next_pasts = []
        for layer, layer_past in zip(self.layers, pasts, strict=True):
            x, next_past = layer(x, layer_past, context)
            next_pasts.append(next_past)
        return x, tuple(next_pasts)

    @property
    def receptive_field(self) -> ReceptiveField | None:
        return chain_receptive_field(self.layers)


def chain_receptive_field(layers: Iterable[StatefulLayer]) -> ReceptiveField | None:
    """Receptive field of layers in sequence; None if one has none."""
    fields = [layer.receptive_field for layer in layers]
    return None if None in fields else reduce(ReceptiveField.then, fields, ReceptiveField())


class Residual(StatefulLayer):
    """Residual connection: `x + layer(x)`, or `shortcut(x) + layer(x)`.

    The shortcut acts on each frame separately: it is given no past.
    """

    checkpointed = False
    """Recompute the layer in the backward pass instead of storing its activations."""

    def __init__(self, layer: StatefulLayer, shortcut: StatefulLayer | None = None):
        super().__init__()
        self.layer, self.shortcut = layer, shortcut

    def forward(self, x, past: Past = None, context: Context = Context()):
        if self.checkpointed and torch.is_grad_enabled():
            out, next_past = checkpoint(self.layer, x, past, context, use_reentrant=False)
        else:
            out, next_past = self.layer(x, past, context)
        if self.shortcut is None:
            return x + out, next_past
        # A sum has the memory layout of its first term, and a small 1x1x1 map loses channels-last.
        return out + self.shortcut(x)[0], next_past

    @property
    def receptive_field(self) -> ReceptiveField | None:
        field = self.layer.receptive_field
        if field is None or self.shortcut is None:
            return field
        other = self.shortcut.receptive_field
        return field._replace(halo=max(field.halo, other.halo), align=lcm(field.align, other.align))


class Pointwise(StatefulLayer):
    """Layer of a module without context between positions, such as an activation."""

    receptive_field = ReceptiveField()

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, x, past: Past = None, context: Context = Context()):
        return self.module(x), ()
