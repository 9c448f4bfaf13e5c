"""Stored codes as training examples: whole videos, or windows of a fixed number of latent frames.

For whoever trains a generator on what `magvit2 tokenize` wrote. No tokenizer is needed, only the
files.
"""

import math
import os
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import Dataset

from magvit2_pytorch.data.code_file import CODE_SUFFIX, CodeHeader, reading
from magvit2_pytorch.data.code_shards import (
    DamagedCodes,
    Place,
    ShardName,
    StoredVideo,
    load_codes,
    stored_videos,
)
from magvit2_pytorch.data.sources import walk

# A hundred bytes a video: a corpus may have millions, and every worker holds them.
_COLUMNS = np.dtype(
    [
        ("file", np.int32),
        ("key", np.int32),
        ("offset", np.int64),
        ("dtype", "S3"),
        ("shape", np.int32, 4),
        ("num_frames", np.int64),
        ("height", np.int32),
        ("width", np.int32),
        ("fps", np.float64),
    ]
)


class CodesItem(NamedTuple):
    """Codes and what they were made of; torch's default collation makes batches of it."""

    codes: Int[Tensor, "j y x"] | Int[Tensor, "j y x q"]
    """int64, latent frames first."""
    path: str
    """Of the video, below the folder that was tokenized; of a code file its own path."""
    start: int
    """The latent frame of the video that the window begins with."""
    num_frames: int
    """Frames of the whole video."""
    height: int
    width: int
    fps: float
    """Frames a second; NaN for an image."""


class CodesDataset(Dataset):
    """Videos, or windows of them, from a folder of shards, code files, or both.

    Without `num_latent_frames` an item is a whole video. With it, an item is a window of so many
    latent frames; windows begin every `stride` latent frames (side by side if not given), and
    what is left at a video's end is in none of them. Only a window at `start` 0 holds the latent
    that stands for one frame alone. Items are in the order of their paths, then of time, whichever
    process tokenized them; which item is which depends on the files alone.

    Opening reads the headers, an item reads its own codes. Of an input that was tokenized twice,
    the later codes count. Raises `FileNotFoundError` or `ValueError` where there are no codes or
    no window, where the codes are not all of one tokenizer, and `UnusableMedia` (a `ValueError`)
    where a file is damaged.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        num_latent_frames: int | None = None,
        stride: int | None = None,
    ):
        for name, value in (("num_latent_frames", num_latent_frames), ("stride", stride)):
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}: at least 1")
        if stride is not None and num_latent_frames is None:
            raise ValueError("stride is the step between windows: give num_latent_frames too")
        self.folder = Path(folder).expanduser()
        self.num_latent_frames = num_latent_frames
        self.stride = stride or num_latent_frames
        self._files = _code_files(self.folder)
        self._read_headers()
        # The number of the first item after each video.
        self._ends = np.cumsum(self._count_windows())

    @property
    def codebook_size(self) -> int:
        """Codes are from 0 to this less one."""
        return self._common.codebook_size

    @property
    def num_codebooks(self) -> int:
        """The length of the codes' last axis; there is none for 1."""
        return self._common.num_codebooks

    @property
    def fingerprint(self) -> str:
        """Of the tokenizer that made all these codes."""
        return self._common.fingerprint

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, number: int) -> CodesItem:
        video, start = self._locate(number)
        row, place = self._rows[video], self._place(video)
        length = place.shape[0] if self.num_latent_frames is None else self.num_latent_frames
        codes = load_codes(place, start, start + length)
        # An index out of range would stop a GPU without a word of which file it was.
        if int(codes.min()) < 0 or int(codes.max()) >= self.codebook_size:
            raise DamagedCodes(
                place.file, f"is damaged: codes of {self._paths[video]} are not in the codebook"
            )
        return CodesItem(
            codes=codes,
            path=self._paths[video],
            start=start,
            num_frames=int(row["num_frames"]),
            height=int(row["height"]),
            width=int(row["width"]),
            fps=float(row["fps"]),
        )

    def header(self, number: int) -> CodeHeader:
        """All that is known of an item's video: what `decode_file` wants beside its codes.

        Reads the headers of the whole shard again.
        """
        row = self._rows[self._locate(number)[0]]
        return stored_videos(self._files[row["file"]])[row["key"]].header

    def _read_headers(self) -> None:
        self._common: CodeHeader | None = None
        rows, paths = [], []
        for number, file in enumerate(self._files):
            videos = stored_videos(file)
            for video in videos:
                self._check_tokenizer(file, video.header)
            with reading(file):
                rows.append(np.array([_row(number, k, v) for k, v in enumerate(videos)], _COLUMNS))
            paths += [self._path(file, video) for video in videos]
        if not paths:
            raise ValueError(f"{self.folder} holds shards without videos")
        # Files come in the order of their names, so that of one path the last one is the latest.
        last = {path: place for place, path in enumerate(paths)}
        self._paths = sorted(last)
        self._rows = np.concatenate(rows)[[last[path] for path in self._paths]]

    def _check_tokenizer(self, file: Path, header: CodeHeader) -> None:
        common = self._common
        if common is None:
            self._common, self._first_file = header, file
        elif _meaning(header) != _meaning(common):
            raise ValueError(
                f"{self.folder} holds codes of different tokenizers, which mean different "
                f"things: {self._first_file} is of {common.tokenizer} (fingerprint "
                f"{common.fingerprint[:12]}), {file} of {header.tokenizer} (fingerprint "
                f"{header.fingerprint[:12]}): open a folder that holds codes of one"
            )

    def _path(self, file: Path, video: StoredVideo) -> str:
        """What tells a video from all others, whichever shard it is in."""
        place = file.relative_to(self.folder)
        if ShardName.parse(file.name) is None:
            return place.as_posix()
        return (place.parent / video.origin.path).as_posix()

    def _count_windows(self) -> np.ndarray:
        if self.num_latent_frames is None:
            return np.ones(len(self._rows), np.int64)
        room = self._rows["shape"][:, 0].astype(np.int64) - self.num_latent_frames
        counts = np.where(room < 0, 0, room // self.stride + 1)
        num_short = int((counts == 0).sum())
        if num_short == len(counts):
            raise ValueError(
                f"none of the {num_short} videos in {self.folder} has {self.num_latent_frames} "
                f"latent frames: the longest has {self._rows['shape'][:, 0].max()}"
            )
        if num_short:
            warnings.warn(
                f"{num_short} of {len(counts)} videos in {self.folder} have fewer than "
                f"{self.num_latent_frames} latent frames and are left out",
                stacklevel=3,
            )
        return counts

    def _locate(self, number: int) -> tuple[int, int]:
        """The video that an item is of, and the latent frame that it begins with."""
        if not 0 <= number < len(self):
            raise IndexError(f"item {number} of {len(self)}")
        video = int(np.searchsorted(self._ends, number, side="right"))
        before = int(self._ends[video - 1]) if video else 0
        return video, (number - before) * (self.stride or 0)

    def _place(self, video: int) -> Place:
        row = self._rows[video]
        shape = tuple(row["shape"].tolist())
        shape = shape if self.num_codebooks > 1 else shape[:3]
        dtype = np.dtype(row["dtype"].decode())
        return Place(self._files[row["file"]], int(row["offset"]), dtype, shape)


def _code_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}: give one that holds codes")
    files = [
        path
        for path in walk(folder)
        if ShardName.parse(path.name) or path.name.lower().endswith(CODE_SUFFIX)
    ]
    if not files:
        raise ValueError(f"{folder} holds no codes: `magvit2 tokenize VIDEOS -o FOLDER` makes them")
    return sorted(files, key=lambda path: (path.parent, ShardName.parse(path.name) or (), path))


def _meaning(header: CodeHeader) -> tuple:
    return header.fingerprint, header.codebook_size, header.num_codebooks


def _row(file: int, key: int, video: StoredVideo) -> tuple:
    header, shape = video.header, video.place.shape
    return (
        file,
        key,
        video.place.offset,
        video.place.dtype.str,
        (*shape, 1) if len(shape) == 3 else shape,
        header.num_frames,
        header.height,
        header.width,
        math.nan if header.fps is None else header.fps,
    )
