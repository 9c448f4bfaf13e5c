"""Split of media files into those to train on and those held out, and its record."""

import json
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TypeVar

from magvit2_pytorch.atomic import replacing
from magvit2_pytorch.media.sources import Source
from magvit2_pytorch.media.unusable import AnyPath, as_path
from magvit2_pytorch.runtime import keyed_seed

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
    seed alone, is below `valid_fraction`. Other items therefore never move it, and the held-out
    fraction is exact only in the mean. If one part is empty, the item with the nearest number moves
    there. If `held_out` has names of items, exactly these are
    held out instead. Raises `ValueError` on a fraction outside (0, 1) and on fewer than two items.
    """
    if not 0 < valid_fraction < 1:
        raise ValueError(f"valid_fraction is {valid_fraction}: give a number between 0 and 1")
    if len(items) < 2:
        raise ValueError(
            f"{len(items)} file cannot be split in two: give more files, or hold out the end "
            "of each video with frame_range"
        )
    names = [str(item) for item in items] if names is None else names
    chosen = {i for i, name in enumerate(names) if name in held_out}
    if not 0 < len(chosen) < len(items):
        draws = [keyed_seed("split", seed, name) / 2**63 for name in names]
        chosen = {i for i, draw in enumerate(draws) if draw < valid_fraction}
        chosen = chosen or {draws.index(min(draws))}
        if len(chosen) == len(items):
            chosen.remove(draws.index(max(draws)))
    train = [item for i, item in enumerate(items) if i not in chosen]
    return train, [item for i, item in enumerate(items) if i in chosen]


def split_names(source: Source, paths: Sequence[Path]) -> list[str]:
    """Names of files relative to the folder, or to that of the list.

    They stay the same when the folder moves. Several given paths have themselves as names. A file
    that is reached by links too has one name, so that it is on one side: that of the file itself,
    or else the first.
    """
    if isinstance(source, AnyPath):
        root = as_path(source)
        root = root if root.is_dir() else root.parent
        names = [os.path.relpath(path, root).replace(os.sep, "/") for path in paths]
    else:
        names = [path.as_posix() for path in paths]
    files: dict[tuple[int, int], list[tuple[bool, str]]] = {}
    identities = [_identity(path) for path in paths]
    for path, name, identity in zip(paths, names, identities, strict=True):
        files.setdefault(identity, []).append((os.path.islink(path), name))
    return [
        name if identity is None or len(files[identity]) == 1 else min(files[identity])[1]
        for name, identity in zip(names, identities, strict=True)
    ]


def _identity(path: Path) -> tuple[int, int] | None:
    """The same for all names of a file; None without a file."""
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return stat.st_dev, stat.st_ino


HeldOut = dict[str, list[str]]
"""Names of held-out files, by kind; those of images beside images under `ADDED_IMAGES`."""
ADDED_IMAGES = "added image"


def write_held_out(folder: Path, names: HeldOut) -> None:
    """Writes the record of a run, which keeps names of an earlier one."""
    before = read_held_out(folder)
    names = {
        kind: sorted({*before.get(kind, ()), *names.get(kind, ())}) for kind in {**before, **names}
    }
    with replacing(folder / HELD_OUT_FILE) as part:
        part.write_text(json.dumps(names, indent=2) + "\n", encoding="utf-8")


def read_held_out(folder: Path) -> HeldOut:
    """The record of the run in this folder; without one, no names."""
    try:
        return json.loads((folder / HELD_OUT_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
