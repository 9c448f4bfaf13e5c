"""Code files: codes of one video or image, with metadata for decoding.

A code file is a safetensors file. It holds one tensor `codes` (`j y x`, or `j y x q` for several
codebooks) in the smallest integer type that fits the codebook, a JSON header, and a checksum.
Loading it never executes code. The format has a version; files of a newer version are refused.
"""

import json
import os
import sys
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from jaxtyping import Int
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor

from magvit2_pytorch.atomic import replacing
from magvit2_pytorch.functional import padded_num_frames
from magvit2_pytorch.media.unusable import UnusableMedia
from magvit2_pytorch.types import MediaKind, Precision
from magvit2_pytorch.version import __version__
from magvit2_pytorch.weights import default_file_mode

CODE_SUFFIX = ".codes.safetensors"
FORMAT = "magvit2-codes"
FORMAT_VERSION = 1

VideoCodes = Int[Tensor, "j y x"] | Int[Tensor, "j y x q"]
"""Codes of one video, without a batch axis."""


class NewerFormat(ValueError):
    """The format version of a file is newer than this library."""


@dataclass(frozen=True, kw_only=True)
class CodeHeader:
    """Metadata of codes: size and rate of the video, and the tokenizer."""

    kind: MediaKind
    """To a tokenizer an image is a video of one frame; decoding gives an image again."""
    num_frames: int
    """Frames of the video, without repeats of the last frame that fill a latent frame."""
    height: int
    """Height of a frame in pixels, after resizing and before padding."""
    width: int
    """Width of a frame in pixels, after resizing and before padding."""
    padding: tuple[int, int]
    """Rows added below and columns added at the right to fill latent cells."""
    fps: float | None
    """Frames per second; None for an image."""
    grid: tuple[int, int, int]
    """Number of latent frames, rows and columns."""
    codebook_size: int
    num_codebooks: int
    time_factor: int
    """Frames per latent frame, except the first, which has one."""
    space_factor: int
    """Side of a latent cell in pixels."""
    tokenizer: str
    """Name or path of the tokenizer, as the user gave it."""
    fingerprint: str
    """Hash of the tokenizer's configuration and weights; only this tokenizer decodes the codes."""
    source: str
    """Name of the file that was encoded."""
    library_version: str = __version__
    """Version of magvit2_pytorch that wrote the file."""

    def __post_init__(self):
        positive = ("num_frames", "height", "width", "codebook_size", "num_codebooks",
                    "time_factor", "space_factor")  # fmt: skip
        for name in positive:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: give at least 1")
        if self.kind not in ("video", "image"):
            raise ValueError(f"kind is {self.kind!r}: use 'video' or 'image'")
        if (self.fps is None) != (self.kind == "image"):
            raise ValueError(f"fps is {self.fps}: a video needs a number, an image None")
        if self.kind == "image" and self.num_frames != 1:
            raise ValueError(f"num_frames is {self.num_frames}: an image has one frame")
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
        """The grid, with a codebook axis last if there are several codebooks."""
        return (*self.grid, self.num_codebooks) if self.num_codebooks > 1 else self.grid

    def to_dict(self) -> dict[str, Any]:
        """Converts the header to JSON values."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "CodeHeader":
        """Reads JSON values; raises `ValueError` on missing and unknown keys."""
        known = {field.name for field in fields(cls)}
        wrong = known ^ set(values)
        if wrong:
            raise ValueError(f"missing or unknown in the header: {', '.join(sorted(wrong))}")
        # JSON has lists only; and the headers of a corpus repeat the same few strings.
        convert = {list: tuple, str: sys.intern}
        return cls(**{k: convert.get(type(v), lambda v: v)(v) for k, v in values.items()})


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Source file and settings that codes were made from.

    Equal origins and equal tokenizers give equal codes.
    """

    path: str
    """Path of the source file, relative to the folder that was tokenized."""
    num_bytes: int
    mtime_ns: int
    """Time of its last change, from the file system."""
    size: int | None
    """Requested short side in pixels; None for the size of the file."""
    precision: Precision

    @classmethod
    def from_file(
        cls, file: str | os.PathLike, path: str, size: int | None, precision: Precision
    ) -> "Origin":
        """Origin with the file's current state; raises `OSError` if it is missing."""
        stat = os.stat(file)
        return cls(
            path=path,
            num_bytes=stat.st_size,
            mtime_ns=stat.st_mtime_ns,
            size=size,
            precision=precision,
        )

    @classmethod
    def from_json(cls, text: str) -> "Origin":
        """Parses what `to_json` wrote; raises `ValueError` on anything else."""
        values = json.loads(text)
        types = dict(path=str, num_bytes=int, mtime_ns=int, size=int | None, precision=str)
        if not isinstance(values, dict) or values.keys() != types.keys():
            raise ValueError("is damaged: an origin has missing or unknown keys")
        wrong = [name for name, type_ in types.items() if not isinstance(values[name], type_)]
        if values["precision"] not in get_args(Precision):
            wrong.append("precision")
        if wrong:
            raise ValueError(f"is damaged: {wrong[0]} of an origin is {values[wrong[0]]!r}")
        return cls(**values)

    def to_json(self) -> str:
        """One line of ASCII, also for file names that are not UTF-8."""
        return json.dumps(asdict(self))


def write_codes(
    path: str | os.PathLike,
    codes: VideoCodes,
    header: CodeHeader,
    origin: Origin | None = None,
) -> None:
    """Writes a code file atomically; creates its folder if needed.

    With `origin` a later run can skip this file. Raises `ValueError` if codes and header do not
    match.
    """
    array = storage_array(codes, header)
    metadata = {"format": FORMAT, "version": str(FORMAT_VERSION)}
    metadata |= video_metadata(array, header, origin)
    with replacing(path) as part, default_file_mode(part):
        save_file({"codes": array}, part, metadata=metadata)


def video_metadata(
    array: np.ndarray, header: CodeHeader, origin: Origin | None = None
) -> dict[str, str]:
    """Metadata of one video in a file: header, origin if given, checksum."""
    metadata = {"header": json.dumps(header.to_dict())}
    if origin is not None:
        metadata["origin"] = origin.to_json()
    return {**metadata, "checksum": codes_checksum(array, metadata_crc(metadata))}


def metadata_crc(metadata: Mapping[str, str]) -> int:
    """CRC-32 of the header and the origin of one video."""
    return zlib.crc32(json.dumps([metadata["header"], metadata.get("origin")]).encode())


def codes_checksum(array: np.ndarray, crc: int) -> str:
    """CRC-32 of metadata followed by codes; `crc` is that of the metadata."""
    codes = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(-1).view(np.uint8)
    return f"{zlib.crc32(codes, crc):08x}"


def read_code_header(path: str | os.PathLike) -> CodeHeader:
    """Reads the header without the codes; raises as `read_codes` does."""
    with reading_errors(path), safe_open(os.fspath(path), framework="np") as file:
        metadata = file.metadata() or {}
        check_format(metadata)
        return parse_header(metadata)


def read_codes(path: str | os.PathLike) -> tuple[VideoCodes, CodeHeader]:
    """Reads the codes, as int64, and their header.

    Raises `UnusableMedia` (a `ValueError`) if the file is missing, damaged, not a code file, or
    written by a newer version of this library.
    """
    with reading_errors(path):
        with safe_open(os.fspath(path), framework="np") as file:
            metadata = file.metadata() or {}
            check_format(metadata)
            header = parse_header(metadata)
            if "codes" not in list(file.keys()):
                raise ValueError("is damaged: it holds no codes")
            array = file.get_tensor("codes")
        if array.dtype.kind not in "iu":
            raise ValueError(f"is damaged: its codes are {array.dtype}, not integers")
        codes = torch.from_numpy(array.astype(np.int64))
        check_codes(codes, header)
        verify_checksum(array, metadata_crc(metadata), metadata.get("checksum"))
    return codes, header


@contextmanager
def reading_errors(path: str | os.PathLike) -> Iterator[None]:
    """Turns errors while reading codes into `UnusableMedia` with the file's name."""
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


def storage_array(codes: VideoCodes, header: CodeHeader) -> np.ndarray:
    """Converts codes to the integer type of files, after `check_codes`."""
    check_codes(codes, header)
    array = codes.detach().cpu().numpy().astype(_storage_dtype(header.codebook_size))
    return np.ascontiguousarray(array)


def _storage_dtype(codebook_size: int) -> np.dtype:
    """Smallest of uint16, int32 and int64 for indices of a codebook."""
    for dtype in (np.uint16, np.int32):
        if codebook_size - 1 <= np.iinfo(dtype).max:
            return np.dtype(dtype)
    return np.dtype(np.int64)


def verify_checksum(array: np.ndarray, crc: int, expected: str | None) -> None:
    """Raises `ValueError` if metadata or codes changed after they were written."""
    if codes_checksum(array, crc) != expected:
        raise ValueError("is damaged: the checksum does not match codes and header")


def check_format(metadata: Mapping[str, str], expected: str = FORMAT) -> None:
    """Raises `ValueError` on another format or an unknown version."""
    if metadata.get("format") != expected:
        raise ValueError("is not a code file: create one with `magvit2 tokenize` or write_codes")
    version = metadata.get("version", "")
    if not version.isdecimal():
        raise ValueError(f"is damaged: its format has version {version!r}")
    if int(version) > FORMAT_VERSION:
        raise NewerFormat(
            f"has format version {version}; this magvit2_pytorch ({__version__}) reads up to "
            f"{FORMAT_VERSION}: upgrade it to read this file"
        )


def parse_header(metadata: Mapping[str, str]) -> CodeHeader:
    """Parses the header in a video's metadata; raises `ValueError` on errors."""
    try:
        return CodeHeader.from_dict(json.loads(metadata["header"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"is damaged: its header cannot be used ({error})") from error


def check_codes(codes: Tensor, header: CodeHeader) -> None:
    """Raises `ValueError` unless codes are integers of the header's shape and codebook."""
    if codes.is_floating_point() or codes.dtype == torch.bool:
        raise ValueError(f"codes are {codes.dtype}: give integers, as tokenize does")
    if tuple(codes.shape) != header.codes_shape:
        raise ValueError(
            f"codes have shape {tuple(codes.shape)}, but their header requires {header.codes_shape}"
        )
    low, high = int(codes.min()), int(codes.max())
    if low < 0 or high >= header.codebook_size:
        raise ValueError(
            f"codes reach from {low} to {high}, but the codebook has {header.codebook_size} entries"
        )
