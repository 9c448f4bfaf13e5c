"""Encoder and decoder of a tokenizer as modules to export."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from magvit2_pytorch.tokenizer.model import VideoTokenizer
from magvit2_pytorch.types import VALUE_RANGE, Condition, Latents, Video

PartName = Literal["encode", "decode"]

ExampleShape = tuple[int, int, int, int]
"""Batch, latent frames, rows and columns of an example."""


class Port(NamedTuple):
    """An input or output of a program."""

    name: str
    dtype: torch.dtype
    axes: tuple[str | int, ...]
    """The name of each dynamic axis, the size of every other axis."""

    @property
    def dynamic_axes(self) -> list[int]:
        """Indices of the axes of any size."""
        return [number for number, axis in enumerate(self.axes) if isinstance(axis, str)]

    def describe(self) -> dict[str, Any]:
        """Name, dtype and shape in plain JSON values."""
        dtype = str(self.dtype).removeprefix("torch.")
        return {"name": self.name, "dtype": dtype, "shape": list(self.axes)}


class Part(nn.Module):
    """One direction of a tokenizer, in evaluation mode.

    It has only the weights it needs, shared with the tokenizer.
    """

    name: PartName
    source: Port
    output: Port

    def __init__(self, tokenizer: VideoTokenizer, unused: nn.Module):
        super().__init__()
        shared = {id(v): v for v in (*tokenizer.parameters(), *tokenizer.buffers())}
        self.tokenizer = deepcopy(tokenizer, shared | {id(unused): nn.Identity()})
        self.eval()

    @property
    def inputs(self) -> tuple[Port, ...]:
        """Inputs of `forward` in order; the condition, if any, is last."""
        dim_cond = self.tokenizer.config.dim_cond
        if dim_cond is None:
            return (self.source,)
        return (self.source, Port("cond", torch.float32, ("batch", dim_cond)))

    def describe(self) -> dict[str, Any]:
        """Inputs and outputs in plain JSON values."""
        return {
            "inputs": [port.describe() for port in self.inputs],
            "outputs": [self.output.describe()],
        }

    def example(self, shape: ExampleShape, seed: int = 0) -> tuple[Tensor, ...]:
        """Random inputs of this shape, on the CPU."""
        batch, latent_frames, rows, columns = shape
        space = self.tokenizer.space_factor
        sizes = {
            "batch": batch,
            "frames": 1 + (latent_frames - 1) * self.tokenizer.time_factor,
            "height": rows * space,
            "width": columns * space,
            "latent_frames": latent_frames,
            "rows": rows,
            "columns": columns,
        }
        generator = torch.Generator().manual_seed(seed)
        return tuple(
            self._random(port, [sizes.get(axis, axis) for axis in port.axes], generator)
            for port in self.inputs
        )

    def _random(
        self, port: Port, shape: Sequence[int], generator: torch.Generator
    ) -> Shaped[Tensor, "..."]:
        if port.dtype == torch.int64:
            return torch.randint(self.tokenizer.codebook_size, shape, generator=generator)
        if port.name == "video":
            return torch.empty(shape).uniform_(*VALUE_RANGE, generator=generator)
        return torch.randn(shape, generator=generator)


class Encode(Part):
    """Video to codes; with a continuous tokenizer, to the latents for decoding."""

    name = "encode"

    def __init__(self, tokenizer: VideoTokenizer):
        super().__init__(tokenizer, unused=tokenizer.decoder)
        self.source, self.output = _video(tokenizer), _codes(tokenizer)

    def forward(self, video: Video, cond: Condition | None = None) -> Shaped[Tensor, "b ..."]:
        quantized, codes = self.tokenizer.quantize(self.tokenizer.encode(video, cond))
        return quantized if codes is None else codes


class Decode(Part):
    """Codes to video."""

    name = "decode"

    def __init__(self, tokenizer: VideoTokenizer):
        super().__init__(tokenizer, unused=tokenizer.encoder)
        self.source, self.output = _codes(tokenizer), _video(tokenizer)

    def forward(self, codes: Shaped[Tensor, "b ..."], cond: Condition | None = None) -> Video:
        return self.tokenizer.decode(self.tokenizer.quantizer.decode_codes(codes), cond)


class DecodeLatents(Decode):
    """Latents of a continuous tokenizer to video."""

    def forward(self, latents: Latents, cond: Condition | None = None) -> Video:
        return self.tokenizer.decode(latents, cond)


def make_part(tokenizer: VideoTokenizer, name: PartName) -> Part:
    """The module for a direction."""
    if name == "encode":
        return Encode(tokenizer)
    return DecodeLatents(tokenizer) if tokenizer.codebook_size is None else Decode(tokenizer)


def _video(tokenizer: VideoTokenizer) -> Port:
    axes = ("batch", tokenizer.config.channels, "frames", "height", "width")
    return Port("video", torch.float32, axes)


def _codes(tokenizer: VideoTokenizer) -> Port:
    grid = ("latent_frames", "rows", "columns")
    if tokenizer.codebook_size is None:
        axes = ("batch", tokenizer.quantizer.quantized_dim, *grid)
        return Port("latents", torch.float32, axes)
    codebooks = () if tokenizer.num_codebooks == 1 else (tokenizer.num_codebooks,)
    return Port("codes", torch.int64, ("batch", *grid, *codebooks))
