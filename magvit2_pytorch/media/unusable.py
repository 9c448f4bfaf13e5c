"""Errors about unusable files, and a list of them across processes."""

import json
import os
import stat
import tempfile
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def printable(path: str | os.PathLike) -> str:
    """A path as text that can be printed, whatever its bytes."""
    return os.fspath(path).encode("utf-8", "backslashreplace").decode()


class UnusableMedia(ValueError):
    """A file that cannot be used, and the reason."""

    def __init__(self, path: str | os.PathLike, reason: str):
        super().__init__(f"{printable(path)}: {reason}")
        self.path = str(path)
        self.reason = reason

    def __reduce__(self):
        # Workers send exceptions by their `args`, which here are not those of `__init__`.
        return type(self), (self.path, self.reason)


def check_regular_file(path: str | os.PathLike) -> None:
    """Raises `UnusableMedia` for folders, pipes and devices, which never end."""
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise UnusableMedia(path, "is a folder")
    if not stat.S_ISREG(mode):
        raise UnusableMedia(path, "is a pipe, a socket or a device, not a file")


@contextmanager
def decoding_errors(path: str | os.PathLike) -> Iterator[None]:
    """Turns the errors of codec libraries into `UnusableMedia` with the file's name.

    Libraries raise many classes on damaged files (OSError, SyntaxError, IndexError,
    struct.error). Errors that point to our code or to the machine pass unchanged.
    """
    try:
        yield
    except (UnusableMedia, ImportError, NameError, AssertionError):
        raise
    except Exception as error:
        if type(error) is MemoryError:
            raise
        if isinstance(error, MemoryError):  # PyAV's subclass: a header claims too much
            reason = "needs more memory than a decoder can get"
        elif isinstance(error, FileNotFoundError):
            reason = "the file is missing"
        elif isinstance(error, PermissionError):
            reason = "no permission to read it"
        else:
            # Without the path that PyAV appends: reports of one folder agree wherever it lies.
            text = getattr(error, "strerror", None) or error
            reason = f"cannot be decoded ({type(error).__name__}: {text})"
        raise UnusableMedia(path, reason) from error


class SkipLog:
    """Files that a dataset skipped in all processes, with one warning each."""

    def __init__(self):
        self.file = temporary_file(self, prefix="magvit2_skipped_")
        self.known: dict[str, str] = {}

    def __getstate__(self) -> dict:
        return {"file": self.file, "known": dict(self.known)}

    def add(self, path: str | os.PathLike, reason: str) -> None:
        """Records a file and the reason; warns unless another process did."""
        path = str(path)
        if path in self.known:
            return
        self.known[path] = reason
        line = json.dumps([path, reason, os.getpid()]) + "\n"
        # Single appending writes do not interleave: whoever wrote the first line of a file warns.
        with suppress(OSError), open(self.file, "ab", buffering=0) as file:
            file.write(line.encode())
        first = next((pid for name, _, pid in self._lines() if name == path), os.getpid())
        if first == os.getpid():
            warnings.warn(f"skipped {printable(path)}: {reason}", stacklevel=2)

    def all(self) -> dict[str, str]:
        """Reason by path, from all processes that share the log."""
        for path, reason, _ in self._lines():
            self.known.setdefault(path, reason)
        return dict(self.known)

    def __contains__(self, path: str | os.PathLike) -> bool:
        return str(path) in self.known

    def _lines(self) -> list[tuple[str, str, int]]:
        with suppress(OSError):
            # A line that another process is still writing has no newline yet.
            *lines, _ = Path(self.file).read_bytes().split(b"\n")
            return [tuple(json.loads(line)) for line in lines]
        return []


def temporary_file(owner: object, prefix: str) -> str:
    """Creates a temporary file that is removed with `owner`; returns its path."""
    descriptor, path = tempfile.mkstemp(prefix=prefix)
    os.close(descriptor)
    weakref.finalize(owner, _remove, path, os.getpid())
    return path


def _remove(path: str, process: int) -> None:
    # A forked worker inherits the finalizer and must leave the file to its parent.
    if os.getpid() == process:
        with suppress(OSError):
            os.remove(path)
