"""A corpus to shards of codes: by many processes, each input once, and what failed and why.

Processes share the output folder and nothing else. Each takes every `world_size`-th input of one
list, so that none has to be told what the others do, and one that dies or is started again
disturbs no other. What is in the shards is done, whoever wrote them; what is not is the next run's,
on as many processes as it has.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from operator import ne
from pathlib import Path
from typing import Any, NamedTuple

import torch

from magvit2_pytorch.data.code_file import CodeHeader, OneVideosCodes, Origin
from magvit2_pytorch.data.code_shards import (
    DamagedCodes,
    ShardName,
    ShardWriter,
    StoredVideo,
    check_stored,
)
from magvit2_pytorch.data.replace_file import remove_abandoned
from magvit2_pytorch.data.unusable import UnusableMedia
from magvit2_pytorch.evaluation.corpus_folder import CorpusFolder, Failure
from magvit2_pytorch.evaluation.files import FrameCallback, tokenize_file
from magvit2_pytorch.evaluation.identity import TokenizerId
from magvit2_pytorch.evaluation.media import DEFAULT_CHUNK_FRAMES
from magvit2_pytorch.tokenizer.model import VideoTokenizer
from magvit2_pytorch.tokenizer.tile_size import TileSize
from magvit2_pytorch.types import Precision

OUT_OF_MEMORY = (MemoryError, torch.cuda.OutOfMemoryError)
"""What a file raises that is whole, and more than the machine can take."""


class CorpusMismatch(ValueError):
    """A folder of shards was begun with another tokenizer, size or precision."""


@dataclass
class CorpusReport:
    """What became of one process's share of a corpus."""

    num_inputs: int = 0
    num_done_before: int = 0
    num_failed_before: int = 0
    """In an earlier run, and left out of this one."""
    num_done: int = 0
    failed: list[Failure] = field(default_factory=list)
    """In this run."""

    @property
    def num_to_do(self) -> int:
        """What this run has to do, or had to when it began."""
        return self.num_inputs - self.num_done_before - self.num_failed_before


class CorpusProgress:
    """Is told how a corpus goes; what a method raises ends the run, and what is whole stays."""

    def damaged(self, file: Path, what: str) -> None:
        """A shard, or codes in one, that are not as they were written: they are made again."""

    def planned(self, report: CorpusReport) -> None:
        """It is known what there is to do."""

    def frames(self, path: str, done: int, total: int) -> None:
        """Within an input."""

    def written(self, shard: Path) -> None:
        """A shard is whole."""

    def finished(self, path: str, reason: str | None) -> None:
        """An input has its codes, or failed for this reason."""


def tokenize_corpus(
    tokenizer: VideoTokenizer,
    inputs: Mapping[str, Path],
    folder: str | os.PathLike,
    *,
    max_shard_bytes: int = 256_000_000,
    size: int | None = None,
    chunk_frames: int = DEFAULT_CHUNK_FRAMES,
    precision: Precision = "fp32",
    tile_size: TileSize | None = None,
    tokenizer_id: TokenizerId | None = None,
    rank: int = 0,
    world_size: int = 1,
    retry_failed: bool = False,
    progress: CorpusProgress | None = None,
) -> CorpusReport:
    """Does this process's share of what is left of `inputs`: paths in the corpus, and files.

    All processes give the same inputs in the same order. An input is done if the shards in
    `folder` hold whole codes of it as it is now; one that failed is done again where it has
    changed since, or with `retry_failed`. A file fails that cannot be decoded, or does not fit
    into memory. Whatever ends the run, codes that are ready are written first. Up to
    `max_shard_bytes` of codes are held in memory, and as much again while they are written.

    Raises `CorpusMismatch` (a `ValueError`) where the folder was begun with another tokenizer,
    size or precision, and `UnusableMedia` where a shard cannot be read though it is not damaged.
    """
    progress = progress or CorpusProgress()
    pieces = dict(chunk_frames=chunk_frames, tile_size=tile_size)
    how = _How(tokenizer_id or TokenizerId.of(tokenizer), size, precision)
    share = dict(list(inputs.items())[rank::world_size])
    corpus = CorpusFolder(folder, progress.damaged)
    todo, report = _plan(corpus, share, how, retry_failed, progress)
    progress.planned(report)
    run = corpus.num_runs()
    corpus.folder.mkdir(parents=True, exist_ok=True)
    remove_abandoned(corpus.folder)
    writer = ShardWriter(corpus.folder, ShardName(run, rank, 0), max_shard_bytes)
    try:
        for path, file in todo.items():
            origin = how.origin(path, file)
            made = "the file is missing"
            if origin is not None:
                made = _try(tokenizer, file, how, pieces, partial(progress.frames, path))
            if isinstance(made, str):
                report.failed.append(Failure(path, made, origin))
                corpus.add_failure(run, rank, report.failed[-1])
            else:
                written = writer.add(*made, origin)
                report.num_done += 1
                if written:
                    progress.written(written)
            progress.finished(path, made if isinstance(made, str) else None)
    finally:
        written = writer.flush()
        corpus.write_manifest()
    if written:
        progress.written(written)
    return report


class _How(NamedTuple):
    """What codes depend on, beside the file."""

    tokenizer_id: TokenizerId
    size: int | None
    precision: Precision

    def origin(self, path: str, file: Path) -> Origin | None:
        """That of a file as it is now; None where there is none."""
        try:
            return Origin.of(file, path, self.size, self.precision)
        except OSError:
            return None

    def check(self, video: StoredVideo) -> None:
        """Raises `CorpusMismatch` on codes that are of another kind."""
        then = (video.header.fingerprint, video.origin.size, video.origin.precision)
        now = (self.tokenizer_id.fingerprint, self.size, self.precision)
        if then == now:
            return
        author = TokenizerId(video.header.tokenizer, video.header.fingerprint)
        pairs = {
            "the tokenizer": (author, self.tokenizer_id),
            "size": (video.origin.size or "as it is", self.size or "as it is"),
            "precision": (video.origin.precision, self.precision),
        }
        differ = [
            f"{name} {theirs}, not {ours}"
            for (name, (theirs, ours)), differs in zip(
                pairs.items(), map(ne, then, now), strict=True
            )
            if differs
        ]
        raise CorpusMismatch(
            f"{video.place.file.parent} was begun with {', and '.join(differ)}: "
            "go on as it was begun, or choose another folder"
        )


def _plan(
    corpus: CorpusFolder,
    share: Mapping[str, Path],
    how: _How,
    retry_failed: bool,
    progress: CorpusProgress,
) -> tuple[dict[str, Path], CorpusReport]:
    """What there is to do of a share, in its order."""
    latest = {}
    for path, event in corpus.events():
        if isinstance(event, StoredVideo):
            how.check(event)
        if path in share:
            latest[path] = event
    report, todo = CorpusReport(num_inputs=len(share)), {}
    for path, file in share.items():
        event = latest.get(path)
        if event is None or event.origin != how.origin(path, file):
            todo[path] = file
        elif isinstance(event, Failure) and not retry_failed:
            report.num_failed_before += 1
        elif isinstance(event, StoredVideo) and _is_whole(event, progress):
            report.num_done_before += 1
        else:
            todo[path] = file
    return todo, report


def _is_whole(video: StoredVideo, progress: CorpusProgress) -> bool:
    try:
        check_stored(video)
    except DamagedCodes as error:
        progress.damaged(video.place.file, error.reason)
        return False
    return True


def _try(
    tokenizer: VideoTokenizer,
    file: Path,
    how: _How,
    pieces: dict[str, Any],
    on_frames: FrameCallback,
) -> tuple[OneVideosCodes, CodeHeader] | str:
    """The codes of a file, or why there are none."""
    try:
        return tokenize_file(
            tokenizer,
            file,
            size=how.size,
            **pieces,
            precision=how.precision,
            tokenizer_id=how.tokenizer_id,
            on_frames=on_frames,
        )
    except UnusableMedia as error:
        return error.reason
    except OUT_OF_MEMORY as error:
        return f"is too large for the memory ({type(error).__name__}): try a smaller size"
