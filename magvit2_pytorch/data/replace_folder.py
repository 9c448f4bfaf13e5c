"""Folders that appear whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Gives an empty folder beside this one to fill; on success it takes its place.

    A process killed at any moment, or a power cut, leaves what was there before or what is there
    now, whole: under its name, or while the two change places as `whole` finds it.
    """
    part, old = unfinished(folder), _replaced(folder)
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        for path in (*part.iterdir(), part):
            _write_through(path)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.replace(folder, old)
    os.replace(part, folder)
    _write_through(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def remove_folder(folder: Path) -> None:
    """Removes it; killed meanwhile, it leaves no half folder under this name."""
    shutil.rmtree(unfinished(folder), ignore_errors=True)
    os.replace(folder, unfinished(folder))
    shutil.rmtree(unfinished(folder))


def whole(folder: Path) -> Path:
    """The folder, or the one it was to replace when the process was killed."""
    return folder if folder.is_dir() or not _replaced(folder).is_dir() else _replaced(folder)


def unfinished(folder: Path) -> Path:
    """Where `replacing_folder` and `remove_folder` keep what is not whole."""
    return folder.with_name(f".{folder.name}.part")


def _replaced(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def _write_through(path: Path) -> None:
    """Has the system write a file or folder to the disk."""
    if path.is_dir() and os.name == "nt":
        return  # folders cannot be opened there
    descriptor = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
