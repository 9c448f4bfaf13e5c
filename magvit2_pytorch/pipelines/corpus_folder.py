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

from magvit2_pytorch.atomic import replacing
from magvit2_pytorch.codes.code_file import Origin
from magvit2_pytorch.codes.code_shards import DamagedCodes, StoredVideo, list_videos
from magvit2_pytorch.media.unusable import UnusableMedia

MANIFEST = "manifest.jsonl"
_NAME = re.compile(
    r"(?:codes|failed)-(\d{4,})-(\d{5,})(?:-(\d{5,}))?\.(?:safetensors|jsonl)(?:\.damaged)?"
)


class Failure(NamedTuple):
    """An input that could not be tokenized, and the reason."""

    path: str
    reason: str
    origin: Origin | None
    """None if there was no file."""


class CorpusFolder:
    """A folder of shards; `on_damaged` gets damaged files and the reason."""

    def __init__(self, folder: str | PathLike, on_damaged: Callable[[Path, str], object]):
        self.folder = Path(folder)
        self.on_damaged = on_damaged

    def num_runs(self) -> int:
        """One more than the highest run number of any file."""
        return max((run + 1 for run, *_ in self._files()), default=0)

    def events(self) -> Iterator[tuple[str, StoredVideo | Failure]]:
        """Yields inputs with their codes or failure.

        If an input occurs several times, the last counts. A damaged shard is renamed. Raises
        `UnusableMedia` if a shard cannot be read for any other reason.
        """
        for *_, path in sorted(self._files()):
            if path.suffix == ".jsonl":
                yield from ((failure.path, failure) for failure in _read_failures(path))
            elif path.suffix == ".safetensors":
                yield from ((video.origin.path, video) for video in self._videos(path))

    def add_failure(self, run: int, rank: int, failure: Failure) -> None:
        """Appends a failure to the file of this process."""
        origin = failure.origin and failure.origin.to_json()
        line = json.dumps({"path": failure.path, "reason": failure.reason, "origin": origin})
        with (self.folder / f"failed-{run:04}-{rank:05}.jsonl").open("a") as file:
            file.write(line + "\n")

    def write_manifest(self) -> None:
        """Writes a line for each finished input, sorted by path."""
        while True:
            before = self._sizes()
            lines = {path: json.dumps(_manifest_line(path, event)) for path, event in self.events()}
            with replacing(self.folder / MANIFEST) as part, part.open("w") as file:
                file.writelines(f"{lines[path]}\n" for path in sorted(lines))
            # Another process may have finished meanwhile, and this replaced its manifest.
            if self._sizes() == before:
                return

    def _videos(self, path: Path) -> list[StoredVideo]:
        try:
            return list_videos(path)
        except DamagedCodes as error:
            self.on_damaged(path, error.reason)
            with suppress(FileNotFoundError):  # another process has renamed it
                path.rename(path.with_name(f"{path.name}.damaged"))
        except UnusableMedia:
            if path.exists():
                raise
        return []

    def _files(self) -> list[tuple[int, int, int, Path]]:
        """Run, rank, number and path of files, including damaged shards."""
        paths = self.folder.iterdir() if self.folder.is_dir() else ()
        matches = ((_NAME.fullmatch(path.name), path) for path in paths)
        return [(*(int(n or 0) for n in match.groups()), path) for match, path in matches if match]

    def _sizes(self) -> dict[Path, int]:
        sizes = {}
        for *_, path in self._files():
            with suppress(FileNotFoundError):
                sizes[path] = path.stat().st_size
        return sizes


def _read_failures(path: Path) -> Iterator[Failure]:
    for line in path.read_text().splitlines():
        with suppress(
            ValueError, KeyError, TypeError
        ):  # a truncated line: the input is tried again
            values = json.loads(line)
            origin = values["origin"] and Origin.from_json(values["origin"])
            yield Failure(values["path"], values["reason"], origin)


def _manifest_line(path: str, event: StoredVideo | Failure) -> dict[str, Any]:
    if isinstance(event, Failure):
        return {"path": path, "status": "failed", "reason": event.reason}
    return {
        "path": path,
        "status": "done",
        "shard": event.location.file.name,
        "key": event.key,
        "num_frames": event.header.num_frames,
        "grid": event.header.grid,
    }
