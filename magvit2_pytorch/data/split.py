"""Split of media files into training and held-out ones, and its record."""

import json
import os
import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from magvit2_pytorch.atomic import AnyPath, as_path, normalized, replace_json
from magvit2_pytorch.media.sources import Source
from magvit2_pytorch.runtime import draw_names, keyed_seed
from magvit2_pytorch.types import MediaKind

T = TypeVar("T")

HELD_OUT_FILE = "held_out.json"
"""Names of the held-out files, in the results folder of a run."""


def split_files(
    items: Sequence[T],
    valid_fraction: float,
    seed: int = 0,
    names: Sequence[str] | None = None,
    held_out: Collection[str] = (),
) -> tuple[list[T], list[T]]:
    """Splits items into training and validation items, each in the order given.

    An item is held out if a number in [0, 1), drawn from its name (by default its text) and the
    seed alone, is below `valid_fraction`, see `draw_names`. If `held_out` has names of items,
    exactly these are held out instead, be it all. Raises `ValueError` on a fraction outside (0, 1),
    and on fewer than two items.
    """
    if not 0 < valid_fraction < 1:
        raise ValueError(f"valid_fraction is {valid_fraction}: give a number between 0 and 1")
    names = [str(item) for item in items] if names is None else names
    chosen = set(names) & set(held_out)
    if not chosen and len(items) < 2:
        raise ValueError(
            f"{len(items)} file cannot be split in two: give more files, or hold out the end "
            "of each video with frame_range"
        )
    # One file by several names has one name here.
    if not chosen and len(set(names)) > 1:
        chosen = draw_names(names, valid_fraction, "split", seed)
    parts: tuple[list[T], list[T]] = ([], [])
    for item, name in zip(items, names, strict=True):
        parts[name in chosen].append(item)
    return parts


def split_media(
    source: Source,
    kind: MediaKind,
    paths: Sequence[Path],
    fraction: float,
    seed: int,
    recorded: Collection[str] = (),
) -> tuple[list[Path], list[Path]]:
    """Splits a source's files, by a run's record if it names any.

    The held-out files are in an order that other files, and that of a list, do not change: a
    validation that takes the first ones measures the same. Warns if files of the record are
    missing.
    """
    names = split_names(source, paths)
    train, valid = split_files(paths, fraction, seed, names, recorded)
    name_of = dict(zip(paths, names, strict=True))
    valid.sort(key=lambda path: (keyed_seed("held-out order", name_of[path]), path))
    if gone := set(recorded) - set(names):
        warnings.warn(
            f"{len(gone)} of the {len(recorded)} {kind}s that the run holds out are not in "
            f"{source}, such as {min(gone)}",
            stacklevel=2,
        )
    return train, valid


def split_names(source: Source, paths: Sequence[Path]) -> list[str]:
    """Names of files relative to the folder, or the list's folder.

    They stay the same when the folder moves, also to a system with the other Unicode normalization.
    Several given paths have themselves as names. A file that is reached by links too has one name,
    so that it is on one side: that of the file itself, or else the first.
    """
    if isinstance(source, AnyPath):
        root = as_path(source)
        root = root if root.is_dir() else root.parent
        names = [os.path.relpath(path, root).replace(os.sep, "/") for path in paths]
    else:
        names = [path.as_posix() for path in paths]
    names = [normalized(name) for name in names]
    files: dict[tuple[int, int] | str, list[tuple[bool, str]]] = {}
    identities = []
    for path, name in zip(paths, names, strict=True):
        try:
            stat = os.stat(path)
            identities.append((stat.st_dev, stat.st_ino))
        except OSError:  # there is no file
            identities.append(name)
        files.setdefault(identities[-1], []).append((os.path.islink(path), name))
    return [min(files[identity])[1] for identity in identities]


HeldOut = Mapping[str, list[str] | dict[str, int]]
"""Names of held-out files, by kind; those of images beside images under `ADDED_IMAGES`, and
a single video, whose end is held out, under `VIDEO_END`. Of stored codes the number of last latent
frames that are held out of each video, under `CODES`."""
ADDED_IMAGES = "added image"
VIDEO_END = "end of video"
CODES = "codes"


def write_held_out(folder: Path, names: HeldOut) -> None:
    """Writes the record of a run, keeping names of an earlier one."""
    merged = dict(read_held_out(folder))
    for kind, new in names.items():
        if isinstance(new, dict):
            merged[kind] = dict(sorted((merged.get(kind, {}) | new).items()))
        else:
            merged[kind] = sorted({*merged.get(kind, ()), *new})
    replace_json(folder / HELD_OUT_FILE, merged)


def read_held_out(folder: Path) -> HeldOut:
    """The record of the run in this folder; without one, no names."""
    try:
        return json.loads((folder / HELD_OUT_FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
