"""Encoder and decoder of a tokenizer as programs: tracing, and file formats.

Batch, length and size of a program are dynamic.
"""

import logging
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Shaped
from torch import Tensor, nn
from torch.export import ExportedProgram

from magvit2_pytorch.tokenizer.model import VideoTokenizer
from magvit2_pytorch.types import VALUE_RANGE, Condition, Video

FormatName = Literal["onnx", "pt2"]
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
        dim = self.tokenizer.config.dim_cond
        cond = () if dim is None else (Port("cond", torch.float32, ("batch", dim)),)
        return (self.source, *cond)

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
        draws, tensors = dict(generator=torch.Generator().manual_seed(seed)), []
        for port in self.inputs:
            size = [sizes.get(axis, axis) for axis in port.axes]
            if port.dtype == torch.int64:
                tensors.append(torch.randint(self.tokenizer.codebook_size, size, **draws))
            elif port.name == "video":
                tensors.append(torch.empty(size).uniform_(*VALUE_RANGE, **draws))
            else:
                tensors.append(torch.randn(size, **draws))
        return tuple(tensors)


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
    """Codes to video; with a continuous tokenizer, latents to video."""

    name = "decode"

    def __init__(self, tokenizer: VideoTokenizer):
        super().__init__(tokenizer, unused=tokenizer.encoder)
        self.source, self.output = _codes(tokenizer), _video(tokenizer)

    def forward(self, codes: Shaped[Tensor, "b ..."], cond: Condition | None = None) -> Video:
        if self.tokenizer.codebook_size is not None:
            codes = self.tokenizer.quantizer.decode_codes(codes)
        return self.tokenizer.decode(codes, cond)


def make_part(tokenizer: VideoTokenizer, name: PartName) -> Part:
    """The module for a direction."""
    return (Encode if name == "encode" else Decode)(tokenizer)


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


LoadedProgram = Callable[..., Tensor]
"""A program read from a file: takes tensors, returns one tensor."""

OLDEST_TORCH = "2.11"
"""Older versions cannot make all sizes dynamic."""


def trace(part: Part, example: tuple[Tensor, ...]) -> ExportedProgram:
    """Traces one direction with dynamic sizes of 1 or more.

    Torch checks in many places if a size is 1, because the memory layout of a tensor may depend on
    it; the program would then refuse one frame or one row of cells if the example has more. Values
    do not depend on it, so that sizes are traced as unknown numbers of at least 1, and guards on
    sizes that differ are dropped. Guards on equal or divisible sizes stay.
    """
    # Torch before OLDEST_TORCH lacks some of these.
    from torch.export import Dim
    from torch.fx.experimental import _config

    sizes = [{axis: Dim.DYNAMIC(min=1) for axis in port.dynamic_axes} for port in part.inputs]
    checks = part.register_forward_pre_hook(_sizes_from_one)
    with checks, torch.no_grad(), _config.patch(backed_size_oblivious=True):
        program = torch.export.export(part, example, dynamic_shapes=tuple(sizes), strict=False)
    program._guards_code = [guard for guard in program._guards_code if " == " in guard]
    return program


def _sizes_from_one(part: Part, inputs: tuple[Tensor, ...]) -> None:
    from torch.fx.experimental.symbolic_shapes import constrain_range

    for port, tensor in zip(part.inputs, inputs, strict=True):
        for axis in port.dynamic_axes:
            constrain_range(tensor.shape[axis], min=1)


class ProgramFormat(ABC):
    """A file format for programs."""

    packages: tuple[str, ...] = ()
    """Packages that are required in addition to torch."""

    def check_installed(self) -> None:
        """Raises `ValueError` unless this environment can write and run such files."""
        if torch.__version__ < OLDEST_TORCH:
            raise ValueError(
                f"export with dynamic sizes needs torch {OLDEST_TORCH} or newer, but this is "
                f"{torch.__version__}: upgrade torch, or export in another environment"
            )
        for name in self.packages:
            try:
                import_module(name)
            except ImportError as error:
                raise ValueError(
                    f"{name} cannot be imported ({error}): "
                    "install the ONNX packages with pip install 'magvit2-pytorch[export]'"
                ) from error

    @abstractmethod
    def write(self, program: ExportedProgram, part: Part, path: Path) -> None:
        """Writes the program; ONNX weights above 2 GB get their own file."""

    @abstractmethod
    def load(self, path: Path) -> LoadedProgram:
        """Loads a written program."""


class Pt2(ProgramFormat):
    """Files for `torch.export.load`."""

    def write(self, program: ExportedProgram, part: Part, path: Path) -> None:
        with _quiet():
            torch.export.save(program, path)

    def load(self, path: Path) -> LoadedProgram:
        with _quiet():
            return torch.export.load(path).module()


class Onnx(ProgramFormat):
    """ONNX files for onnxruntime and other runtimes."""

    packages = ("onnx", "onnxscript", "onnxruntime")

    def write(self, program: ExportedProgram, part: Part, path: Path) -> None:
        import onnx
        from onnxscript import ir

        with _quiet():
            converted = torch.onnx.export(
                program,
                input_names=[port.name for port in part.inputs],
                output_names=[part.output.name],
                dynamo=True,
                verbose=False,
                custom_translation_table=_translations(),
            )
        graph = converted.model.graph
        values, ports = (*graph.inputs, *graph.outputs), (*part.inputs, part.output)
        for value, port in zip(values, ports, strict=True):
            value.shape = ir.Shape(port.axes)
        converted.save(path)
        onnx.checker.check_model(path, full_check=True)

    def load(self, path: Path) -> LoadedProgram:
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        names = [port.name for port in session.get_inputs()]

        def run(*tensors: Tensor) -> Tensor:
            inputs = {n: t.numpy() for n, t in zip(names, tensors, strict=True)}
            (output,) = session.run(None, inputs)
            return torch.from_numpy(output)

        return run


FORMATS: dict[FormatName, ProgramFormat] = {"onnx": Onnx(), "pt2": Pt2()}


def _translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Translations of operators that torch's exporter lacks."""
    from onnxscript import opset18 as op
    from onnxscript.ir import DataType

    def shift(direction: str) -> Callable[..., Any]:
        # ONNX shifts unsigned integers only; codes are never negative.
        def translated(codes: Any, places: Any) -> Any:
            codes, places = (op.Cast(x, to=DataType.UINT64) for x in (codes, places))
            shifted = op.BitShift(codes, places, direction=direction)
            return op.Cast(shifted, to=DataType.INT64)

        return translated

    return {
        torch.ops.aten.__lshift__.Tensor: shift("LEFT"),
        torch.ops.aten.__rshift__.Tensor: shift("RIGHT"),
    }


@contextmanager
def _quiet() -> Iterator[None]:
    """Hides torch's messages about its own internals."""
    logger = logging.getLogger("torch.onnx")
    with ExitStack() as stack, warnings.catch_warnings():
        stack.callback(logger.setLevel, logger.level)
        logger.setLevel(logging.ERROR)
        # About channels-last weights, which are written completely.
        warnings.filterwarnings("ignore", "No complete tensor found", UserWarning)
        # About weights that torch maps from a file without copying; nothing writes to them.
        warnings.filterwarnings("ignore", "The given buffer is not writable", UserWarning)
        yield
