"""Files and folders that appear whole or not at all; hashes."""

import hashlib
import json
import os
import platform
import re
import secrets
import shutil
import unicodedata
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

# Of all common file systems.
_MAX_NAME_BYTES = 255


AnyPath = str | bytes | os.PathLike


def as_path(path: AnyPath, folder: AnyPath = "") -> Path:
    """A path as the user named it, relative to `folder`.

    It may be bytes, and `~` is the home folder. A name that exists only in the other Unicode
    normalization, as macOS and Linux spell accents differently, is taken as it is on disk.
    """
    path = Path(os.path.join(os.fsdecode(folder), os.path.expanduser(os.fsdecode(path))))
    if str(path).isascii() or os.path.lexists(path):
        return path
    found = Path()
    for part in path.parts:
        spellings = (part, *(unicodedata.normalize(form, part) for form in ("NFC", "NFD")))
        found = next((found / s for s in spellings if os.path.lexists(found / s)), found / part)
    return found


def normalized(name: str) -> str:
    """The name by which files are compared, in one Unicode normalization."""
    return unicodedata.normalize("NFC", name)


def sha256_of(path: str | os.PathLike) -> str:
    """SHA-256 of a file's contents, in hexadecimal, in constant memory."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Gives a temporary path that replaces `path` on success.

    On an error the temporary file is removed and an older file stays as it was. Its name starts
    with a dot, so no dataset reads it, and keeps the suffix, which selects the format; of a long
    name it keeps nothing else. If the process is killed the file stays until `remove_abandoned`
    removes it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".part-{_host()}-{os.getpid()}-{secrets.token_hex(4)}-"
    too_long = len(os.fsencode(prefix + path.name)) > _MAX_NAME_BYTES
    part = path.with_name(prefix + (path.suffix if too_long else path.name))
    try:
        yield part
        os.replace(part, path)
    finally:
        with suppress(FileNotFoundError):
            part.unlink()


def replace_text(path: str | os.PathLike, text: str) -> None:
    """Writes a text file in UTF-8, atomically.

    What UTF-8 lacks is escaped: names of files need not be valid text.
    """
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8", errors="backslashreplace")


def replace_json(path: str | os.PathLike, values: Any) -> None:
    """Writes plain values as indented JSON, atomically."""
    replace_text(path, json.dumps(values, indent=2) + "\n")


def remove_abandoned(folder: str | os.PathLike) -> None:
    """Removes the temporary files of this host's dead processes from a folder."""
    pattern = re.compile(rf"\.part-{_host()}-(\d+)-[0-9a-f]{{8}}-.*")
    for part in Path(folder).iterdir():
        match = pattern.fullmatch(part.name)
        if match and not _is_running(int(match[1])):
            part.unlink(missing_ok=True)


def _host() -> str:
    # Process numbers mean nothing on another host that shares the folder.
    return f"{zlib.crc32(platform.node().encode()):08x}"


def _is_running(process: int) -> bool:
    if os.name != "posix":  # there, os.kill would end the process
        return True
    with suppress(PermissionError):  # it belongs to another user
        try:
            os.kill(process, 0)
        except (ProcessLookupError, OverflowError):
            return False
    return True


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
