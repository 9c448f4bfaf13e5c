"""Traces, writes and loads programs with dynamic batch, length and size."""

import logging
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.export import ExportedProgram

from magvit2_pytorch.pipelines.export_parts import Part

FormatName = Literal["onnx", "pt2"]

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
    hook = part.register_forward_pre_hook(_sizes_from_one)
    try:
        with torch.no_grad(), _config.patch(backed_size_oblivious=True):
            program = torch.export.export(part, example, dynamic_shapes=tuple(sizes), strict=False)
    finally:
        hook.remove()
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

    def versions(self) -> dict[str, str]:
        """Versions of the packages."""
        return {name: version(name) for name in self.packages}

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
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # About channels-last weights, which are written completely.
            warnings.filterwarnings("ignore", "No complete tensor found", UserWarning)
            # About weights that torch maps from a file without copying; nothing writes to them.
            warnings.filterwarnings("ignore", "The given buffer is not writable", UserWarning)
            yield
    finally:
        logger.setLevel(level)
