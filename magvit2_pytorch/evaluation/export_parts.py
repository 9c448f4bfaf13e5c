"""The two directions of a tokenizer, each as a module of one call that a program is made from."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from magvit2_pytorch.tokenizer.model import VideoTokenizer
from magvit2_pytorch.types import VALUE_RANGE, Condition, Latents, Video

PartName = Literal["encode", "decode"]

Grid = tuple[int, int, int, int]
"""How large an example is: batch, latent frames, rows, columns."""


class Port(NamedTuple):
    """An input or output of a program."""

    name: str
    dtype: torch.dtype
    axes: tuple[str | int, ...]
    """A name for each axis of any size, the size of every other."""

    @property
    def dynamic_axes(self) -> list[int]:
        """The axes of any size."""
        return [number for number, axis in enumerate(self.axes) if isinstance(axis, str)]

    def describe(self) -> dict[str, Any]:
        """Plain values, as JSON has them."""
        dtype = str(self.dtype).removeprefix("torch.")
        return {"name": self.name, "dtype": dtype, "shape": list(self.axes)}


class Part(nn.Module):
    """One direction of a tokenizer, in evaluation mode, with no weights but those it needs.

    The weights are the tokenizer's own, not copies.
    """

    name: PartName
    given: Port
    output: Port

    def __init__(self, tokenizer: VideoTokenizer, unused: nn.Module):
        super().__init__()
        shared = {id(v): v for v in (*tokenizer.parameters(), *tokenizer.buffers())}
        self.tokenizer = deepcopy(tokenizer, shared | {id(unused): nn.Identity()})
        self.eval()

    @property
    def inputs(self) -> tuple[Port, ...]:
        """What `forward` takes, in order: the condition last, where there is one."""
        dim_cond = self.tokenizer.config.dim_cond
        if dim_cond is None:
            return (self.given,)
        return (self.given, Port("cond", torch.float32, ("batch", dim_cond)))

    def describe(self) -> dict[str, Any]:
        """Inputs and outputs, in plain values that JSON has."""
        return {
            "inputs": [port.describe() for port in self.inputs],
            "outputs": [self.output.describe()],
        }

    def example(self, grid: Grid, seed: int = 0) -> tuple[Tensor, ...]:
        """Random inputs of this size, on the CPU."""
        batch, latent_frames, rows, columns = grid
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
        random = torch.Generator().manual_seed(seed)
        return tuple(
            self._random(port, [sizes.get(axis, axis) for axis in port.axes], random)
            for port in self.inputs
        )

    def _random(
        self, port: Port, shape: Sequence[int], random: torch.Generator
    ) -> Shaped[Tensor, "..."]:
        if port.dtype == torch.int64:
            return torch.randint(self.tokenizer.codebook_size, shape, generator=random)
        if port.name == "video":
            return torch.empty(shape).uniform_(*VALUE_RANGE, generator=random)
        return torch.randn(shape, generator=random)


class Encode(Part):
    """Video to codes; of a continuous tokenizer, to the latents that decoding takes."""

    name = "encode"

    def __init__(self, tokenizer: VideoTokenizer):
        super().__init__(tokenizer, unused=tokenizer.decoder)
        self.given, self.output = _video(tokenizer), _codes(tokenizer)

    def forward(self, video: Video, cond: Condition | None = None) -> Shaped[Tensor, "b ..."]:
        quantized, codes = self.tokenizer.quantize(self.tokenizer.encode(video, cond))
        return quantized if codes is None else codes


class Decode(Part):
    """Codes to video."""

    name = "decode"

    def __init__(self, tokenizer: VideoTokenizer):
        super().__init__(tokenizer, unused=tokenizer.encoder)
        self.given, self.output = _codes(tokenizer), _video(tokenizer)

    def forward(self, codes: Shaped[Tensor, "b ..."], cond: Condition | None = None) -> Video:
        return self.tokenizer.decode(self.tokenizer.quantizer.decode_codes(codes), cond)


class DecodeLatents(Decode):
    """Latents of a continuous tokenizer to video."""

    def forward(self, latents: Latents, cond: Condition | None = None) -> Video:
        return self.tokenizer.decode(latents, cond)


def make_part(tokenizer: VideoTokenizer, name: PartName) -> Part:
    """The direction of this name."""
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
