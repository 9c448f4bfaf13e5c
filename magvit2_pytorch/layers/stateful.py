"""The one shape of every layer: frames and a past go in, frames and the next past come out."""

from abc import ABC, abstractmethod
from collections.abc import Iterable

from jaxtyping import Float
from torch import Tensor, nn

from magvit2_pytorch.types import Context, Past


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


class Chain(StatefulLayer):
    """Layers one after the other; its past is the tuple of theirs."""

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


class Residual(StatefulLayer):
    """Adds what a layer says to what it was told, or to what `shortcut` makes of that.

    The shortcut sees each position by itself: it has no past.
    """

    def __init__(self, layer: StatefulLayer, shortcut: StatefulLayer | None = None):
        super().__init__()
        self.layer, self.shortcut = layer, shortcut

    def forward(self, x, past: Past = None, context: Context = Context()):
        out, next_past = self.layer(x, past, context)
        if self.shortcut is None:
            return x + out, next_past
        # A sum lies in memory as its first term does, and a small 1x1x1 map loses channels-last.
        return out + self.shortcut(x)[0], next_past


class Pointwise(StatefulLayer):
    """Lifts a module that treats every frame alone, such as a norm or an activation."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, x, past: Past = None, context: Context = Context()):
        return self.module(x), ()
