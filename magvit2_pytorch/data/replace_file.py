"""Files that appear whole or not at all."""

import os
import platform
import re
import secrets
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Gives a name beside `path` to write under; on success it takes the place of `path`.

    On an error the part is removed and an older file stays as it was. The part's name starts
    with a dot, so no dataset picks it up, and keeps the suffix, which says the format. Where the
    process is killed the part stays, until `remove_abandoned` finds it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".part-{_machine()}-{os.getpid()}-{secrets.token_hex(4)}-{path.name}")
    try:
        yield part
        os.replace(part, path)
    finally:
        with suppress(FileNotFoundError):
            part.unlink()


def remove_abandoned(folder: str | os.PathLike) -> None:
    """Removes the parts in a folder whose processes, of this machine, are no more."""
    name = re.compile(rf"\.part-{_machine()}-(\d+)-[0-9a-f]{{8}}-.*")
    for part in Path(folder).iterdir():
        found = name.fullmatch(part.name)
        if found and not _runs(int(found[1])):
            part.unlink(missing_ok=True)


@lru_cache(maxsize=1)
def _machine() -> str:
    """Where a process number means one process: a host, or a container on it."""
    numbers = Path("/proc/self/ns/pid")
    place = f"{platform.node()} {numbers.stat().st_ino if numbers.exists() else ''}"
    return f"{zlib.crc32(place.encode()):08x}"


def _runs(process: int) -> bool:
    if os.name != "posix":  # where asking would end it
        return True
    with suppress(PermissionError):  # it is somebody else's
        try:
            os.kill(process, 0)
        except (ProcessLookupError, OverflowError):
            return False
    return True
