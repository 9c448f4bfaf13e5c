"""Programs of any batch, length and size: how they are traced, written and loaded again."""

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

from magvit2_pytorch.evaluation.export_parts import Part

FormatName = Literal["onnx", "pt2"]

Run = Callable[..., Tensor]
"""A loaded program: tensors in, one tensor out."""

OLDEST_TORCH = "2.11"
"""Older ones cannot leave all sizes open."""


def trace(part: Part, example: tuple[Tensor, ...]) -> ExportedProgram:
    """The graph of one direction, for every size that the tokenizer takes, from 1 up.

    Torch asks in many places whether a size is 1, for the order of a tensor in memory may depend on
    it, and would have the program refuse one frame or one row of cells if the example has more.
    Values do not depend on it, so sizes are traced as unknown numbers from 1 up, and what torch
    notes of sizes that differ is left out. What has to be equal or divisible stays checked.
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
    """A kind of file that programs are written to."""

    packages: tuple[str, ...] = ()
    """What has to be installed, beside torch."""

    def check_installed(self) -> None:
        """Raises `ValueError` unless this environment can write and run such files."""
        if torch.__version__ < OLDEST_TORCH:
            raise ValueError(
                f"programs of any size need torch {OLDEST_TORCH} or newer to be made, and this is "
                f"{torch.__version__}: upgrade torch, or export in another environment"
            )
        for name in self.packages:
            try:
                import_module(name)
            except ImportError as error:
                raise ValueError(
                    f"{name} cannot be imported ({error}): "
                    "install what ONNX needs with pip install 'magvit2-pytorch[export]'"
                ) from error

    def versions(self) -> dict[str, str]:
        """Of the packages."""
        return {name: version(name) for name in self.packages}

    @abstractmethod
    def write(self, program: ExportedProgram, part: Part, path: Path) -> None:
        """Writes the program; of ONNX, weights beyond 2 GB go to a file of their own beside it."""

    @abstractmethod
    def load(self, path: Path) -> Run:
        """The written program, to be called."""


class Pt2(ProgramFormat):
    """What `torch.export.load` reads."""

    def write(self, program: ExportedProgram, part: Part, path: Path) -> None:
        with _quiet():
            torch.export.save(program, path)

    def load(self, path: Path) -> Run:
        with _quiet():
            return torch.export.load(path).module()


class Onnx(ProgramFormat):
    """What onnxruntime reads, and many others."""

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

    def load(self, path: Path) -> Run:
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        names = [given.name for given in session.get_inputs()]

        def run(*tensors: Tensor) -> Tensor:
            given = {n: t.numpy() for n, t in zip(names, tensors, strict=True)}
            (output,) = session.run(None, given)
            return torch.from_numpy(output)

        return run


FORMATS: dict[FormatName, ProgramFormat] = {"onnx": Onnx(), "pt2": Pt2()}


def _translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Operators that torch's exporter lacks."""
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
    """Keeps torch's remarks on its own doings from the user."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # Of weights whose memory is channels-last: they are written whole.
            warnings.filterwarnings("ignore", "No complete tensor found", UserWarning)
            # Of weights in a file that torch reads without copying them; nobody writes to them.
            warnings.filterwarnings("ignore", "The given buffer is not writable", UserWarning)
            yield
    finally:
        logger.setLevel(level)
