"""A tokenizer as programs that run without this library: ONNX, and .pt2 of torch.export."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor

from magvit2_pytorch.evaluation.export_formats import FORMATS, FormatName, Run, trace
from magvit2_pytorch.evaluation.export_parts import Grid, Part, PartName, make_part
from magvit2_pytorch.evaluation.identity import TokenizerId
from magvit2_pytorch.tokenizer.model import VideoTokenizer
from magvit2_pytorch.types import VALUE_RANGE, Codes
from magvit2_pytorch.version import __version__

EXPORT_FILE = "export.json"

TRACED_GRID: Grid = (2, 4, 5, 7)
CHECKED_GRIDS: tuple[Grid, ...] = ((1, 1, 4, 6), (2, 3, 5, 4))
"""Sizes at which programs are compared with the tokenizer: an image, and two clips."""

TOLERANCE = 1e-4
"""Largest error of a frame or latent, relative to the largest value, or to 1 if that is less."""

ROUNDING = 1e-4
"""How far rounding may move a latent, relative to their mean size, and so make another code."""


class ProgramMismatch(ValueError):
    """A program does not do what its tokenizer does."""


class Agreement(NamedTuple):
    """How near a program comes to the tokenizer."""

    max_error: float = 0.0
    """Largest difference of frames or latents."""
    num_codes: int = 0
    num_other_codes: int = 0
    """Codes that differ, all of them where rounding decides."""

    def __str__(self) -> str:
        if not self.num_codes:
            return f"max error {self.max_error:.1e}"
        others = f", {self.num_other_codes} differ by rounding" * bool(self.num_other_codes)
        return f"{self.num_codes - self.num_other_codes} of {self.num_codes} codes equal{others}"


def export_tokenizer(
    tokenizer: VideoTokenizer,
    folder: str | os.PathLike,
    formats: Sequence[FormatName] = ("onnx",),
    parts: Sequence[PartName] = ("encode", "decode"),
    tokenizer_id: TokenizerId | None = None,
) -> dict[str, Agreement]:
    """Writes PART.FORMAT files and `export.json` to a folder; gives each file's agreement.

    The programs take any batch, frames, height and width that the tokenizer takes without padding,
    one frame included, and a conditional one its condition too. They compute in float32. Each is
    loaded again and compared with the tokenizer; files are replaced when all have passed. Raises
    `ValueError` where torch is too old, a package is missing or the tokenizer is on a GPU, and
    `ProgramMismatch` where a program does not do what the tokenizer does.
    """
    for name in formats:
        FORMATS[name].check_installed()
    where = next(tokenizer.parameters()).device
    if where.type != "cpu":
        raise ValueError(
            f"the tokenizer is on {where}, programs are made on the CPU: tokenizer.cpu()"
        )
    about = describe_export(tokenizer, tokenizer_id or TokenizerId.of(tokenizer))
    agreements = {}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder, prefix=".part-") as unfinished:
        for part in (make_part(tokenizer, name) for name in parts):
            files = {f"{part.name}.{name}": FORMATS[name] for name in formats}
            about["programs"][part.name] = part.describe() | {"files": list(files)}
            program = trace(part, part.example(TRACED_GRID))
            for file, kind in files.items():
                path = Path(unfinished, file)
                kind.write(program, part, path)
                agreements[file] = compare(part, kind.load(path), file)
                about["versions"] |= kind.versions()
        text = json.dumps(about, indent=2)
        Path(unfinished, EXPORT_FILE).write_text(text + "\n", encoding="utf-8")
        # Weights of an ONNX file may lie in another one, by its name: all move together.
        for path in Path(unfinished).iterdir():
            os.replace(path, folder / path.name)
    return agreements


def describe_export(tokenizer: VideoTokenizer, tokenizer_id: TokenizerId) -> dict[str, Any]:
    """What those have to know who run the programs, in plain values that JSON has."""
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


def compare(part: Part, run: Run, name: str, grids: Sequence[Grid] = CHECKED_GRIDS) -> Agreement:
    """How near a program comes to the tokenizer at these sizes.

    Raises `ProgramMismatch` where it is further away than rounding takes it.
    """
    worst = Agreement()
    for grid in grids:
        given = part.example(grid, seed=1)
        about = f"{name} went wrong: for {part.given.name} of shape {tuple(given[0].shape)} it"
        with torch.no_grad():
            wanted, got = part(*given), run(*given)
        if (got.shape, got.dtype) != (wanted.shape, wanted.dtype):
            raise ProgramMismatch(
                f"{about} gives {got.dtype} of shape {tuple(got.shape)}, not {wanted.dtype} of "
                f"shape {tuple(wanted.shape)}"
            )
        if wanted.is_floating_point():
            error = float((got - wanted).abs().max())
            if not error <= TOLERANCE * max(1.0, float(wanted.abs().max())):
                raise ProgramMismatch(f"{about} is off by {error:.1e}")
            worst = worst._replace(max_error=max(worst.max_error, error))
        else:
            others = got != wanted
            wrong = int((others & ~_codes_by_rounding(part, given, got)).sum())
            if wrong:
                raise ProgramMismatch(
                    f"{about} gives {wrong} other codes of {wanted.numel()}, and not by rounding"
                )
            num_others = worst.num_other_codes + int(others.sum())
            worst = Agreement(0.0, worst.num_codes + wanted.numel(), num_others)
    return worst


@torch.no_grad()
def _codes_by_rounding(
    part: Part, given: tuple[Tensor, ...], codes: Codes
) -> Bool[Tensor, "b ..."]:
    """Which codes the quantizer gives too if one channel of the latents is moved a little."""
    latents = part.tokenizer.encode(*given)
    step = ROUNDING * latents.abs().mean()
    found = torch.zeros_like(codes, dtype=torch.bool)
    for channel in range(latents.shape[1]):
        for move in (step, -step):
            moved = latents.clone()
            moved[:, channel] += move
            found |= part.tokenizer.quantize(moved).codes == codes
    return found
