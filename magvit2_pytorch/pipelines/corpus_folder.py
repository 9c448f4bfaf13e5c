"""State of a corpus, read from the files in its folder.

    codes-RUN-RANK-NUMBER.safetensors   shards of codes
    failed-RUN-RANK.jsonl               failed inputs, one per line
    manifest.jsonl                      both in one list, for people and scripts; never read here

Files appear atomically, and the number of a run is higher than those of all earlier files: of
several records of an input, the one of the latest run counts.
"""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from magvit2_pytorch.atomic import as_path, remove_abandoned, replacing
from magvit2_pytorch.codes.code_file import CodeFile, DamagedCodes
from magvit2_pytorch.codes.code_header import CodedVideo, CodeHeader
from magvit2_pytorch.media.unusable import UnusableMedia

MANIFEST = "manifest.jsonl"
_NAME = re.compile(
    r"(?:codes|failed)-(\d{4,})-(\d{5,})(?:-\d{5,})?\.(?:safetensors|jsonl)(?:\.damaged)?"
)


class Stored(NamedTuple):
    """An input whose codes are in a shard."""

    file: CodeFile
    index: int

    @property
    def video(self) -> CodedVideo:
        return self.file.videos[self.index]

    def is_of(self, state: str | None, header: CodeHeader) -> bool:
        """True if tokenizing the file again would give the same codes."""
        return (self.video.state, self.file.header) == (state, header)

    def manifest_line(self) -> dict[str, Any]:
        """Place and size of the codes."""
        place = {"shard": self.file.path.name, "key": f"{self.index:06}"}
        size = {"num_frames": self.video.num_frames, "shape": self.video.shape}
        return {"path": self.video.source, "status": "done", **place, **size}


class Failure(NamedTuple):
    """An input that could not be tokenized, and the reason."""

    path: str
    reason: str
    state: str | None
    """`file_state` of the input; None if there was no file."""
    size: int | None
    precision: str

    def is_of(self, state: str | None, header: CodeHeader) -> bool:
        """True if tokenizing the file again is likely to fail."""
        before = (self.state, self.size, self.precision)
        return before == (state, header.size, header.precision)

    def manifest_line(self) -> dict[str, Any]:
        """The reason of the failure."""
        return {"path": self.path, "status": "failed", "reason": self.reason}


class CorpusFolder:
    """A folder of shards; `on_damaged` gets damaged files and the reason."""

    def __init__(self, folder: str | PathLike, on_damaged: Callable[[Path, str], object]):
        self.folder = as_path(folder)
        self.on_damaged = on_damaged

    def begin_run(self) -> int:
        """Makes the folder; returns a number higher than that of any file in it."""
        number = max((run + 1 for run, *_ in self._files()), default=0)
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_abandoned(self.folder)
        return number

    def events(self) -> Iterator[tuple[str, Stored | Failure]]:
        """Yields inputs with their codes or failure.

        If an input occurs several times, the last counts. A damaged shard is renamed. Raises
        `UnusableMedia` if a shard cannot be read for any other reason.
        """
        for *_, path in self._files():
            if path.suffix == ".jsonl":
                yield from ((failure.path, failure) for failure in _read_failures(path))
            elif path.suffix == ".safetensors" and (file := self._open(path)):
                yield from ((v.source, Stored(file, index)) for index, v in enumerate(file.videos))

    def add_failure(self, run: int, rank: int, failure: Failure) -> None:
        """Appends a failure to the file of this process."""
        with (self.folder / f"failed-{run:04}-{rank:05}.jsonl").open("a") as file:
            file.write(json.dumps(failure._asdict()) + "\n")

    def write_manifest(self) -> None:
        """Writes a line for each finished input, sorted by path."""
        written = None
        # Again if another process has finished meanwhile, whose manifest this one replaces.
        while (files := self._files()) != written:
            written = files
            lines = {path: event.manifest_line() for path, event in self.events()}
            with replacing(self.folder / MANIFEST) as part, part.open("w") as file:
                file.writelines(f"{json.dumps(lines[path])}\n" for path in sorted(lines))

    def _open(self, path: Path) -> CodeFile | None:
        """An intact shard; None if it was damaged or another process has renamed it."""
        try:
            return CodeFile(path)
        except DamagedCodes as error:
            self.on_damaged(path, error.reason)
            with suppress(FileNotFoundError):  # another process has renamed it
                path.rename(path.with_name(f"{path.name}.damaged"))
        except UnusableMedia:
            if path.exists():
                raise
        return None

    def _files(self) -> list[tuple[int, int, str, Path]]:
        """Run, rank, name and path of files in order, including damaged shards."""
        paths = self.folder.iterdir() if self.folder.is_dir() else ()
        matches = ((_NAME.fullmatch(path.name), path) for path in paths)
        return sorted((int(m[1]), int(m[2]), path.name, path) for m, path in matches if m)


def _read_failures(path: Path) -> Iterator[Failure]:
    for line in path.read_text().splitlines():
        # A truncated line: the input is tried again.
        with suppress(ValueError, TypeError):
            yield Failure(**json.loads(line))
