"""Shards: safetensors files that hold the codes of many videos, each with its header.

A shard is to many videos what a code file is to one: the tensors "000000", "000001", ... and, in
the file's metadata, for each of them a header, an origin and a checksum ("000000.header", ...), and
one checksum over all these texts. Both kinds of file are read here by place: opening one reads
what is said of its videos, and no codes.
"""

import json
import os
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import save_file

from magvit2_pytorch.data.code_file import (
    FORMAT,
    FORMAT_VERSION,
    CodeHeader,
    NewerFormat,
    OneVideosCodes,
    Origin,
    check_codes,
    check_format,
    check_sum,
    read_header,
    reading,
    stored_array,
    texts_crc,
    texts_of,
)
from magvit2_pytorch.data.replace_file import replacing
from magvit2_pytorch.data.unusable import UnusableMedia
from magvit2_pytorch.state_file import default_file_mode

SHARD_FORMAT = "magvit2-code-shard"
MAX_TEXT_BYTES = 10_000_000
"""In a shard, enough for some 15,000 videos. Safetensors refuses headers from 100 MB."""


class ShardName(NamedTuple):
    """`codes-0001-00003-00012.safetensors`: in this order, later ones count before earlier ones."""

    run: int
    """How many runs on this folder came before."""
    rank: int
    """Of the process that wrote it."""
    number: int
    """Of this process's shards in this run."""

    def __str__(self) -> str:
        return f"codes-{self.run:04}-{self.rank:05}-{self.number:05}.safetensors"

    @classmethod
    def parse(cls, name: str) -> "ShardName | None":
        """None for any other file's name."""
        found = re.fullmatch(r"codes-(\d{4,})-(\d{5,})-(\d{5,})\.safetensors", name)
        return cls(*map(int, found.groups())) if found else None


class DamagedCodes(UnusableMedia):
    """A shard or code file that is not as it was written."""


class Place(NamedTuple):
    """Where in a file the codes of one video begin, and what they are there."""

    file: Path
    offset: int
    dtype: np.dtype
    shape: tuple[int, ...]


class StoredVideo(NamedTuple):
    """What a file says of one of its videos."""

    key: str
    """The name of its tensor."""
    place: Place
    header: CodeHeader
    origin: Origin | None
    """Always there in a shard."""
    crc: int
    """CRC-32 of the texts as they stand in the file."""
    checksum: str | None
    """Of the texts and the codes."""


class ShardWriter:
    """Gathers the codes of videos, and writes them as a shard whenever there are enough.

    A shard has up to `max_bytes`, or one video that has more; so much is held in memory, and as
    much again while it is written. `first` is the name of the first one.
    """

    def __init__(self, folder: str | os.PathLike, first: ShardName, max_bytes: int):
        if max_bytes < 1:
            raise ValueError(f"a shard of {max_bytes} bytes holds nothing: at least 1")
        self.folder = Path(folder)
        self.name = first
        self.max_bytes = max_bytes
        self._videos: list[tuple[np.ndarray, dict[str, str]]] = []
        self._code_bytes = self._text_bytes = 0

    def add(self, codes: OneVideosCodes, header: CodeHeader, origin: Origin) -> Path | None:
        """Takes a video; what was gathered before is written first if both are too much.

        Returns the shard that was written, if one was. Raises `ValueError` where the codes are
        not those that the header speaks of.
        """
        array = stored_array(codes, header)
        about = texts_of(array, header, origin)
        text_bytes = self._text_bytes + sum(map(len, about.values()))
        code_bytes = self._code_bytes + array.nbytes
        if code_bytes + text_bytes > self.max_bytes or text_bytes > MAX_TEXT_BYTES:
            written = self.flush()
        else:
            written = None
        self._videos.append((array, about))
        self._code_bytes += array.nbytes
        self._text_bytes += sum(map(len, about.values()))
        return written

    def flush(self) -> Path | None:
        """Writes what was gathered, if anything, as a shard that appears whole or not at all.

        Raises `FileExistsError` where another process writes under the same names.
        """
        if not self._videos:
            return None
        path = self.folder / str(self.name)
        if path.exists():
            raise FileExistsError(
                f"{path} has appeared: another process of rank {self.name.rank} writes here too"
            )
        keyed = {f"{number:06}": video for number, video in enumerate(self._videos)}
        said = {
            f"{key}.{name}": text
            for key, (_, about) in keyed.items()
            for name, text in about.items()
        }
        metadata = {
            "format": SHARD_FORMAT,
            "version": str(FORMAT_VERSION),
            "checksum": _checksum(said),
            **said,
        }
        with replacing(path) as part, default_file_mode(part):
            save_file({key: array for key, (array, _) in keyed.items()}, part, metadata=metadata)
        self.name = self.name._replace(number=self.name.number + 1)
        self._videos, self._code_bytes, self._text_bytes = [], 0, 0
        return path


def stored_videos(path: str | os.PathLike) -> list[StoredVideo]:
    """All videos of a shard or code file; reads their headers and none of their codes.

    Raises `DamagedCodes` where the file is cut off or its headers are not as they were written,
    and another `UnusableMedia` where it is missing or made by a newer version of this library.
    """
    path = Path(path)
    try:
        with reading(path):
            # What the texts are worth is asked after the version: a newer one may differ.
            with safe_open(os.fspath(path), framework="np") as file:
                metadata = file.metadata() or {}
            single = metadata.get("format") == FORMAT
            check_format(metadata, FORMAT if single else SHARD_FORMAT)
            return _single_video(path, metadata) if single else _shard_videos(path, metadata)
    except UnusableMedia as error:
        if isinstance(error.__cause__, OSError | NewerFormat):
            raise
        raise DamagedCodes(error.path, error.reason) from error


def load_codes(place: Place, start: int = 0, stop: int | None = None) -> OneVideosCodes:
    """Latent frames `start` to `stop` of a video's codes, int64; reads no others."""
    frames = range(*slice(start, stop).indices(place.shape[0]))
    per_frame = int(np.prod(place.shape[1:]))
    with reading(place.file):
        offset = place.offset + frames.start * per_frame * place.dtype.itemsize
        count = len(frames) * per_frame
        array = np.fromfile(place.file, place.dtype, count, offset=offset)
        if len(array) != count:
            raise DamagedCodes(place.file, "is damaged: it ends before its codes do")
    codes = array.reshape(len(frames), *place.shape[1:])
    return torch.from_numpy(codes.astype(np.int64))


def check_stored(video: StoredVideo) -> None:
    """Reads a video's codes and raises `DamagedCodes` unless they are those that were written."""
    codes = load_codes(video.place)
    try:
        check_codes(codes, video.header)
        check_sum(codes.numpy().astype(video.place.dtype), video.crc, video.checksum)
    except ValueError as error:
        reason = str(error).removeprefix("is damaged: ")
        reason = f"is damaged: of {video.header.source}, {reason}"
        raise DamagedCodes(video.place.file, reason) from error


def _single_video(path: Path, metadata: Mapping[str, str]) -> list[StoredVideo]:
    places = _places(path)
    if "codes" not in places:
        raise ValueError("is damaged: it holds no codes")
    return [_stored("codes", places["codes"], metadata)]


def _shard_videos(path: Path, metadata: Mapping[str, str]) -> list[StoredVideo]:
    about: dict[str, dict[str, str]] = {}
    said = {name: text for name, text in metadata.items() if "." in name}
    for name, text in said.items():
        key, _, what = name.partition(".")
        about.setdefault(key, {})[what] = text
    places = _places(path)
    whole = all(names.keys() == {"header", "origin", "checksum"} for names in about.values())
    if metadata.get("checksum") != _checksum(said) or not whole or set(about) != set(places):
        raise ValueError("is damaged: its headers are not those that were written")
    return [_stored(key, places[key], about[key]) for key in sorted(about)]


def _stored(key: str, place: Place, about: Mapping[str, str]) -> StoredVideo:
    header = read_header(about)
    if place.shape != header.codes_shape:
        raise ValueError(
            f"is damaged: codes of shape {place.shape}, where a header speaks of "
            f"{header.codes_shape}"
        )
    origin = Origin.from_json(about["origin"]) if "origin" in about else None
    return StoredVideo(key, place, header, origin, texts_crc(about), about.get("checksum"))


def _places(path: Path) -> dict[str, Place]:
    """Where each tensor lies, which safetensors checks and does not tell."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        tensors = json.loads(file.read(length))
    tensors.pop("__metadata__", None)
    return {
        key: Place(
            file=path,
            offset=8 + length + about["data_offsets"][0],
            dtype=_dtype(about["dtype"]),
            shape=tuple(about["shape"]),
        )
        for key, about in tensors.items()
    }


def _dtype(name: str) -> np.dtype:
    """Of safetensors' name for it, such as U16 or I32; files are little-endian."""
    if name[0] not in "UI":
        raise ValueError(f"is damaged: its codes are {name}, no integers")
    return np.dtype(f"<{name[0].lower()}{int(name[1:]) // 8}")


def _checksum(said: Mapping[str, str]) -> str:
    return f"{zlib.crc32(json.dumps(said, sort_keys=True).encode()):08x}"
