"""Files that cannot be used: one exception for them, and a list that all processes share."""

import json
import os
import stat
import tempfile
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


class UnusableMedia(ValueError):
    """A file that cannot give what was asked of it, and why."""

    def __init__(self, path: str | os.PathLike, reason: str):
        super().__init__(f"{path}: {reason}")
        self.path = str(path)
        self.reason = reason

    def __reduce__(self):
        # Exceptions cross from workers by their arguments, and ours are not the message.
        return type(self), (self.path, self.reason)


def check_regular(path: str | os.PathLike) -> None:
    """Raises `UnusableMedia` on what has no contents of its own, and `OSError` as `open` does.

    Pipes and devices are called like media too, by mistake or malice, and never end.
    """
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise UnusableMedia(path, "is a folder")
    if not stat.S_ISREG(mode):
        raise UnusableMedia(path, "is a pipe, a socket or a device, no file")


@contextmanager
def blame(path: str | os.PathLike) -> Iterator[None]:
    """Whatever a codec library raises inside becomes `UnusableMedia` with the file's name.

    Libraries raise what they please on damaged files (OSError, SyntaxError, IndexError,
    struct.error); what says that we or the machine are wrong is let through.
    """
    try:
        yield
    except (UnusableMedia, ImportError, NameError, AssertionError):
        raise
    except Exception as error:
        if type(error) is MemoryError:
            raise
        if isinstance(error, MemoryError):  # a codec's own, of sizes that no machine has
            reason = "asks for more memory than a codec may have"
        elif isinstance(error, FileNotFoundError):
            reason = "the file is missing"
        elif isinstance(error, PermissionError):
            reason = "no permission to read it"
        else:
            reason = f"cannot be decoded ({type(error).__name__}: {error})"
        raise UnusableMedia(path, reason) from error


class SkipLog:
    """The files a dataset passed over, each named once, whichever process found it.

    Worker processes have no way to say something beside the items they return, so all of
    them append lines to one small temporary file, and each reads what the others wrote.
    """

    def __init__(self):
        handle, self.file = tempfile.mkstemp(prefix="magvit2_skipped_", suffix=".jsonl")
        os.close(handle)
        self.known: dict[str, str] = {}
        # Only the process that made the log removes it; copies in workers do not carry this.
        self._finalizer = weakref.finalize(self, _remove, self.file, os.getpid())

    def __getstate__(self) -> dict:
        return {"file": self.file, "known": dict(self.known)}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)

    def add(self, path: str | os.PathLike, reason: str) -> None:
        """Keeps the file and its reason, and warns unless some process has done so."""
        path = str(path)
        if path in self.known:
            return
        self.known[path] = reason
        line = json.dumps([path, reason, os.getpid()]) + "\n"
        # Single writes at the end do not mix, so the first line about a file settles who names it.
        with suppress(OSError), open(self.file, "ab", buffering=0) as file:
            file.write(line.encode())
        first = next((pid for name, _, pid in self._lines() if name == path), os.getpid())
        if first == os.getpid():
            warnings.warn(f"skipped {path}: {reason}", stacklevel=2)

    def all(self) -> dict[str, str]:
        """Path to reason, from this process and all others that share the log."""
        for path, reason, _ in self._lines():
            self.known.setdefault(path, reason)
        return dict(self.known)

    def __contains__(self, path: str | os.PathLike) -> bool:
        return str(path) in self.known

    def _lines(self) -> list[tuple[str, str, int]]:
        with suppress(OSError):
            # A line that another process is just writing has no end yet.
            *whole, _ = Path(self.file).read_bytes().split(b"\n")
            return [tuple(json.loads(line)) for line in whole]
        return []


def _remove(file: str, owner: int) -> None:
    # A forked worker inherits the finalizer and must leave the log to its parent.
    if os.getpid() == owner:
        with suppress(OSError):
            os.remove(file)
