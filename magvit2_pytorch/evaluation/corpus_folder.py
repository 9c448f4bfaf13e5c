"""What is known of a corpus from the files in its folder, whoever wrote them and when.

    codes-RUN-RANK-NUMBER.safetensors   shards of codes
    failed-RUN-RANK.jsonl               inputs that gave no codes, a line each
    manifest.jsonl                      both in one list, for people and scripts; never read here

Files appear whole, and a run's number is above that of all files it saw: of two things that are
said of one input, the one in the later run counts.
"""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from magvit2_pytorch.data.code_file import Origin
from magvit2_pytorch.data.code_shards import DamagedCodes, StoredVideo, list_videos
from magvit2_pytorch.data.replace_file import replacing
from magvit2_pytorch.data.unusable import UnusableMedia

MANIFEST = "manifest.jsonl"
_NAME = re.compile(
    r"(?:codes|failed)-(\d{4,})-(\d{5,})(?:-(\d{5,}))?\.(?:safetensors|jsonl)(?:\.damaged)?"
)


class Failure(NamedTuple):
    """An input that gave no codes."""

    path: str
    reason: str
    origin: Origin | None
    """None where there was no file."""


class CorpusFolder:
    """A folder of shards. `on_damaged` is told of files that are not as they were written."""

    def __init__(self, folder: str | PathLike, on_damaged: Callable[[Path, str], object]):
        self.folder = Path(folder)
        self.on_damaged = on_damaged

    def num_runs(self) -> int:
        """How many runs have left something, or a number above it."""
        return max((run + 1 for run, *_ in self._files()), default=0)

    def events(self) -> Iterator[tuple[str, StoredVideo | Failure]]:
        """Inputs and what became of them; of those that come twice, the later counts.

        A shard that is damaged as a whole is set aside under another name. Raises
        `UnusableMedia` on one that cannot be read for any other reason.
        """
        for *_, path in sorted(self._files()):
            if path.suffix == ".jsonl":
                yield from ((failure.path, failure) for failure in _read_failures(path))
            elif path.suffix == ".safetensors":
                yield from ((video.origin.path, video) for video in self._videos(path))

    def add_failure(self, run: int, rank: int, failure: Failure) -> None:
        """Keeps it, in a file of this process's own."""
        origin = failure.origin and failure.origin.to_json()
        line = json.dumps({"path": failure.path, "reason": failure.reason, "origin": origin})
        with (self.folder / f"failed-{run:04}-{rank:05}.jsonl").open("a") as file:
            file.write(line + "\n")

    def write_manifest(self) -> None:
        """Writes a line for each input that was done or failed, in the order of their paths."""
        while True:
            before = self._sizes()
            lines = {path: json.dumps(_manifest_line(path, event)) for path, event in self.events()}
            with replacing(self.folder / MANIFEST) as part, part.open("w") as file:
                file.writelines(f"{lines[path]}\n" for path in sorted(lines))
            # Another process may have ended in between, and its manifest been replaced by this.
            if self._sizes() == before:
                return

    def _videos(self, path: Path) -> list[StoredVideo]:
        try:
            return list_videos(path)
        except DamagedCodes as error:
            self.on_damaged(path, error.reason)
            with suppress(FileNotFoundError):  # another process has found it too
                path.rename(path.with_name(f"{path.name}.damaged"))
        except UnusableMedia:
            if path.exists():
                raise
        return []

    def _files(self) -> list[tuple[int, int, int, Path]]:
        """Run, rank and number of what runs left, damaged shards too."""
        paths = self.folder.iterdir() if self.folder.is_dir() else ()
        found = ((_NAME.fullmatch(path.name), path) for path in paths)
        return [(*(int(n or 0) for n in name.groups()), path) for name, path in found if name]

    def _sizes(self) -> dict[Path, int]:
        sizes = {}
        for *_, path in self._files():
            with suppress(FileNotFoundError):
                sizes[path] = path.stat().st_size
        return sizes


def _read_failures(path: Path) -> Iterator[Failure]:
    for line in path.read_text().splitlines():
        with suppress(ValueError, KeyError, TypeError):  # cut short: it is found out again
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
