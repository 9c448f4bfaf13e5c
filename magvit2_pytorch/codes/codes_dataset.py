"""Dataset of stored codes, to train a generator on."""

import math
import os
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch.utils.data import Dataset

from magvit2_pytorch.atomic import as_path, normalized
from magvit2_pytorch.codes.code_file import (
    CODE_SUFFIX,
    CodeFile,
    DamagedCodes,
    ShardName,
    load_codes,
)
from magvit2_pytorch.codes.code_header import CodedVideo, CodeHeader, VideoCodes
from magvit2_pytorch.config import check_at_least_one
from magvit2_pytorch.media.sources import walk

# Some 40 bytes per video: a corpus may have millions, and every worker holds all rows.
_COLUMNS = np.dtype(
    [
        ("file", np.int32),
        ("index", np.int32),
        ("shape", np.int32),
        ("num_frames", np.int64),
        ("height", np.int32),
        ("width", np.int32),
        ("fps", np.float64),
    ]
)


class CodesItem(NamedTuple):
    """Codes and metadata of an item, for torch's default collation."""

    codes: VideoCodes
    """int64, latent frames first."""
    path: str
    """Path of the video relative to the folder that was tokenized, or of the code file."""
    start: int
    """Index of the first latent frame of the window in its video."""
    num_frames: int
    """Number of frames of the whole video."""
    height: int
    width: int
    fps: float
    """Frames per second; NaN for an image."""


class CodesDataset(Dataset):
    """Videos or windows of videos from a folder of stored codes.

    The folder holds shards, code files, or both, as `magvit2 tokenize` writes them. An item is a
    whole video, or a window of `num_latent_frames`, the first axis of its codes. Windows start
    every `stride` latent frames (default: `num_latent_frames`); a shorter rest at the end of a
    video is left out. Only a window with `start` 0 contains the latent of a single frame. Items are
    sorted by path, then by time.

    Opening reads the headers; an item reads its own codes. If a video was tokenized twice, the
    later codes are used. Raises `FileNotFoundError` or `ValueError` if there are no codes or no
    windows, `ValueError` if the codes come from different tokenizers, and `UnusableMedia` (a
    `ValueError`) if a file is damaged.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        num_latent_frames: int | None = None,
        stride: int | None = None,
    ):
        check_at_least_one(num_latent_frames=num_latent_frames, stride=stride)
        if stride is not None and num_latent_frames is None:
            raise ValueError("stride is the step between windows: also give num_latent_frames")
        self.folder = as_path(folder)
        self.num_latent_frames = num_latent_frames
        self.stride = stride or num_latent_frames
        self._files = _code_files(self.folder)
        self._read_headers()
        # Number of items up to and including each video.
        self._ends = np.cumsum(self._count_windows())

    @property
    def codebook_size(self) -> int:
        """Size of the codebook; codes are below it."""
        return self._common.codebook_size

    @property
    def digit_levels(self) -> tuple[int, ...]:
        """Number of values of each digit of a code, least significant first."""
        return self._common.digit_levels

    @property
    def num_codebooks(self) -> int:
        """Length of the codes' last axis, which is absent if 1."""
        return self._common.num_codebooks

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the tokenizer that made the codes."""
        return self._common.fingerprint

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, number: int) -> CodesItem:
        video, start = self._locate(number)
        num_latents = self.num_latent_frames or self._shapes[self._rows[video]["shape"]][0]
        return self.window(video, start, start + num_latents)

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shape of the codes of each video, in order of `paths`."""
        return [self._shapes[row["shape"]] for row in self._rows]

    @property
    def is_sequence(self) -> bool:
        """Codes are sequences of tokens, of a 1-D tokenizer, not grids."""
        return len(self._shapes[0]) - (self.num_codebooks > 1) == 1

    def grid(self, video: int) -> tuple[int, int, int]:
        """Latent frames, rows and columns of a video's codes.

        Of a sequence they are its parts, 1, and the tokens of a part. A last part of fewer frames
        than the others is left out, as its tokens mean something else.
        """
        row = self._rows[video]
        shape, num_frames = self._shapes[row["shape"]], int(row["num_frames"])
        if not self.is_sequence:
            return shape[:3]
        part = self._common.time_factor
        num_tokens, rest = divmod(shape[0], -(-num_frames // part))
        if rest:
            raise ValueError(
                f"the {shape[0]} codes of {self.paths[video]} in {self.folder} do not divide among "
                f"parts of {part} of its {num_frames} frames: tokenize it again"
            )
        return num_frames // part, 1, num_tokens

    def window(self, video: int, start: int, stop: int) -> CodesItem:
        """Latent frames `start` to `stop`, excluded, of the video with this number."""
        row = self._rows[video]
        file, shape = self._files[row["file"]], self._shapes[row["shape"]]
        codes = load_codes(file, int(row["index"]), shape, self._common.dtype, start, stop)
        # On a GPU an index out of range raises an error that does not name the file.
        if int(codes.min()) < 0 or int(codes.max()) >= self.codebook_size:
            raise DamagedCodes(
                file, f"is damaged: codes of {self.paths[video]} are outside the codebook"
            )
        return CodesItem(
            codes=codes,
            path=self.paths[video],
            start=start,
            num_frames=int(row["num_frames"]),
            height=int(row["height"]),
            width=int(row["width"]),
            fps=float(row["fps"]),
        )

    def header(self, number: int) -> CodedVideo:
        """Metadata of an item's video for `decode_file`, read from the file."""
        row = self._rows[self._locate(number)[0]]
        return CodeFile(self._files[row["file"]]).videos[row["index"]]

    def _read_headers(self) -> None:
        self._common: CodeHeader | None = None
        rows, paths, shapes = [], [], {}
        for number, path in enumerate(self._files):
            file = CodeFile(path)
            self._check_tokenizer(path, file.header)
            values = [
                (
                    number,
                    index,
                    shapes.setdefault(video.shape, len(shapes)),
                    video.num_frames,
                    video.height,
                    video.width,
                    math.nan if video.fps is None else video.fps,
                )
                for index, video in enumerate(file.videos)
            ]
            rows.append(np.array(values, _COLUMNS))
            paths += [self._path(path, video) for video in file.videos]
        # Files are sorted by name, so the last row of a path has its latest codes.
        last = {path: index for index, path in enumerate(paths)}
        self.paths, self._shapes = sorted(last), list(shapes)
        """Path of each video, and the shapes that occur."""
        self._rows = np.concatenate(rows)[[last[path] for path in self.paths]]

    def _check_tokenizer(self, path: Path, header: CodeHeader) -> None:
        if self._common is None:
            self._common, self._first_file = header, path
        common, names = self._common, ("fingerprint", "digit_levels", "num_codebooks")
        if any(getattr(header, name) != getattr(common, name) for name in names):
            raise ValueError(
                f"{self.folder} holds codes of different tokenizers: {self._first_file} is from "
                f"{common.tokenizer} (fingerprint {common.fingerprint[:12]}), {path} from "
                f"{header.tokenizer} (fingerprint {header.fingerprint[:12]}); open a folder with "
                "codes of one tokenizer"
            )

    def _path(self, file: Path, video: CodedVideo) -> str:
        """Path that identifies a video in all shards of the folder."""
        relative = file.relative_to(self.folder)
        if ShardName.parse(file.name) is None:
            return normalized(relative.as_posix())
        return normalized((relative.parent / video.source).as_posix())

    def _count_windows(self) -> np.ndarray:
        if self.num_latent_frames is None:
            return np.ones(len(self._rows), np.int64)
        lengths = np.array([shape[0] for shape in self._shapes])[self._rows["shape"]]
        last_start = lengths - self.num_latent_frames
        counts = np.where(last_start < 0, 0, last_start // self.stride + 1)
        num_short = int((counts == 0).sum())
        if num_short == len(counts):
            raise ValueError(
                f"none of the {num_short} videos in {self.folder} has {self.num_latent_frames} "
                f"latent frames: the longest has {lengths.max()}"
            )
        if num_short:
            warnings.warn(
                f"{num_short} of {len(counts)} videos in {self.folder} have fewer than "
                f"{self.num_latent_frames} latent frames and are left out",
                stacklevel=3,
            )
        return counts

    def _locate(self, number: int) -> tuple[int, int]:
        """Number of an item's video, and the item's first latent frame."""
        if not 0 <= number < len(self):
            raise IndexError(f"item {number} of {len(self)}")
        video = int(np.searchsorted(self._ends, number, side="right"))
        before = int(self._ends[video - 1]) if video else 0
        return video, (number - before) * (self.stride or 0)


def _code_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise FileNotFoundError(
            f"there is no folder {folder}: give a folder of code files or shards"
        )
    files = [
        path
        for path in walk(folder)
        if ShardName.parse(path.name) or path.name.lower().endswith(CODE_SUFFIX)
    ]
    if not files:
        raise ValueError(
            f"{folder} holds no codes: create some with `magvit2 tokenize VIDEOS -o FOLDER`"
        )
    return sorted(files, key=lambda path: (path.parent, ShardName.parse(path.name) or (), path))
