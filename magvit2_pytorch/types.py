"""The words everything here is said in: axes, ranges, and the values layers pass on.

Axes: b batch, c channels, t frames, h w pixels or cells, n tokens, q codebooks; where frames
and latents meet in one signature, j y x are the latents' frame, row and column.
A video is `b c t h w`, floating point, in [-1, 1]. An image is a video of one frame.
"""

from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Float, Int, UInt8
from torch import Tensor

Video = Float[Tensor, "b c t h w"]
"""Frames in [-1, 1]."""

Image = Float[Tensor, "b c h w"]
"""A picture in [-1, 1]: a video without its time axis."""

Latents = Float[Tensor, "b d j y x"]
"""What the encoder says before, or the decoder hears after, quantization."""

Codes = Int[Tensor, "b j y x"] | Int[Tensor, "b j y x q"]
"""Indices into the codebook, int64; a codebook axis last when there are several."""

Condition = Float[Tensor, "b e"]
"""The condition of a conditional tokenizer, one vector a sample."""

Frames = UInt8[Tensor, "t h w c"]
"""Decoded frames as files hold them: bytes, channels last."""

FrameStatistics = tuple[Float[Tensor, "b g t"], Float[Tensor, "b g t"]]
"""Mean and variance of groups of channels over all positions of each frame."""

Past = Any
"""What a layer remembers of earlier frames: a tree of tensors. None before the first chunk."""


@runtime_checkable
class Clips(Protocol):
    """Clips `c t h w` or images `c h w` in [-1, 1], by number: a dataset, or a plain list."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int, /) -> Any: ...


Precision = Literal["fp32", "bf16", "fp16"]
"""What convolutions and matrices compute in; weights and quantizers stay in float32."""

VALUE_RANGE = (-1.0, 1.0)


class Context(NamedTuple):
    """What a layer may look at beside the frames themselves."""

    cond: Float[Tensor, "b e"] | None = None
    """The condition the user gave, one vector a sample."""

    latents: Float[Tensor, "b d j y x"] | None = None
    """The quantized latents of this chunk, on their own grid (decoder only)."""

    last: bool = False
    """No chunk comes after this one: layers need not return a past."""

    frame_statistics: FrameStatistics | None = None
    """What a group norm takes for the statistics of frames of which `x` is a part."""
