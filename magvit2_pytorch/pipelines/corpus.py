"""Tokenizes a corpus to shards of codes, with any number of processes.

Processes share only the output folder. Each takes every `world_size`-th input of one list, so that
they need no communication, and one that dies or restarts does not disturb the others. An input is
done if its codes are in a shard, whichever process wrote it; the next run does the rest, with any
number of processes. All state is in the files of the folder:

    codes-RUN-RANK-NUMBER.safetensors   shards of codes
    failed-RUN-RANK.jsonl               failed inputs, one per line
    manifest.jsonl                      both in one list, for people and scripts; never read here

Files appear atomically, and the number of a run is higher than those of all earlier files: of
several records of an input, the one of the latest run counts.
"""

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from magvit2_pytorch.atomic import as_path, normalized, remove_abandoned, replacing
from magvit2_pytorch.codes.code_file import CodeFile, DamagedCodes, ShardName, ShardWriter
from magvit2_pytorch.codes.code_header import CodedVideo, CodeHeader, file_state
from magvit2_pytorch.codes.views import View
from magvit2_pytorch.functional import NotFinite
from magvit2_pytorch.media.unusable import UnusableMedia
from magvit2_pytorch.pipelines.files import code_header, tokenize_file
from magvit2_pytorch.pipelines.fingerprint import TokenizerId
from magvit2_pytorch.pipelines.inference import Inference
from magvit2_pytorch.pipelines.progress import FileProgress, Plan
from magvit2_pytorch.tokenizer_1d import AnyTokenizer

MANIFEST = "manifest.jsonl"
_NAME = re.compile(
    r"(?:codes|failed)-(\d{4,})-(\d{5,})(?:-\d{5,})?\.(?:safetensors|jsonl)(?:\.damaged)?"
)
OUT_OF_MEMORY = (MemoryError, torch.cuda.OutOfMemoryError)
"""Errors of an intact file that is too large for the machine."""


class CorpusMismatch(ValueError):
    """A folder of shards was started with another tokenizer, size or precision."""


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

    def __init__(self, folder: str | os.PathLike, on_damaged: Callable[[Path, str], object]):
        self.folder = as_path(folder)
        self.on_damaged = on_damaged

    def begin_run(self) -> int:
        """Makes the folder; returns the number of the new run."""
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
        """An intact shard; None if it is damaged or renamed."""
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


@dataclass
class CorpusReport(Plan):
    """Counts and failures of one process's share of a corpus."""

    num_done: int = 0
    failed: list[Failure] = field(default_factory=list)
    """Failures of this run."""


def tokenize_corpus(
    tokenizer: AnyTokenizer,
    inputs: Mapping[str, Path],
    folder: str | os.PathLike,
    *,
    max_shard_bytes: int = 256_000_000,
    size: int | None = None,
    inference: Inference = Inference(),
    tokenizer_id: TokenizerId | None = None,
    rank: int = 0,
    world_size: int = 1,
    retry_failed: bool = False,
    progress: FileProgress | None = None,
    views: Sequence[View] = (View(),),
) -> CorpusReport:
    """Tokenizes this process's share of the remaining inputs.

    `inputs` maps paths within the corpus to files; all processes give the same inputs in the same
    order. Each of the `views` of a file is an input of its own. An input is done if the shards in
    `folder` hold intact codes of its current version. A failed input is retried if it has changed
    since, or with `retry_failed`. A file fails if it cannot be decoded or does not fit into memory.
    However the run ends, codes that are ready are written first. Up to `max_shard_bytes` of codes
    are held in memory, and twice that while they are written.

    Raises `CorpusMismatch` (a `ValueError`) if the folder was started with another tokenizer, size
    or precision, and `UnusableMedia` if a shard cannot be read although it is not damaged.
    """
    progress = progress or FileProgress()
    tokenizer_id = tokenizer_id or TokenizerId.of(tokenizer)
    options = dict(size=size, inference=inference, tokenizer_id=tokenizer_id)
    header = code_header(tokenizer, **options)
    viewed = {view.path(path): (file, view) for path, file in inputs.items() for view in views}
    share = dict(list(viewed.items())[rank::world_size])
    corpus = CorpusFolder(folder, progress.damaged)
    todo, report = _plan(corpus, share, header, retry_failed, progress)
    progress.planned(report)
    run = corpus.begin_run()
    writer = ShardWriter(corpus.folder, ShardName(run, rank, 0), max_shard_bytes)
    try:
        for path, (file, view) in todo.items():
            state, reason = file_state(file), None
            each = dict(view=view, on_frames=partial(progress.frames, path))
            try:
                codes, video = tokenize_file(tokenizer, file, **each, **options)
            except (UnusableMedia, NotFinite, *OUT_OF_MEMORY) as error:
                reason = _reason(error)
                report.failed.append(Failure(path, reason, state, size, inference.precision))
                corpus.add_failure(run, rank, report.failed[-1])
            else:
                written = writer.add(codes, replace(video, source=path))
                report.num_done += 1
                if written:
                    progress.written(written)
            progress.finished(path, reason)
    finally:
        written = writer.flush()
        corpus.write_manifest()
    if written:
        progress.written(written)
    return report


def _plan(
    corpus: CorpusFolder,
    share: Mapping[str, tuple[Path, View]],
    header: CodeHeader,
    retry_failed: bool,
    progress: FileProgress,
) -> tuple[dict[str, tuple[Path, View]], CorpusReport]:
    """Remaining inputs of a share, and counts of the others."""
    latest, spellings = {}, {normalized(path): path for path in share}
    for path, event in corpus.events():
        if isinstance(event, Stored):
            _check_header(event.file, header)
        path = path if path in share else spellings.get(normalized(path))
        if path is not None:
            latest[path] = event
    report, todo = CorpusReport(num_inputs=len(share)), {}
    for path, (file, view) in share.items():
        event = latest.get(path)
        if event is None or not event.is_of(file_state(file), header):
            todo[path] = file, view
        elif isinstance(event, Failure) and not retry_failed:
            report.num_failed_before += 1
        elif isinstance(event, Stored) and _is_intact(event, progress):
            report.num_done_before += 1
        else:
            todo[path] = file, view
    return todo, report


def _check_header(file: CodeFile, ours: CodeHeader) -> None:
    """Raises `CorpusMismatch` on codes that were made with other options."""
    theirs = file.header
    if theirs == ours:
        return
    tokenizers = [str(TokenizerId(h.tokenizer, h.fingerprint)) for h in (theirs, ours)]
    pairs = {
        "size": (theirs.size or "as it is", ours.size or "as it is"),
        "precision": (theirs.precision, ours.precision),
        "num_tokens": (theirs.num_tokens, ours.num_tokens),
    }
    if theirs.fingerprint != ours.fingerprint:
        pairs = {"the tokenizer": tokenizers, **pairs}
    differ = [f"{name} {old}, not {new}" for name, (old, new) in pairs.items() if old != new]
    raise CorpusMismatch(
        f"{file.path.parent} was started with {', and '.join(differ)}: "
        "continue with the same options, or choose another folder"
    )


def _is_intact(stored: Stored, progress: FileProgress) -> bool:
    try:
        stored.file.read_verified(stored.index)
    except DamagedCodes as error:
        progress.damaged(stored.file.path, error.reason)
        return False
    return True


def _reason(error: Exception) -> str:
    """Why a file failed."""
    if isinstance(error, OUT_OF_MEMORY):
        return f"is too large for the memory ({type(error).__name__}): try a smaller size"
    return error.reason if isinstance(error, UnusableMedia) else str(error)
