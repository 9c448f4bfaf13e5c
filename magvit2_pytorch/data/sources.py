"""From what the user names (a folder, a list, a table, a file) to the media files in it.

Only names are read here, never contents: thousands of files cost one walk over the folder.
"""

import csv
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from magvit2_pytorch.seeds import keyed_seed
from magvit2_pytorch.types import MediaKind

T = TypeVar("T")

VIDEO_SUFFIXES = (
    ".mp4", ".webm", ".mkv", ".avi", ".mov", ".mpg", ".mpeg", ".m4v", ".gif",
)  # fmt: skip
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
SUFFIXES: dict[MediaKind, tuple[str, ...]] = {"video": VIDEO_SUFFIXES, "image": IMAGE_SUFFIXES}

Source = str | os.PathLike | Sequence[str | os.PathLike]
"""A folder, a `.txt` list, a `.csv` table, one media file, or several media files."""


def find_media(source: Source, kind: MediaKind = "video") -> list[Path]:
    """The media files of one kind that `source` names, in a fixed order.

    A folder is walked to the bottom, through links, and gives its files sorted by name;
    names that start with a dot are passed over (they are part-written or a system's own).
    A `.txt` list holds one path a line (`#` starts a comment line), a `.csv` table has them
    in its column `path`, or in its first column; relative paths start at the list's folder.
    Lists keep their order and lose repeats. What a list names need not exist: datasets skip
    and report it.

    Raises `FileNotFoundError` where the source is missing and `ValueError` where it holds
    no file of this kind, with what was found and what would do.
    """
    if kind not in SUFFIXES:
        raise ValueError(f"kind is {kind!r}: use 'video' or 'image'")
    if not isinstance(source, str | os.PathLike):
        paths, name = [Path(path) for path in source], f"the {len(source)} given paths"
    else:
        root = Path(source).expanduser()
        name = str(root)
        if not root.exists():
            raise FileNotFoundError(
                f"{name} does not exist: give a folder of {kind}s, a .txt list, a .csv table "
                f"or a file ({accepted(kind)})"
            )
        if root.is_dir():
            paths = sorted(walk(root))
        elif root.suffix.lower() == ".txt":
            paths = [root.parent / line for line in read_list(root)]
        elif root.suffix.lower() == ".csv":
            paths = [root.parent / cell for cell in read_table(root)]
        else:
            paths = [root]
    found = list(dict.fromkeys(path for path in paths if path.suffix.lower() in SUFFIXES[kind]))
    if not found:
        raise ValueError(nothing_found(name, paths, kind))
    return found


def accepted(kind: MediaKind) -> str:
    """The suffixes of one kind, for people to read."""
    return ", ".join(suffix.lstrip(".") for suffix in SUFFIXES[kind])


def nothing_found(name: str, paths: Sequence[Path], kind: MediaKind) -> str:
    """Says what there is instead, and the likely way out."""
    counts = Counter(path.suffix.lower() or "no suffix" for path in paths)
    there = ", ".join(f"{count} {suffix}" for suffix, count in counts.most_common(6))
    other = "image" if kind == "video" else "video"
    num_other = sum(counts[suffix] for suffix in SUFFIXES[other])
    hint = f"; its {num_other} {other}s are read with dataset_type='{other}s'" if num_other else ""
    return f"no {kind}s in {name} (found: {there or 'nothing'}); accepted: {accepted(kind)}{hint}"


def walk(folder: Path) -> Iterator[Path]:
    """All files below `folder` whose names do not start with a dot."""
    seen = set()
    for here, folders, files in os.walk(folder, followlinks=True):
        # A link to a folder above itself would be walked for ever.
        identity = os.path.realpath(here)
        if identity in seen:
            folders.clear()
            continue
        seen.add(identity)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(here, name) for name in files if not name.startswith("."))


def read_list(path: Path) -> list[str]:
    """The lines of a list that are neither empty nor comments."""
    # utf-8-sig: editors on Windows put a mark before the first name.
    lines = (line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def read_table(path: Path) -> list[str]:
    """The column `path`; without one the first column, whose header is dropped if it is one."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = [row for row in csv.reader(file) if any(cell.strip() for cell in row)]
    if not rows:
        return []
    header = [cell.strip().lower() for cell in rows[0]]
    column = header.index("path") if "path" in header else 0
    is_header = "path" in header or Path(header[0]).suffix not in VIDEO_SUFFIXES + IMAGE_SUFFIXES
    cells = (row[column].strip() for row in rows[is_header:] if len(row) > column)
    return [cell for cell in cells if cell]


def split_files(
    paths: Sequence[T], valid_fraction: float, seed: int = 0
) -> tuple[list[T], list[T]]:
    """Splits files in two, training and validation, each in the order given.

    The same paths and seed give the same split. With two files or more, neither part is
    empty. Raises `ValueError` on a fraction outside (0, 1), or on fewer than two files.
    """
    if not 0 < valid_fraction < 1:
        raise ValueError(f"valid_fraction is {valid_fraction}: it lies between 0 and 1")
    if len(paths) < 2:
        raise ValueError(
            f"{len(paths)} file cannot be split in two: give more files, or hold out the end "
            "of each video with frame_range"
        )
    num_valid = min(max(round(len(paths) * valid_fraction), 1), len(paths) - 1)
    drawn = sorted(range(len(paths)), key=lambda i: keyed_seed("split", seed, i))
    held_out = set(drawn[:num_valid])
    train = [path for i, path in enumerate(paths) if i not in held_out]
    return train, [path for i, path in enumerate(paths) if i in held_out]
