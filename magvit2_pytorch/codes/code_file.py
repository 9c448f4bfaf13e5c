"""Files with the codes of one or more videos, and their metadata.

A code file is a safetensors file. It holds a tensor for each video, "000000", "000001" and so on,
of any shape and in the smallest integer type that fits the codebook. Its metadata are JSON texts:
the header, an entry for each video under the name of its tensor, with the CRC-32 of its codes, and
the CRC-32 of these texts. Opening a file reads no codes. Files of a newer version are refused.
"""

import json
import os
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from magvit2_pytorch.atomic import as_path, replacing
from magvit2_pytorch.codes.code_header import CodedVideo, CodeHeader, VideoCodes, from_json, to_json
from magvit2_pytorch.config import check_at_least_one
from magvit2_pytorch.media.unusable import UnusableMedia
from magvit2_pytorch.version import __version__
from magvit2_pytorch.weights import default_file_mode

CODE_SUFFIX = ".codes.safetensors"
"""Suffix of files with the codes of one video; `ShardName` names files with those of many."""
FORMAT = "magvit2-codes"
FORMAT_VERSION = 1
MAX_METADATA_BYTES = 10_000_000
"""Metadata of a shard, enough for some 50,000 videos; safetensors refuses 100 MB and more."""
MAX_OPEN_FILES = 256
"""Files that a process keeps open; each takes about 350 bytes of memory per video in it."""


class DamagedCodes(UnusableMedia):
    """Not a code file, or one that changed after it was written."""


class CodeFile:
    """Metadata of all videos in a file; `read` reads their codes.

    Raises `DamagedCodes` if the file is truncated, changed or no code file, and another
    `UnusableMedia` (a `ValueError`) if it is missing or of a newer version of this library.
    """

    header: CodeHeader
    videos: list[CodedVideo]

    def __init__(self, path: str | os.PathLike):
        self.path = as_path(path)
        with _reading_errors(self.path):
            with safe_open(os.fspath(self.path), framework="np") as file:
                metadata, num_videos = file.metadata() or {}, len(file.keys())
            self._check_format(metadata)
            try:
                self._parse(metadata, num_videos)
            except (KeyError, TypeError, AttributeError, ValueError) as error:
                text = f"is damaged: its metadata cannot be used ({error})"
                raise DamagedCodes(self.path, text) from error

    def read(self, index: int = 0, start: int = 0, stop: int | None = None) -> VideoCodes:
        """Codes of a video, int64; `start` and `stop` along the first axis."""
        shape = self.videos[index].shape
        return load_codes(self.path, index, shape, self.header.dtype, start, stop)

    def read_verified(self, index: int = 0) -> VideoCodes:
        """All codes of a video; raises `DamagedCodes` if they have changed."""
        video = self.videos[index]
        codes = self.read(index)
        with _reading_errors(self.path):
            if _crc(codes.numpy().astype(self.header.dtype)) != self._crcs[index]:
                raise ValueError(f"is damaged: the codes of {video.source} have changed")
            video.check_codes(codes)
        return codes

    def _check_format(self, metadata: Mapping[str, str]) -> None:
        """Checks the version first: a newer one may have changed the rest."""
        if metadata.get("format") != FORMAT:
            raise ValueError(
                "is not a code file: create one with `magvit2 tokenize` or write_codes"
            )
        version = metadata.get("version", "")
        if not version.isdecimal():
            raise ValueError(f"is damaged: its format has version {version!r}")
        if int(version) > FORMAT_VERSION:
            raise UnusableMedia(
                self.path,
                f"has format version {version}; this magvit2_pytorch ({__version__}) reads up to "
                f"{FORMAT_VERSION}: upgrade it to read this file",
            )

    def _parse(self, metadata: dict[str, str], num_videos: int) -> None:
        keys = [_key(index) for index in range(num_videos)]
        if set(metadata) != {"format", "version", "header", "checksum", *keys}:
            raise ValueError("texts are missing or unknown")
        if not num_videos:
            raise ValueError("it is of no video")
        if metadata["checksum"] != metadata_checksum(metadata):
            raise ValueError("their checksum does not match")
        self.header = from_json(CodeHeader, json.loads(metadata["header"]))
        entries = [json.loads(metadata[key]) for key in keys]
        self._crcs = [entry.pop("crc") for entry in entries]
        self.videos = [from_json(CodedVideo, entry, header=self.header) for entry in entries]


def read_codes(path: str | os.PathLike) -> tuple[VideoCodes, CodedVideo]:
    """Reads codes, as int64, and metadata of a file with one video.

    Raises `UnusableMedia` (a `ValueError`) if it holds several, and as `CodeFile` does.
    """
    file = CodeFile(path)
    if len(file.videos) != 1:
        raise UnusableMedia(path, f"holds {len(file.videos)} videos: read them with CodeFile")
    return file.read_verified(), file.videos[0]


def load_codes(
    path: str | os.PathLike,
    index: int,
    shape: tuple[int, ...],
    dtype: np.dtype,
    start: int = 0,
    stop: int | None = None,
) -> VideoCodes:
    """Reads a part of codes, along the first axis, as int64."""
    part = range(*slice(start, stop).indices(shape[0]))
    with _reading_errors(path):
        stat = os.stat(path)
        file = _open(os.fspath(path), stat.st_ino, stat.st_size, stat.st_mtime_ns)
        tensor = file.get_slice(_key(index))
        stored = (tuple(tensor.get_shape()), tensor.get_dtype())
        if stored != (shape, f"{dtype.kind.upper()}{dtype.itemsize * 8}"):
            raise ValueError(
                f"is damaged: codes of shape {stored[0]} and type {stored[1]}, but the metadata "
                f"require {shape} and {dtype}"
            )
        # safetensors refuses an empty part at the end.
        array = tensor[part.start : part.stop] if part else np.empty((0, *shape[1:]))
    return torch.from_numpy(array.astype(np.int64))


def write_codes(path: str | os.PathLike, codes: VideoCodes, video: CodedVideo) -> None:
    """Writes the codes of one video atomically; creates the folder if needed.

    Raises `ValueError` if codes and metadata do not match.
    """
    _write(as_path(path), video.header, [_prepare(codes, video)])


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


class ShardWriter:
    """Collects codes of videos and writes them in shards, files of many.

    A shard has up to `max_bytes`, or holds one larger video. The writer needs that much memory,
    and twice as much while it writes. `first` is the name of the first shard.
    """

    def __init__(self, folder: str | os.PathLike, first: ShardName, max_bytes: int):
        check_at_least_one(max_bytes=max_bytes)
        self.folder = as_path(folder)
        self.name = first
        self.max_bytes = max_bytes
        self._header: CodeHeader | None = None
        self._videos: list[tuple[np.ndarray, str]] = []
        self._code_bytes = self._metadata_bytes = 0

    def add(self, codes: VideoCodes, video: CodedVideo) -> Path | None:
        """Adds a video, after writing a shard that would become too large.

        Returns the path of the shard if one was written. Raises `ValueError` if codes and metadata
        do not match, or if the header differs from that of the first video.
        """
        if self._header not in (None, video.header):
            raise ValueError(
                f"codes of {video.source} were made with another tokenizer or other options than "
                "those before: write them to another folder"
            )
        array, entry = _prepare(codes, video)
        self._header = video.header
        metadata_bytes = self._metadata_bytes + len(entry)
        is_full = self._code_bytes + array.nbytes + metadata_bytes > self.max_bytes
        written = self.flush() if is_full or metadata_bytes > MAX_METADATA_BYTES else None
        self._videos.append((array, entry))
        self._code_bytes += array.nbytes
        self._metadata_bytes += len(entry)
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
        _write(path, self._header, self._videos)
        self.name = self.name._replace(number=self.name.number + 1)
        self._videos, self._code_bytes, self._metadata_bytes = [], 0, 0
        return path


def metadata_checksum(metadata: Mapping[str, str]) -> str:
    """CRC-32 of all texts but the checksum itself, in hexadecimal."""
    texts = {name: text for name, text in metadata.items() if name != "checksum"}
    return f"{zlib.crc32(json.dumps(texts, sort_keys=True).encode()):08x}"


def _prepare(codes: VideoCodes, video: CodedVideo) -> tuple[np.ndarray, str]:
    """Codes and entry as the file holds them."""
    video.check_codes(codes)
    array = codes.detach().cpu().numpy().astype(video.header.dtype, order="C")
    return array, to_json(video, crc=_crc(array))


def _write(path: Path, header: CodeHeader, videos: Sequence[tuple[np.ndarray, str]]) -> None:
    arrays = {_key(index): array for index, (array, _) in enumerate(videos)}
    metadata = {"format": FORMAT, "version": str(FORMAT_VERSION), "header": to_json(header)}
    metadata |= {_key(index): entry for index, (_, entry) in enumerate(videos)}
    metadata["checksum"] = metadata_checksum(metadata)
    with replacing(path) as part, default_file_mode(part):
        save_file(arrays, part, metadata=metadata)


def _key(index: int) -> str:
    """Name of a video's tensor and entry."""
    return f"{index:06}"


def _crc(array: np.ndarray) -> str:
    return f"{zlib.crc32(np.ascontiguousarray(array)):08x}"


@lru_cache(maxsize=MAX_OPEN_FILES)
def _open(path: str, *state: int) -> safe_open:
    """An open file, mapped to memory; another `state` opens it again."""
    return safe_open(path, framework="np")


@contextmanager
def _reading_errors(path: str | os.PathLike) -> Iterator[None]:
    """Turns errors of reading into `UnusableMedia`, and wrong contents into `DamagedCodes`."""
    try:
        yield
    except UnusableMedia:
        raise
    except FileNotFoundError as error:
        raise UnusableMedia(path, "the file is missing") from error
    except OSError as error:
        raise UnusableMedia(path, f"cannot be read ({error})") from error
    except SafetensorError as error:
        is_empty = Path(path).stat().st_size == 0
        reason = "is empty" if is_empty else f"is damaged or foreign: {error}"
        raise DamagedCodes(path, reason) from error
    except ValueError as error:
        raise DamagedCodes(path, str(error)) from error
