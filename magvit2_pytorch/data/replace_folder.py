"""Atomic writing of folders."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Gives an empty folder that replaces this one on success.

    After a kill or a power cut at any moment, either the old or the new folder is complete.
    `intact_folder` finds it if the replacement itself was interrupted.
    """
    part, backup = _part_folder(folder), _backup_folder(folder)
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        for path in (*part.iterdir(), part):
            _sync(path)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    if folder.exists():
        shutil.rmtree(backup, ignore_errors=True)
        os.replace(folder, backup)
    os.replace(part, folder)
    _sync(folder.parent)
    shutil.rmtree(backup, ignore_errors=True)


def remove_folder(folder: Path) -> None:
    """Removes a folder; a kill meanwhile leaves no incomplete one."""
    part = _part_folder(folder)
    shutil.rmtree(part, ignore_errors=True)
    os.replace(folder, part)
    shutil.rmtree(part)


def intact_folder(folder: Path) -> Path:
    """The folder, or its backup if a replacement was interrupted."""
    backup = _backup_folder(folder)
    return backup if backup.is_dir() and not folder.is_dir() else folder


def _part_folder(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.part")


def _backup_folder(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def _sync(path: Path) -> None:
    """Flushes a file or folder to the disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot open folders
    descriptor = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
