"""Shards: safetensors files that hold the codes of many videos.

A shard holds the tensors "000000", "000001", ... and, in the file's metadata, a header, an origin
and a checksum for each of them ("000000.header", ...), and one checksum over all of these. This
module reads shards and code files: opening a file reads the metadata of its videos and no codes,
which are read later from their offset.
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

from magvit2_pytorch.atomic import replacing
from magvit2_pytorch.codes.code_file import (
    FORMAT,
    FORMAT_VERSION,
    CodeHeader,
    NewerFormat,
    Origin,
    VideoCodes,
    check_codes,
    check_format,
    metadata_crc,
    parse_header,
    reading_errors,
    storage_array,
    verify_checksum,
    video_metadata,
)
from magvit2_pytorch.media.unusable import UnusableMedia
from magvit2_pytorch.weights import default_file_mode

SHARD_FORMAT = "magvit2-code-shard"
MAX_METADATA_BYTES = 10_000_000
"""Metadata of a shard, enough for some 15,000 videos; safetensors refuses 100 MB and more."""


class ShardName(NamedTuple):
    """File name of a shard; in this order, later codes take precedence."""

    run: int
    """Number of earlier runs on this folder."""
    rank: int
    """Rank of the process that wrote the shard."""
    number: int
    """Number of the shard among those of this process in this run."""

    def __str__(self) -> str:
        return f"codes-{self.run:04}-{self.rank:05}-{self.number:05}.safetensors"

    @classmethod
    def parse(cls, name: str) -> "ShardName | None":
        """Parses a file name; None if it does not name a shard."""
        match = re.fullmatch(r"codes-(\d{4,})-(\d{5,})-(\d{5,})\.safetensors", name)
        return cls(*map(int, match.groups())) if match else None


class DamagedCodes(UnusableMedia):
    """A shard or code file whose contents changed after it was written."""


class CodesLocation(NamedTuple):
    """File, byte offset, type and shape of a video's stored codes."""

    file: Path
    offset: int
    dtype: np.dtype
    shape: tuple[int, ...]


class StoredVideo(NamedTuple):
    """Metadata of one video in a shard or code file."""

    key: str
    """Name of the tensor."""
    location: CodesLocation
    header: CodeHeader
    origin: Origin | None
    """Present in every shard, optional in a code file."""
    crc: int
    """CRC-32 of header and origin as the file holds them."""
    checksum: str | None
    """CRC-32 of header, origin and codes, in hexadecimal; None if the file lacks it."""


class ShardWriter:
    """Collects codes of videos and writes a shard whenever there are enough.

    A shard has up to `max_bytes`, or holds one larger video. The writer needs that much memory,
    and twice as much while it writes. `first` is the name of the first shard.
    """

    def __init__(self, folder: str | os.PathLike, first: ShardName, max_bytes: int):
        if max_bytes < 1:
            raise ValueError(f"max_bytes is {max_bytes}: give at least 1")
        self.folder = Path(folder)
        self.name = first
        self.max_bytes = max_bytes
        self._videos: list[tuple[np.ndarray, dict[str, str]]] = []
        self._code_bytes = self._metadata_bytes = 0

    def add(self, codes: VideoCodes, header: CodeHeader, origin: Origin) -> Path | None:
        """Adds a video, after writing a shard that would become too large.

        Returns the path of the shard if one was written. Raises `ValueError` if codes and header
        do not match.
        """
        array = storage_array(codes, header)
        metadata = video_metadata(array, header, origin)
        metadata_bytes = self._metadata_bytes + sum(map(len, metadata.values()))
        code_bytes = self._code_bytes + array.nbytes
        if code_bytes + metadata_bytes > self.max_bytes or metadata_bytes > MAX_METADATA_BYTES:
            written = self.flush()
        else:
            written = None
        self._videos.append((array, metadata))
        self._code_bytes += array.nbytes
        self._metadata_bytes += sum(map(len, metadata.values()))
        return written

    def flush(self) -> Path | None:
        """Writes the collected videos, if any, as a shard, atomically.

        Raises `FileExistsError` if another process writes shards of the same names.
        """
        if not self._videos:
            return None
        path = self.folder / str(self.name)
        if path.exists():
            raise FileExistsError(
                f"{path} already exists: another process of rank {self.name.rank} writes here too"
            )
        arrays, video_texts = {}, {}
        for number, (array, metadata) in enumerate(self._videos):
            key = f"{number:06}"
            arrays[key] = array
            video_texts |= {f"{key}.{name}": text for name, text in metadata.items()}
        file_metadata = {
            "format": SHARD_FORMAT,
            "version": str(FORMAT_VERSION),
            "checksum": _checksum(video_texts),
            **video_texts,
        }
        with replacing(path) as part, default_file_mode(part):
            save_file(arrays, part, metadata=file_metadata)
        self.name = self.name._replace(number=self.name.number + 1)
        self._videos, self._code_bytes, self._metadata_bytes = [], 0, 0
        return path


def list_videos(path: str | os.PathLike) -> list[StoredVideo]:
    """Reads the metadata of all videos in a shard or code file.

    Raises `DamagedCodes` if the file is truncated or its metadata changed, and another
    `UnusableMedia` if it is missing or written by a newer version of this library.
    """
    path = Path(path)
    try:
        with reading_errors(path):
            # The version is checked before the rest, which a newer one may have changed.
            with safe_open(os.fspath(path), framework="np") as file:
                metadata = file.metadata() or {}
            single = metadata.get("format") == FORMAT
            check_format(metadata, FORMAT if single else SHARD_FORMAT)
            return _single_video(path, metadata) if single else _shard_videos(path, metadata)
    except UnusableMedia as error:
        if isinstance(error.__cause__, OSError | NewerFormat):
            raise
        raise DamagedCodes(error.path, error.reason) from error


def load_codes(location: CodesLocation, start: int = 0, stop: int | None = None) -> VideoCodes:
    """Reads only latent frames `start` to `stop` of a video, as int64."""
    file, offset, dtype, shape = location
    frames = range(*slice(start, stop).indices(shape[0]))
    codes_per_frame = int(np.prod(shape[1:]))
    with reading_errors(file):
        offset += frames.start * codes_per_frame * dtype.itemsize
        count = len(frames) * codes_per_frame
        array = np.fromfile(file, dtype, count, offset=offset)
        if len(array) != count:
            raise DamagedCodes(file, "is damaged: it ends before its codes do")
    codes = array.reshape(len(frames), *shape[1:])
    return torch.from_numpy(codes.astype(np.int64))


def verify_codes(video: StoredVideo) -> None:
    """Raises `DamagedCodes` if a video's codes changed after they were written."""
    codes = load_codes(video.location)
    try:
        check_codes(codes, video.header)
        verify_checksum(codes.numpy().astype(video.location.dtype), video.crc, video.checksum)
    except ValueError as error:
        reason = str(error).removeprefix("is damaged: ")
        reason = f"is damaged: {video.header.source}: {reason}"
        raise DamagedCodes(video.location.file, reason) from error


def _single_video(path: Path, metadata: Mapping[str, str]) -> list[StoredVideo]:
    locations = _locations(path)
    if "codes" not in locations:
        raise ValueError("is damaged: it holds no codes")
    return [_stored_video("codes", locations["codes"], metadata)]


def _shard_videos(path: Path, metadata: Mapping[str, str]) -> list[StoredVideo]:
    video_texts = {name: text for name, text in metadata.items() if "." in name}
    videos: dict[str, dict[str, str]] = {}
    for name, text in video_texts.items():
        key, _, field = name.partition(".")
        videos.setdefault(key, {})[field] = text
    locations = _locations(path)
    complete = all(video.keys() == {"header", "origin", "checksum"} for video in videos.values())
    intact = metadata.get("checksum") == _checksum(video_texts)
    if not intact or not complete or set(videos) != set(locations):
        raise ValueError("is damaged: its metadata changed after it was written")
    return [_stored_video(key, locations[key], videos[key]) for key in sorted(videos)]


def _stored_video(key: str, location: CodesLocation, metadata: Mapping[str, str]) -> StoredVideo:
    header = parse_header(metadata)
    if location.shape != header.codes_shape:
        raise ValueError(
            f"is damaged: codes of shape {location.shape}, but the header requires "
            f"{header.codes_shape}"
        )
    origin = Origin.from_json(metadata["origin"]) if "origin" in metadata else None
    crc = metadata_crc(metadata)
    return StoredVideo(key, location, header, origin, crc, metadata.get("checksum"))


def _locations(path: Path) -> dict[str, CodesLocation]:
    """Location of each tensor, which safetensors checks but does not expose."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        tensors = json.loads(file.read(length))
    tensors.pop("__metadata__", None)
    return {
        key: CodesLocation(
            file=path,
            offset=8 + length + tensor["data_offsets"][0],
            dtype=_dtype(tensor["dtype"]),
            shape=tuple(tensor["shape"]),
        )
        for key, tensor in tensors.items()
    }


def _dtype(name: str) -> np.dtype:
    """NumPy type of a safetensors type name such as U16."""
    if name[0] not in "UI":
        raise ValueError(f"is damaged: its codes are {name}, not integers")
    return np.dtype(f"<{name[0].lower()}{int(name[1:]) // 8}")


def _checksum(video_texts: Mapping[str, str]) -> str:
    return f"{zlib.crc32(json.dumps(video_texts, sort_keys=True).encode()):08x}"
