"""Metadata of stored codes: headers of files, entries of videos."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from types import UnionType
from typing import Any, get_args

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from magvit2_pytorch.atomic import as_path
from magvit2_pytorch.config import to_tuples
from magvit2_pytorch.types import MediaKind, Precision
from magvit2_pytorch.version import __version__

VideoCodes = Int[Tensor, "..."]
"""Codes of one video, without a batch axis: `j y x` for a grid, `k` for a sequence.

Several codebooks or residual levels have a last axis `q`.
"""


TICKS_PER_S = 10_000
"""Unit of the times of frames; rounding is not heard or seen, and numbers stay short."""


def in_ticks(durations: Sequence[float] | None, num_frames: int) -> tuple[int, ...] | None:
    """Durations of frames for `CodedVideo`, whose sums are rounded, not they themselves."""
    if durations is None:
        return None
    # A damaged file may have other frames than its index.
    seconds = np.append(durations, np.full(num_frames, np.mean(durations)))[:num_frames]
    ends = np.rint(np.cumsum(seconds) * TICKS_PER_S).astype(np.int64)
    return tuple(np.maximum(np.diff(ends, prepend=0), 1).tolist())


def file_state(path: str | os.PathLike) -> str | None:
    """Size and modification time of a file; None without a file."""
    try:
        stat = os.stat(as_path(path))
    except OSError:
        return None
    return f"{stat.st_size} B, {stat.st_mtime_ns} ns"


@dataclass(frozen=True, kw_only=True)
class CodeHeader:
    """Tokenizer and options of a file; equal ones give equal codes."""

    tokenizer: str = field(compare=False)
    """Name or path of the tokenizer, as the user gave it."""
    fingerprint: str
    """Hash of the tokenizer's configuration and weights; only this tokenizer decodes the codes."""
    digit_levels: tuple[int, ...]
    """Number of values of each digit of a code, least significant first (`Quantizer`)."""
    num_codebooks: int
    """Codebooks or residual levels; if several, the last axis of the codes."""
    time_factor: int
    """Frames per latent frame."""
    space_factor: int
    """Side of a latent cell in pixels."""
    size: int | None = None
    """Requested short side in pixels; None for the size of each file."""
    precision: Precision = "fp32"
    num_tokens: int | str | None = None
    """Requested tokens of each part of a video, of a 1-D tokenizer; None for its own number."""
    library_version: str = field(default=__version__, compare=False)
    """Version of magvit2_pytorch that made the codes."""

    def __post_init__(self):
        _check(self, str, "tokenizer", "fingerprint", "library_version")
        _check(self, int, "num_codebooks", "time_factor", "space_factor", minimum=1)
        _check(self, int | None, "size", minimum=1)
        _check(self, int | str | None, "num_tokens")
        _check_integers(self, "digit_levels", 2)
        if self.codebook_size > 2**63:
            raise ValueError(f"digit_levels {self.digit_levels}: their product must fit 63 bits")
        if self.precision not in get_args(Precision):
            raise ValueError(f"precision is {self.precision!r}: use one of {get_args(Precision)}")

    @property
    def codebook_size(self) -> int:
        """Number of codes in one codebook."""
        return math.prod(self.digit_levels)

    @property
    def dtype(self) -> np.dtype:
        """Type of codes in files: the smallest of uint16, int32 and int64."""
        for dtype in ("<u2", "<i4"):
            if self.codebook_size - 1 <= np.iinfo(dtype).max:
                return np.dtype(dtype)
        return np.dtype("<i8")


@dataclass(frozen=True, kw_only=True)
class CodedVideo:
    """Size and rate of a video or image, and its codes' shape."""

    header: CodeHeader
    source: str
    """Path of the file that was encoded, relative to the folder that was tokenized."""
    kind: MediaKind
    """To a tokenizer an image is a video of one frame; decoding gives an image again."""
    num_frames: int
    """Frames of the video, without repeats of the last frame that fill a latent frame."""
    height: int
    """Height of a frame in pixels, after resizing and before padding."""
    width: int
    """Width of a frame in pixels, after resizing and before padding."""
    fps: float | None
    """Frames per second; None for an image."""
    shape: tuple[int, ...]
    """Shape of the codes, of any number of axes."""
    state: str | None = None
    """The source's `file_state` when it was encoded; None if it was not a file."""
    primaries: int = 1
    """Colour primaries by their number in ITU-T H.273; 1 is Rec. 709."""
    transfer: int = 1
    """Transfer characteristics by the same standard."""
    durations: tuple[int, ...] | None = None
    """Ticks of 1 / `TICKS_PER_S` that each frame is shown; None at an even rate."""

    def __post_init__(self):
        _check(self, str, "source")
        _check(self, int, "num_frames", "height", "width", minimum=1)
        _check(self, float | int | None, "fps")
        _check(self, str | None, "state")
        _check_integers(self, "shape", 1)
        _check(self, int, "primaries", "transfer", minimum=0)
        if self.durations is not None:
            _check_integers(self, "durations", 1)
            if len(self.durations) != self.num_frames:
                raise ValueError(f"{len(self.durations)} durations of {self.num_frames} frames")
        if self.kind not in get_args(MediaKind):
            raise ValueError(f"kind is {self.kind!r}: use 'video' or 'image'")
        if (self.fps is None) != (self.kind == "image"):
            raise ValueError(f"fps is {self.fps}: a video needs a number, an image None")
        if self.kind == "image" and self.num_frames != 1:
            raise ValueError(f"num_frames is {self.num_frames}: an image has one frame")
        num_codebooks = self.header.num_codebooks
        if num_codebooks > 1 and (len(self.shape) < 2 or self.shape[-1] != num_codebooks):
            raise ValueError(
                f"codes of shape {self.shape} do not have {num_codebooks} codebooks on their last "
                "axis"
            )

    @property
    def durations_s(self) -> list[float] | None:
        """Seconds that each frame is shown; None at an even rate."""
        return self.durations and [ticks / TICKS_PER_S for ticks in self.durations]

    def check_codes(self, codes: VideoCodes) -> None:
        """Raises `ValueError` unless codes are integers of this shape and codebook."""
        if codes.is_floating_point() or codes.dtype == torch.bool:
            raise ValueError(f"codes are {codes.dtype}: give integers, as tokenize does")
        if tuple(codes.shape) != self.shape:
            raise ValueError(
                f"codes have shape {tuple(codes.shape)}, but their metadata require {self.shape}"
            )
        low, high, size = int(codes.min()), int(codes.max()), self.header.codebook_size
        if low < 0 or high >= size:
            raise ValueError(
                f"codes reach from {low} to {high}, but the codebook has {size} entries"
            )


def to_json(metadata: CodeHeader | CodedVideo, **more: Any) -> str:
    """JSON of a header or an entry (without its header), in ASCII."""
    names = [field.name for field in fields(metadata) if field.name != "header"]
    # Files without it can be read by versions that do not know it.
    names = [n for n in names if n != "num_tokens" or getattr(metadata, n) is not None]
    return json.dumps(
        {name: getattr(metadata, name) for name in names} | more, separators=(",", ":")
    )


def from_json(
    cls: type[CodeHeader] | type[CodedVideo], values: Mapping[str, Any], **more: Any
) -> CodeHeader | CodedVideo:
    """Inverse of `to_json`; `ValueError` if keys are missing or unknown."""
    if not isinstance(values, dict):
        raise ValueError(f"metadata are {values!r}, not a JSON object")
    values = to_tuples(values) | more
    optional = {field.name for field in fields(cls) if field.default is not MISSING}
    if wrong := ({field.name for field in fields(cls)} ^ set(values)) - (optional - set(values)):
        raise ValueError(f"missing or unknown in the metadata: {', '.join(sorted(wrong))}")
    return cls(**values)


def _check(owner: Any, types: type | UnionType, *names: str, minimum: int | None = None) -> None:
    """Raises `ValueError` unless these fields have the type and the minimum."""
    for name in names:
        value = getattr(owner, name)
        if not isinstance(value, types):
            raise ValueError(f"{name} is {value!r}: give {getattr(types, '__name__', types)}")
        if minimum is not None and value is not None and value < minimum:
            raise ValueError(f"{name} is {value}: give at least {minimum}")


def _check_integers(owner: Any, name: str, minimum: int) -> None:
    """Raises `ValueError` unless the field is a tuple of integers."""
    values = getattr(owner, name)
    are_integers = isinstance(values, tuple) and all(isinstance(value, int) for value in values)
    if not values or not are_integers or min(values) < minimum:
        raise ValueError(f"{name} is {values!r}: give a tuple of integers, at least {minimum}")
