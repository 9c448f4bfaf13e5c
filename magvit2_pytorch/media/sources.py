"""Search for media files by name in a folder, list or table."""

import codecs
import csv
import io
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import lru_cache
from pathlib import Path

from magvit2_pytorch.atomic import AnyPath, as_path
from magvit2_pytorch.media.unusable import printable
from magvit2_pytorch.types import MediaKind

VIDEO_SUFFIXES = (
    ".mp4", ".webm", ".mkv", ".avi", ".mov", ".mpg", ".mpeg", ".m4v", ".gif",
    ".flv", ".f4v", ".ts", ".mts", ".m2ts", ".wmv", ".asf", ".ogv", ".3gp", ".3g2", ".qt",
    ".mpe", ".m1v", ".m2v", ".vob", ".mxf", ".y4m", ".apng",
)  # fmt: skip
IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".png", ".webp", ".bmp",
    ".tif", ".tiff", ".avif", ".jfif", ".jpe", ".jp2", ".ppm", ".pgm", ".pbm", ".pnm", ".tga",
)  # fmt: skip
SUFFIXES: dict[MediaKind, tuple[str, ...]] = {"video": VIDEO_SUFFIXES, "image": IMAGE_SUFFIXES}

_LABELLED = re.compile(
    rf"(.*?(?:{'|'.join(map(re.escape, VIDEO_SUFFIXES + IMAGE_SUFFIXES))}))[\s,;|]+\S.*", re.I
)

Source = AnyPath | Sequence[AnyPath]
"""A folder, a `.txt` list, a `.csv` table, one media file, or several media files."""


_OUTPUTS = {
    "a training run": {"run.json", "log.jsonl"},
    "an evaluation": {"report.json", "clips.jsonl"},
    "a corpus of codes": {"codes-0000-00000-00000.safetensors"},
    "a cache": {"CACHEDIR.TAG"},
}
"""Files by which a folder that we have written is known."""


def find_media(
    source: Source,
    kind: MediaKind = "video",
    beside: Collection[MediaKind] = (),
    outputs: Collection[AnyPath] = (),
) -> list[Path]:
    """Media files of one kind in `source`, in a fixed order.

    A folder is searched recursively, through links, and gives its files sorted by name, without
    names that start with a dot and folders that we have written or will, such as `outputs` (see
    `walk_inputs`). A `.txt` list holds one path per line (`#` starts a comment line, unless it is
    the name of a file). A `.csv` table has paths in its column `path`, or in its first column.
    Relative paths start at the list's folder. Lists keep their order and lose duplicates. Their
    files need not exist: datasets skip and report missing ones. One line of the log counts what
    was left out, by suffix, but for the kinds in `beside`, which the caller reads too.

    Raises `FileNotFoundError` if the source is missing, and `ValueError` if it is one of `outputs`,
    or holds no file of this kind; the message lists what was found and what is accepted.
    """
    if kind not in SUFFIXES:
        raise ValueError(f"kind is {kind!r}: use 'video' or 'image'")
    if not isinstance(source, AnyPath):
        paths, name = [as_path(path) for path in source], f"the {len(source)} given paths"
    else:
        root = as_path(source)
        name = printable(root)
        if not root.exists():
            raise FileNotFoundError(
                f"{name} does not exist: give a folder of {kind}s, a .txt list, a .csv table "
                f"or a file ({suffix_list(kind)})"
            )
        if root.is_dir():
            check_not_output(root, outputs)
            paths = sorted(walk_inputs(root, outputs))
        elif root.suffix.lower() == ".txt":
            paths = [as_path(line, root.parent) for line in read_list(root)]
        elif root.suffix.lower() == ".csv":
            paths = [as_path(cell, root.parent) for cell in read_table(root)]
        else:
            paths = [root]
    media = list(dict.fromkeys(path for path in paths if path.suffix.lower() in SUFFIXES[kind]))
    if not media:
        raise ValueError(no_media_message(name, paths, kind))
    read = sum((SUFFIXES[k] for k in beside), SUFFIXES[kind])
    log_left_out(name, [path for path in paths if path.suffix.lower() not in read])
    return media


def log_left_out(name: str, paths: Sequence[Path]) -> None:
    """Logs the number of files that are not read, by suffix."""
    if paths:
        files = "1 other file" if len(paths) == 1 else f"{len(paths)} other files"
        _log_once(f"{name}: {files} left out: {_counts_by_suffix(paths)}")


@lru_cache(maxsize=1024)
def _log_once(line: str) -> None:
    # Not a warning: files beside the media are usual.
    logging.getLogger(__name__).warning(line)


def _counts_by_suffix(paths: Sequence[Path]) -> str:
    counts = Counter(printable(path.suffix.lower()) or "without a suffix" for path in paths)
    shown = [f"{count} {suffix}" for suffix, count in counts.most_common(6)]
    return ", ".join(shown + ["..."] * (len(counts) > 6)) or "nothing"


def suffix_list(kind: MediaKind) -> str:
    """The suffixes of one kind as text for messages."""
    return ", ".join(suffix.lstrip(".") for suffix in SUFFIXES[kind])


def no_media_message(name: str, paths: Sequence[Path], kind: MediaKind) -> str:
    """Error message with the suffixes that were found and are accepted."""
    found = _counts_by_suffix(paths)
    other = "image" if kind == "video" else "video"
    num_other = sum(path.suffix.lower() in SUFFIXES[other] for path in paths)
    hint = f"; its {num_other} {other}s are read with dataset_type='{other}s'" if num_other else ""
    return f"no {kind}s in {name} (found: {found}); accepted: {suffix_list(kind)}{hint}"


def check_not_output(folder: Path, outputs: Collection[AnyPath]) -> None:
    """Raises `ValueError` if outputs would lie among this folder's inputs."""
    if os.path.realpath(folder) in _real_paths(outputs):
        raise ValueError(
            f"{printable(folder)} is read and written: outputs would be taken for inputs the next "
            "time; choose another folder for the outputs, which may be inside this one"
        )


def walk_inputs(folder: Path, outputs: Collection[AnyPath] = ()) -> Iterator[Path]:
    """As `walk`, without folders below that hold outputs, which are logged."""
    written = _real_paths(outputs)

    def is_output(parent: str, files: Sequence[str]) -> bool:
        is_ours = os.path.realpath(parent) in written
        known = (kind for kind, names in _OUTPUTS.items() if names <= set(files))
        contents = "the outputs" if is_ours else next(known, None)
        if contents is not None:
            _log_once(f"{printable(folder)}: {printable(parent)}, {contents}, is left out")
        return contents is not None

    return walk(folder, is_output)


def _real_paths(paths: Collection[AnyPath]) -> set[str]:
    return {os.path.realpath(as_path(path)) for path in paths}


def walk(
    folder: Path, leave_out: Callable[[str, Sequence[str]], bool] = lambda parent, files: False
) -> Iterator[Path]:
    """All files below `folder`, without dot files and folders `leave_out` names."""
    visited = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        # A link to a parent folder would be followed for ever.
        real_path = os.path.realpath(parent)
        if real_path in visited or (visited and leave_out(parent, files)):
            folders.clear()
            continue
        visited.add(real_path)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(parent, name) for name in files if not name.startswith("."))


def read_list(path: Path) -> list[str]:
    """Paths in a list, without comments and labels."""
    lines = [line.strip() for line in _read_text(path).splitlines()]
    names = [n for n in lines if n and not (n[0] == "#" and not as_path(n, path.parent).is_file())]
    for number, name in enumerate(names):
        is_path = Path(name).suffix.lower() in VIDEO_SUFFIXES + IMAGE_SUFFIXES
        # A line such as `clips/1.mp4 7` or `1.mp4, cat`.
        labelled = None if is_path else _LABELLED.fullmatch(name)
        if labelled and not as_path(name, path.parent).is_file():
            names[number] = labelled[1]
            _log_once(f"{printable(path)}: labels after the paths are left out")
    _check_names(path, names)
    return names


def read_table(path: Path) -> list[str]:
    """Cells of the column `path`, or else of the first, without header."""
    reader = csv.reader(io.StringIO(_read_text(path), newline=""))
    rows = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    if not rows:
        return []
    header = [cell.strip().lower() for cell in rows[0][1]]
    column = header.index("path") if "path" in header else 0
    # A first row whose cell has the suffix of any file is a row like the others.
    is_header = "path" in header or not Path(header[0]).suffix
    cells = [(n, row[column].strip() if len(row) > column else "") for n, row in rows[is_header:]]
    if empty := [n for n, cell in cells if not cell]:
        numbers = ", ".join(map(str, empty[:6])) + ", ..." * (len(empty) > 6)
        rows, lines = ("row", "line") if len(empty) == 1 else ("rows", "lines")
        _log_once(
            f"{printable(path)}: left out {len(empty)} {rows} without a path: {lines} {numbers}"
        )
    names = [cell for _, cell in cells if cell]
    _check_names(path, names)
    return names


def _read_text(path: Path) -> str:
    """Text in UTF-8, in which other bytes stay as `os.fsdecode` has them."""
    data = path.read_bytes()
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in data:
        raise ValueError(
            f"{printable(path)} is not UTF-8 text but probably UTF-16: save it as UTF-8"
        )
    # utf-8-sig: editors on Windows put a byte order mark before the first name.
    return data.decode("utf-8-sig", "surrogateescape")


def _check_names(path: Path, names: Sequence[str]) -> None:
    """Raises `ValueError` if a name is neither UTF-8 nor a file's."""
    for name in names:
        is_text = not any("\udc80" <= letter <= "\udcff" for letter in name)
        if not is_text and not (path.parent / name).exists():
            raise ValueError(
                f"{printable(path)} names {os.fsencode(name)!r}, which is neither UTF-8 text nor "
                "the bytes of a file's name: save the list as UTF-8 (it may be Latin-1 or "
                "Windows-1252)"
            )
