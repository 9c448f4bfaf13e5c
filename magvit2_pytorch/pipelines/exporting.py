"""Export of a tokenizer to ONNX and to .pt2 of torch.export."""

import json
import os
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor

from magvit2_pytorch.atomic import as_path
from magvit2_pytorch.pipelines.export_programs import (
    FORMATS,
    ExampleShape,
    FormatName,
    LoadedProgram,
    Part,
    PartName,
    make_part,
    trace,
)
from magvit2_pytorch.pipelines.fingerprint import TokenizerId
from magvit2_pytorch.tokenizer_1d import AnyTokenizer, Tokenizer1d
from magvit2_pytorch.types import VALUE_RANGE, Codes
from magvit2_pytorch.version import __version__

EXPORT_FILE = "export.json"

TRACED_SHAPE: ExampleShape = (2, 4, 5, 7)
CHECKED_SHAPES: tuple[ExampleShape, ...] = ((1, 1, 4, 6), (2, 3, 5, 4))
"""Shapes at which programs are compared with the tokenizer: one image, and two clips."""

TOLERANCE = 1e-4
"""Largest error of a frame or latent, relative to the largest absolute value or 1."""

ROUNDING = 1e-4
"""Largest change of a latent by rounding, relative to the mean absolute latent."""


class ProgramMismatch(ValueError):
    """The results of a program differ from those of its tokenizer."""


class Agreement(NamedTuple):
    """Differences between a program and the tokenizer."""

    max_error: float = 0.0
    """Largest difference of frames or latents."""
    num_codes: int = 0
    num_other_codes: int = 0
    """Codes that differ, all because of rounding."""

    def __str__(self) -> str:
        if not self.num_codes:
            return f"max error {self.max_error:.1e}"
        others = f", {self.num_other_codes} differ by rounding" * bool(self.num_other_codes)
        return f"{self.num_codes - self.num_other_codes} of {self.num_codes} codes equal{others}"


def export_tokenizer(
    tokenizer: AnyTokenizer,
    folder: str | os.PathLike,
    formats: Sequence[FormatName] = ("onnx",),
    parts: Sequence[PartName] = ("encode", "decode"),
    tokenizer_id: TokenizerId | None = None,
) -> dict[str, Agreement]:
    """Writes PART.FORMAT files and `export.json` to a folder.

    Returns the agreement of each file with the tokenizer. The programs accept any batch, frames,
    height and width that the tokenizer accepts without padding, including one frame, and the
    condition of a conditional tokenizer. They compute in float32. Each is loaded again and compared
    with the tokenizer; existing files are replaced when all have passed. Raises `ValueError` if
    torch is too old, a package is missing or the tokenizer is on a GPU, and `ProgramMismatch` if
    the results of a program differ.
    """
    check_exportable(tokenizer)
    for name in formats:
        FORMATS[name].check_installed()
    device = next(tokenizer.parameters()).device
    if device.type != "cpu":
        raise ValueError(f"the tokenizer is on {device}, but export needs the CPU: tokenizer.cpu()")
    description = describe_export(tokenizer, tokenizer_id or TokenizerId.of(tokenizer))
    agreements = {}
    folder = as_path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder, prefix=".part-") as unfinished:
        for part in (make_part(tokenizer, name) for name in parts):
            files = {f"{part.name}.{name}": FORMATS[name] for name in formats}
            description["programs"][part.name] = {
                "inputs": [port.describe() for port in part.inputs],
                "outputs": [part.output.describe()],
                "files": list(files),
            }
            program = trace(part, part.example(TRACED_SHAPE))
            for file, kind in files.items():
                path = Path(unfinished, file)
                kind.write(program, part, path)
                agreements[file] = compare(part, kind.load(path), file)
                description["versions"] |= {name: version(name) for name in kind.packages}
        text = json.dumps(description, indent=2)
        Path(unfinished, EXPORT_FILE).write_text(text + "\n", encoding="utf-8")
        # An ONNX file may refer to a weights file by name, so that all files move together.
        for path in Path(unfinished).iterdir():
            os.replace(path, folder / path.name)
    return agreements


def check_exportable(tokenizer: AnyTokenizer) -> None:
    """Raises `ValueError` for a kind of tokenizer that cannot be exported."""
    if isinstance(tokenizer, Tokenizer1d):
        raise ValueError(
            "a 1-D tokenizer cannot be exported: its programs would hold one size and one number "
            "of tokens; use tokenize and decode in Python, or the commands of the same names"
        )


def describe_export(tokenizer: AnyTokenizer, tokenizer_id: TokenizerId) -> dict[str, Any]:
    """Metadata for users of the programs, in plain JSON values."""
    time, space = tokenizer.time_factor, tokenizer.space_factor
    return {
        "tokenizer": tokenizer_id.name,
        "fingerprint": tokenizer_id.fingerprint,
        "value_range": list(VALUE_RANGE),
        "time_factor": time,
        "space_factor": space,
        "codebook_size": tokenizer.codebook_size,
        "num_codebooks": tokenizer.num_codebooks,
        "axes": {
            "batch": "1 or more",
            "frames": f"1 + k * {time}, k = 0, 1, 2, ...: an image is a video of one frame",
            "height": f"a multiple of {space}",
            "width": f"a multiple of {space}",
            "latent_frames": f"1 + (frames - 1) / {time}",
            "rows": f"height / {space}",
            "columns": f"width / {space}",
        },
        "programs": {},
        "versions": {"magvit2_pytorch": __version__, "torch": str(torch.__version__)},
    }


def compare(
    part: Part,
    program: LoadedProgram,
    name: str,
    shapes: Sequence[ExampleShape] = CHECKED_SHAPES,
) -> Agreement:
    """Compares a program with the tokenizer at the given shapes.

    Raises `ProgramMismatch` if they differ by more than rounding.
    """
    agreement = Agreement()
    for shape in shapes:
        inputs = part.example(shape, seed=1)
        prefix = f"{name} is wrong: for {part.source.name} of shape {tuple(inputs[0].shape)} it"
        with torch.no_grad():
            expected, actual = part(*inputs), program(*inputs)
        if (actual.shape, actual.dtype) != (expected.shape, expected.dtype):
            raise ProgramMismatch(
                f"{prefix} returns {actual.dtype} of shape {tuple(actual.shape)}, not "
                f"{expected.dtype} of shape {tuple(expected.shape)}"
            )
        if expected.is_floating_point():
            error = float((actual - expected).abs().max())
            if not error <= TOLERANCE * max(1.0, float(expected.abs().max())):
                raise ProgramMismatch(f"{prefix} is off by {error:.1e}")
            agreement = agreement._replace(max_error=max(agreement.max_error, error))
        else:
            different = actual != expected
            num_wrong = int((different & ~_codes_by_rounding(part, inputs, actual)).sum())
            if num_wrong:
                raise ProgramMismatch(
                    f"{prefix} returns {num_wrong} wrong codes of {expected.numel()}, more than "
                    "rounding can explain"
                )
            num_codes = agreement.num_codes + expected.numel()
            agreement = Agreement(0.0, num_codes, agreement.num_other_codes + int(different.sum()))
    return agreement


@torch.no_grad()
def _codes_by_rounding(
    part: Part, inputs: tuple[Tensor, ...], codes: Codes
) -> Bool[Tensor, "b ..."]:
    """Mask of codes that a slight shift of one channel explains."""
    latents = part.tokenizer.encode(*inputs)
    step = ROUNDING * latents.abs().mean()
    matches = torch.zeros_like(codes, dtype=torch.bool)
    for channel in range(latents.shape[1]):
        for shift in (step, -step):
            shifted = latents.clone()
            shifted[:, channel] += shift
            matches |= part.tokenizer.quantize(shifted).codes == codes
    return matches
