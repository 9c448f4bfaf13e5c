"""Code files: the codes of one video or image, and all that decoding them needs to know.

A code file is a safetensors file. It holds one tensor `codes` (`j y x`, or `j y x q` for several
codebooks), in the smallest integers that fit the codebook, a header in JSON and a checksum of both.
None of it can run code. The format has a version: a file of a newer one is refused, never misread.
"""

import json
import os
import sys
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Int
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor

from magvit2_pytorch.data.replace_file import replacing
from magvit2_pytorch.data.unusable import UnusableMedia
from magvit2_pytorch.functional import padded_num_frames
from magvit2_pytorch.state_file import default_file_mode
from magvit2_pytorch.types import Precision
from magvit2_pytorch.version import __version__

CODE_SUFFIX = ".codes.safetensors"
FORMAT = "magvit2-codes"
FORMAT_VERSION = 1

OneVideosCodes = Int[Tensor, "j y x"] | Int[Tensor, "j y x q"]
"""Codes of one video, with no batch axis."""


class NewerFormat(ValueError):
    """A file of a version of this library to come."""


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
        # JSON has lists only; and a corpus has the same few texts a million times.
        kinds = {list: tuple, str: sys.intern}
        return cls(**{k: kinds.get(type(v), lambda v: v)(v) for k, v in values.items()})


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Which file was coded, as it was then, and how.

    Where all of it and the tokenizer are the same, so are the codes.
    """

    path: str
    """Its place below the folder that was given."""
    num_bytes: int
    mtime_ns: int
    """When it was last changed, as its file system has it."""
    size: int | None
    """Pixels on the short side that were asked for; None for the file's own."""
    precision: Precision

    @classmethod
    def of(cls, file: str | os.PathLike, path: str, size: int | None, precision: Precision):
        """That of a file as it is now; raises `OSError` where there is none."""
        now = os.stat(file)
        about = dict(num_bytes=now.st_size, mtime_ns=now.st_mtime_ns)
        return cls(path=path, size=size, precision=precision, **about)

    @classmethod
    def from_json(cls, text: str) -> "Origin":
        """Raises `ValueError` on a text that `to_json` did not write."""
        values = json.loads(text)
        kinds = dict(path=str, num_bytes=int, mtime_ns=int, size=int | None, precision=str)
        if not isinstance(values, dict) or values.keys() != kinds.keys():
            raise ValueError("is damaged: an origin lacks or has too many names")
        wrong = [name for name, kind in kinds.items() if not isinstance(values[name], kind)]
        if values["precision"] not in get_args(Precision):
            wrong.append("precision")
        if wrong:
            raise ValueError(f"is damaged: an origin's {wrong[0]} is {values[wrong[0]]!r}")
        return cls(**values)

    def to_json(self) -> str:
        """One line, in ASCII: names of files need not be text."""
        return json.dumps(asdict(self))


def write_codes(
    path: str | os.PathLike,
    codes: OneVideosCodes,
    header: CodeHeader,
    origin: Origin | None = None,
) -> None:
    """Writes a code file; it appears whole or not at all, and its folder is made if need be.

    `origin` lets a later run see that this was done. Raises `ValueError` where the codes are not
    those that the header speaks of.
    """
    array = stored_array(codes, header)
    metadata = {"format": FORMAT, "version": str(FORMAT_VERSION), **texts_of(array, header, origin)}
    with replacing(path) as part, default_file_mode(part):
        save_file({"codes": array}, part, metadata=metadata)


def texts_of(array: np.ndarray, header: CodeHeader, origin: Origin | None = None) -> dict[str, str]:
    """What a file says of one video beside its codes: header, origin if there is one, checksum."""
    about = {"header": json.dumps(header.to_dict())}
    if origin is not None:
        about["origin"] = origin.to_json()
    return {**about, "checksum": checksum(array, texts_crc(about))}


def texts_crc(about: Mapping[str, str]) -> int:
    """CRC-32 of what is said of one video, less the checksum."""
    return zlib.crc32(json.dumps([about["header"], about.get("origin")]).encode())


def checksum(array: np.ndarray, crc: int) -> str:
    """CRC-32 of one video's texts, whose own is `crc`, and its codes."""
    codes = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(-1).view(np.uint8)
    return f"{zlib.crc32(codes, crc):08x}"


def read_code_header(path: str | os.PathLike) -> CodeHeader:
    """The header alone, without the codes; raises as `read_codes` does."""
    with reading(path), safe_open(os.fspath(path), framework="np") as file:
        metadata = file.metadata() or {}
        check_format(metadata)
        return read_header(metadata)


def read_codes(path: str | os.PathLike) -> tuple[OneVideosCodes, CodeHeader]:
    """The codes, int64, and their header.

    Raises `UnusableMedia` (a `ValueError`) where the file is missing, damaged, no code file, or
    written by a newer version of this library.
    """
    with reading(path):
        with safe_open(os.fspath(path), framework="np") as file:
            metadata = file.metadata() or {}
            check_format(metadata)
            header = read_header(metadata)
            if "codes" not in list(file.keys()):
                raise ValueError("is damaged: it holds no codes")
            array = file.get_tensor("codes")
        if array.dtype.kind not in "iu":
            raise ValueError(f"is damaged: its codes are {array.dtype}, no integers")
        codes = torch.from_numpy(array.astype(np.int64))
        check_codes(codes, header)
        check_sum(array, texts_crc(metadata), metadata.get("checksum"))
    return codes, header


@contextmanager
def reading(path: str | os.PathLike) -> Iterator[None]:
    """What goes wrong inside with a file of codes becomes `UnusableMedia`, with its name."""
    try:
        yield
    except UnusableMedia:
        raise
    except FileNotFoundError as error:
        raise UnusableMedia(path, "the file is missing") from error
    except OSError as error:
        raise UnusableMedia(path, f"cannot be read ({error})") from error
    except SafetensorError as error:
        reason = "is empty" if Path(path).stat().st_size == 0 else f"is damaged or foreign: {error}"
        raise UnusableMedia(path, reason) from error
    except ValueError as error:
        raise UnusableMedia(path, str(error)) from error


def stored_array(codes: OneVideosCodes, header: CodeHeader) -> np.ndarray:
    """The codes as files hold them; raises `ValueError` unless the header speaks of them."""
    check_codes(codes, header)
    array = codes.detach().cpu().numpy().astype(stored_dtype(header.codebook_size))
    return np.ascontiguousarray(array)


def stored_dtype(codebook_size: int) -> np.dtype:
    """The smallest of uint16, int32 and int64 that holds every index of a codebook."""
    for dtype in (np.uint16, np.int32):
        if codebook_size - 1 <= np.iinfo(dtype).max:
            return np.dtype(dtype)
    return np.dtype(np.int64)


def check_sum(array: np.ndarray, crc: int, expected: str | None) -> None:
    """Raises `ValueError` unless texts and codes are those that were written.

    Files of before there were checksums have none.
    """
    if expected is not None and checksum(array, crc) != expected:
        raise ValueError("is damaged: codes or header are not those that were written")


def check_format(metadata: Mapping[str, str], expected: str = FORMAT) -> None:
    """Raises `ValueError` unless a file is of this format, and of a version that is known."""
    if metadata.get("format") != expected:
        raise ValueError("is no code file: `magvit2 tokenize` and write_codes make them")
    version = metadata.get("version", "")
    if not version.isdecimal():
        raise ValueError(f"is damaged: its format has version {version!r}")
    if int(version) > FORMAT_VERSION:
        raise NewerFormat(
            f"has format version {version}, this magvit2_pytorch ({__version__}) knows "
            f"{FORMAT_VERSION}: upgrade it to read this file"
        )


def read_header(metadata: Mapping[str, str]) -> CodeHeader:
    """The header among a video's texts; raises `ValueError` where it cannot be used."""
    try:
        return CodeHeader.from_dict(json.loads(metadata["header"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"is damaged: its header cannot be used ({error})") from error


def check_codes(codes: Tensor, header: CodeHeader) -> None:
    """Raises `ValueError` unless these are integers of the header's shape and codebook."""
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
