"""Tensor types, axes and value ranges, and the values that layers exchange.

Axes: b batch, c channels, t frames, h w pixels or cells, n tokens, q codebooks. In signatures
that have both frames and latents, j y x are the frame, row and column of the latents.
A video is `b c t h w`, floating point, in [-1, 1]. An image is a video of one frame.
"""

from collections.abc import Iterable
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Float, Int, UInt8
from torch import Tensor

Video = Float[Tensor, "b c t h w"]
"""Frames in [-1, 1]."""

Image = Float[Tensor, "b c h w"]
"""Image in [-1, 1]: a video without the time axis."""

Latents = Float[Tensor, "b d j y x"]
"""Output of the encoder before quantization, or input of the decoder after it."""

Codes = Int[Tensor, "b j y x"] | Int[Tensor, "b j y x q"]
"""Codebook indices, int64; with several codebooks their axis is the last."""

Condition = Float[Tensor, "b e"]
"""Condition of a conditional tokenizer, one vector per sample."""

Frames = UInt8[Tensor, "t h w c"]
"""Decoded frames as stored in files: bytes, channels last."""

FrameStatistics = tuple[Float[Tensor, "b g t"], Float[Tensor, "b g t"]]
"""Mean and variance of each channel group over all positions of each frame."""

Past = Any
"""State of a layer after earlier frames: nested tuples of tensors. None before the first chunk."""


@runtime_checkable
class Items(Protocol):
    """Dataset or list, with or without a length."""

    def __getitem__(self, number: int, /) -> Any: ...


Clips = Items | Iterable[Any]
"""Clips (c t h w) or images (c h w), or items that contain them (`data.user_clips`)."""


MediaKind = Literal["video", "image"]

Precision = Literal["fp32", "bf16", "fp16"]
"""Type of convolutions and matrix products; weights and quantizers stay in float32."""

VALUE_RANGE = (-1.0, 1.0)


class Context(NamedTuple):
    """Inputs of a layer other than the frames and the past."""

    cond: Float[Tensor, "b e"] | None = None
    """Condition given by the user, one vector per sample."""

    latents: Float[Tensor, "b d j y x"] | None = None
    """Quantized latents of this chunk, at their own resolution (decoder only)."""

    last: bool = False
    """This is the last chunk: layers need not return a past."""

    frame_statistics: FrameStatistics | None = None
    """Statistics of the full frames, for group norms when `x` is a tile of them."""
