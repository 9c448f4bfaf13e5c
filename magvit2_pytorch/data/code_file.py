"""Code files: the codes of one video or image, and all that decoding them needs to know.

A code file is a safetensors file. It holds one tensor `codes` (`j y x`, or `j y x q` for several
codebooks), in the smallest integers that fit the codebook, and a header in JSON. Neither can run
code. The header's format has a version: a file of a newer one is refused, never misread.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Int
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor

from magvit2_pytorch.data.replace_file import replacing
from magvit2_pytorch.data.unusable import UnusableMedia
from magvit2_pytorch.functional import padded_num_frames
from magvit2_pytorch.state_file import shared_as_usual
from magvit2_pytorch.version import __version__

CODE_SUFFIX = ".codes.safetensors"
FORMAT = "magvit2-codes"
FORMAT_VERSION = 1

OneVideosCodes = Int[Tensor, "j y x"] | Int[Tensor, "j y x q"]
"""Codes of one video, with no batch axis."""


@dataclass(frozen=True, kw_only=True)
class CodeHeader:
    """What the codes were made from, and by which tokenizer."""

    kind: Literal["video", "image"]
    """An image is decoded to an image again, though to a tokenizer it is a video of one frame."""
    num_frames: int
    """Frames of the video, before the last one was repeated to fill a latent frame."""
    height: int
    """Rows of a frame, after resizing and before padding."""
    width: int
    """Columns of a frame, after resizing and before padding."""
    padding: tuple[int, int]
    """Rows below and columns to the right that were added to fill latent cells."""
    fps: float | None
    """Frames a second; None for an image."""
    grid: tuple[int, int, int]
    """Latent frames, rows and columns."""
    codebook_size: int
    num_codebooks: int
    time_factor: int
    """Frames to a latent frame, the first one excepted."""
    space_factor: int
    """Pixels to the side of a latent cell."""
    tokenizer: str
    """The name or path by which the tokenizer was given."""
    fingerprint: str
    """Of the tokenizer's configuration and weights: other ones do not understand these codes."""
    source: str
    """Name of the file that was coded."""
    library_version: str = __version__
    """Of magvit2_pytorch."""

    def __post_init__(self):
        positive = ("num_frames", "height", "width", "codebook_size", "num_codebooks",
                    "time_factor", "space_factor")  # fmt: skip
        for name in positive:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it is at least 1")
        if self.kind not in ("video", "image"):
            raise ValueError(f"kind is {self.kind!r}: use 'video' or 'image'")
        if (self.fps is None) != (self.kind == "image"):
            raise ValueError(f"fps is {self.fps}: a video has one, an image has none")
        if self.kind == "image" and self.num_frames != 1:
            raise ValueError(f"num_frames is {self.num_frames}: an image is one frame")
        frames = (padded_num_frames(self.num_frames, self.time_factor) - 1) // self.time_factor + 1
        sides = (self.height + self.padding[0], self.width + self.padding[1])
        expected = (frames, *(side // self.space_factor for side in sides))
        if self.grid != expected or any(side % self.space_factor for side in sides):
            raise ValueError(
                f"a grid of {self.grid} does not fit {self.num_frames} frames of {self.height} x "
                f"{self.width} padded by {self.padding}"
            )

    @property
    def codes_shape(self) -> tuple[int, ...]:
        """The grid, and a codebook axis where there are several."""
        return (*self.grid, self.num_codebooks) if self.num_codebooks > 1 else self.grid

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON has them."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "CodeHeader":
        """From plain values; raises `ValueError` on keys that are missing or not known."""
        known = {field.name for field in fields(cls)}
        wrong = known ^ set(values)
        if wrong:
            raise ValueError(f"the header lacks or does not know {', '.join(sorted(wrong))}")
        # JSON has lists only.
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def write_codes(path: str | os.PathLike, codes: OneVideosCodes, header: CodeHeader) -> None:
    """Writes a code file; it appears whole or not at all, and its folder is made if need be.

    Raises `ValueError` where the codes are not those that the header speaks of.
    """
    _check_codes(codes, header)
    array = codes.detach().cpu().numpy().astype(stored_dtype(header.codebook_size))
    metadata = {
        "format": FORMAT,
        "version": str(FORMAT_VERSION),
        "header": json.dumps(header.to_dict()),
    }
    with replacing(path) as part, shared_as_usual(part):
        save_file({"codes": np.ascontiguousarray(array)}, part, metadata=metadata)


def read_codes(path: str | os.PathLike) -> tuple[OneVideosCodes, CodeHeader]:
    """The codes, int64, and their header.

    Raises `UnusableMedia` (a `ValueError`) where the file is missing, damaged, no code file, or
    written by a newer version of this library.
    """
    try:
        with safe_open(os.fspath(path), framework="np") as file:
            header = _read_header(file.metadata() or {})
            if "codes" not in list(file.keys()):
                raise ValueError("is damaged: it holds no codes")
            array = file.get_tensor("codes")
        if array.dtype.kind not in "iu":
            raise ValueError(f"is damaged: its codes are {array.dtype}, no integers")
        codes = torch.from_numpy(array.astype(np.int64))
        _check_codes(codes, header)
    except FileNotFoundError as error:
        raise UnusableMedia(path, "the file is missing") from error
    except OSError as error:
        raise UnusableMedia(path, f"cannot be read ({error})") from error
    except SafetensorError as error:
        reason = "is empty" if Path(path).stat().st_size == 0 else f"is damaged or foreign: {error}"
        raise UnusableMedia(path, reason) from error
    except ValueError as error:
        raise UnusableMedia(path, str(error)) from error
    return codes, header


def stored_dtype(codebook_size: int) -> np.dtype:
    """The smallest of uint16, int32 and int64 that holds every index of a codebook."""
    for dtype in (np.uint16, np.int32):
        if codebook_size - 1 <= np.iinfo(dtype).max:
            return np.dtype(dtype)
    return np.dtype(np.int64)


def _read_header(metadata: Mapping[str, str]) -> CodeHeader:
    if metadata.get("format") != FORMAT:
        raise ValueError("is no code file: `magvit2 tokenize` and write_codes make them")
    version = metadata.get("version", "")
    if not version.isdecimal():
        raise ValueError(f"is damaged: its format has version {version!r}")
    if int(version) > FORMAT_VERSION:
        raise ValueError(
            f"has format version {version}, this magvit2_pytorch ({__version__}) knows "
            f"{FORMAT_VERSION}: upgrade it to read this file"
        )
    try:
        return CodeHeader.from_dict(json.loads(metadata["header"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"is damaged: its header cannot be used ({error})") from error


def _check_codes(codes: Tensor, header: CodeHeader) -> None:
    if codes.is_floating_point() or codes.dtype == torch.bool:
        raise ValueError(f"codes are {codes.dtype}: give integers, as tokenize does")
    if tuple(codes.shape) != header.codes_shape:
        raise ValueError(
            f"codes have shape {tuple(codes.shape)}, their header speaks of {header.codes_shape}"
        )
    low, high = int(codes.min()), int(codes.max())
    if low < 0 or high >= header.codebook_size:
        raise ValueError(
            f"codes reach from {low} to {high}, their codebook has {header.codebook_size}"
        )
