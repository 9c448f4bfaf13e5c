"""Search for media files in a folder, a list or a table.

Only names are read here, never contents: thousands of files cost one walk over the folder.
"""

import csv
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from magvit2_pytorch.runtime import keyed_seed
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
    """Media files of one kind in `source`, in a fixed order.

    A folder is searched recursively, through links, and gives its files sorted by name; names
    that start with a dot are left out (they are incomplete or belong to the system).
    A `.txt` list holds one path per line (`#` starts a comment line). A `.csv` table has paths
    in its column `path`, or in its first column. Relative paths start at the list's folder.
    Lists keep their order and lose duplicates. The files of a list need not exist: datasets
    skip and report missing ones.

    Raises `FileNotFoundError` if the source is missing, and `ValueError` if it holds no file of
    this kind; the message lists what was found and what is accepted.
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
                f"or a file ({suffix_list(kind)})"
            )
        if root.is_dir():
            paths = sorted(walk(root))
        elif root.suffix.lower() == ".txt":
            paths = [root.parent / line for line in read_list(root)]
        elif root.suffix.lower() == ".csv":
            paths = [root.parent / cell for cell in read_table(root)]
        else:
            paths = [root]
    media = list(dict.fromkeys(path for path in paths if path.suffix.lower() in SUFFIXES[kind]))
    if not media:
        raise ValueError(no_media_message(name, paths, kind))
    return media


def suffix_list(kind: MediaKind) -> str:
    """The suffixes of one kind as text for messages."""
    return ", ".join(suffix.lstrip(".") for suffix in SUFFIXES[kind])


def no_media_message(name: str, paths: Sequence[Path], kind: MediaKind) -> str:
    """Error message with the suffixes that were found and are accepted."""
    counts = Counter(path.suffix.lower() or "no suffix" for path in paths)
    found = ", ".join(f"{count} {suffix}" for suffix, count in counts.most_common(6)) or "nothing"
    other = "image" if kind == "video" else "video"
    num_other = sum(counts[suffix] for suffix in SUFFIXES[other])
    hint = f"; its {num_other} {other}s are read with dataset_type='{other}s'" if num_other else ""
    return f"no {kind}s in {name} (found: {found}); accepted: {suffix_list(kind)}{hint}"


def walk(folder: Path) -> Iterator[Path]:
    """All files below `folder` whose names do not start with a dot."""
    visited = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        # A link to a parent folder would be followed for ever.
        real_path = os.path.realpath(parent)
        if real_path in visited:
            folders.clear()
            continue
        visited.add(real_path)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(parent, name) for name in files if not name.startswith("."))


def read_list(path: Path) -> list[str]:
    """Lines of a list, without empty lines and comments."""
    # utf-8-sig: editors on Windows put a byte order mark before the first name.
    lines = (line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def read_table(path: Path) -> list[str]:
    """Cells of the column `path`, or else of the first, without header."""
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
    """Splits files into training and validation files, each in the order given.

    The same paths and seed give the same split, and neither part is empty. Raises `ValueError`
    on a fraction outside (0, 1) and on fewer than two files.
    """
    if not 0 < valid_fraction < 1:
        raise ValueError(f"valid_fraction is {valid_fraction}: give a number between 0 and 1")
    if len(paths) < 2:
        raise ValueError(
            f"{len(paths)} file cannot be split in two: give more files, or hold out the end "
            "of each video with frame_range"
        )
    num_valid = min(max(round(len(paths) * valid_fraction), 1), len(paths) - 1)
    shuffled = sorted(range(len(paths)), key=lambda i: keyed_seed("split", seed, i))
    held_out = set(shuffled[:num_valid])
    train = [path for i, path in enumerate(paths) if i not in held_out]
    return train, [path for i, path in enumerate(paths) if i in held_out]
