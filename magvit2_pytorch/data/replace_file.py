"""Atomic writing of files."""

import os
import platform
import re
import secrets
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Gives a temporary path that replaces `path` on success.

    On an error the temporary file is removed and an older file stays as it was. Its name starts
    with a dot, so no dataset reads it, and keeps the suffix, which selects the format. If the
    process is killed the file stays until `remove_abandoned` removes it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".part-{_host()}-{os.getpid()}-{secrets.token_hex(4)}-{path.name}")
    try:
        yield part
        os.replace(part, path)
    finally:
        with suppress(FileNotFoundError):
            part.unlink()


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
