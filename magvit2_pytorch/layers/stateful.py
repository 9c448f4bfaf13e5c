"""The one shape of every layer: frames and a past go in, frames and the next past come out."""

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
    """What a run of cells of the output needs of the input, along height and along width alike.

    Cells a to b (b excluded) need those from a * scale - halo to b * scale + halo, rounded outwards
    and cut off at the picture's edge. A piece of the input that begins at a multiple of `align`
    gives a piece of the output, good as far from its cut edges as the halo says.
    """

    scale: Fraction = Fraction(1)
    halo: Fraction = Fraction(0)
    align: int = 1

    def then(self, later: "ReceptiveField") -> "ReceptiveField":
        """The receptive field of two layers in a row, this one the first."""
        return ReceptiveField(
            later.scale * self.scale,
            later.halo * self.scale + self.halo,
            lcm(self.align, (later.align * self.scale).numerator),
        )


class StatefulLayer(nn.Module, ABC):
    """A layer that looks at the present and the past and remembers nothing between calls.

    `past` is None for the first chunk of a video and afterwards what the call before returned,
    so a whole video is one chunk with no past, and a stream is the same lines in a loop.
    The next past is never None; a layer without memory returns ().
    """

    @abstractmethod
    def forward(
        self,
        x: Float[Tensor, "b c t h w"],
        past: Past = None,
        context: Context = Context(),
    ) -> tuple[Float[Tensor, "b d u y x"], Past]: ...

    @property
    def receptive_field(self) -> ReceptiveField | None:
        """How far it looks within a frame; None, which is always safe to say, if everywhere."""
        return None


class Chain(StatefulLayer):
    """Layers one after the other; its past is the tuple of theirs."""

    def __init__(self, layers: Iterable[StatefulLayer]):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x, past: Past = None, context: Context = Context()):
        return run_chain(self.layers, x, past, context)

    @property
    def receptive_field(self) -> ReceptiveField | None:
        return chain_receptive_field(self.layers)


def run_chain(
    layers: Iterable[StatefulLayer], x: Tensor, past: Past, context: Context
) -> tuple[Tensor, Past]:
    """Layers one after the other; the past is the tuple of theirs."""
    layers = list(layers)
    pasts = (None,) * len(layers) if past is None else past
    next_pasts = []
    for layer, layer_past in zip(layers, pasts, strict=True):
        x, next_past = layer(x, layer_past, context)
        next_pasts.append(next_past)
    return x, tuple(next_pasts)


def chain_receptive_field(layers: Iterable[StatefulLayer]) -> ReceptiveField | None:
    """The receptive field of layers in a row; None if one of them looks everywhere."""
    reaches = [layer.receptive_field for layer in layers]
    return None if None in reaches else reduce(ReceptiveField.then, reaches, ReceptiveField())


class Residual(StatefulLayer):
    """Adds what a layer says to what it was told, or to what `shortcut` makes of that.

    The shortcut sees each position by itself: it has no past.
    """

    checkpointed = False
    """Keep nothing of the layer for the backward pass, which runs it again: memory for time."""

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
        # A sum lies in memory as its first term does, and a small 1x1x1 map loses channels-last.
        return out + self.shortcut(x)[0], next_past

    @property
    def receptive_field(self) -> ReceptiveField | None:
        return self.layer.receptive_field


class Pointwise(StatefulLayer):
    """Lifts a module that treats every position alone, such as an activation."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, x, past: Past = None, context: Context = Context()):
        return self.module(x), ()

    @property
    def receptive_field(self) -> ReceptiveField:
        return ReceptiveField()
