"""`magvit2 tokenize --shard_mb`: a corpus, with a bar over its files.

Imported when it is asked for: its imports take a second.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from magvit2_pytorch.cli.errors import user_errors
from magvit2_pytorch.cli.processes import Process
from magvit2_pytorch.evaluation.corpus import (
    CorpusMismatch,
    CorpusProgress,
    CorpusReport,
    tokenize_corpus,
)
from magvit2_pytorch.evaluation.corpus_folder import MANIFEST
from magvit2_pytorch.tokenizer.model import VideoTokenizer
from magvit2_pytorch.training.interrupt import Interruptible


def tokenize_to_shards(
    tokenizer: VideoTokenizer,
    inputs: Mapping[str, Path],
    folder: Path,
    process: Process,
    **options: Any,
) -> int:
    """Does this process's share, tells how it goes, and returns the exit status.

    `options` are those of `tokenize_corpus`. Ctrl-C writes the codes that are ready. The status
    is 1 if this process is the only one, had something to do, and all of it failed.
    """
    # One bar for a terminal: the shares are alike.
    with (
        tqdm(unit="file", disable=None if process.local_rank == 0 else True, leave=False) as bar,
        Interruptible() as interrupt,
        user_errors(CorpusMismatch),
    ):
        report = tokenize_corpus(
            tokenizer,
            inputs,
            folder,
            rank=process.rank,
            world_size=process.world_size,
            progress=_CorpusBar(bar, interrupt, process),
            **options,
        )
    failed = f", {len(report.failed)} failed" * bool(report.failed)
    print(f"{process.prefix}{folder}: {report.num_done} done{failed}; see {folder / MANIFEST}")
    return 1 if process.alone and report.failed and not report.num_done else 0


class _CorpusBar(CorpusProgress):
    """On a terminal a bar; what is to be kept, as lines."""

    def __init__(self, bar: tqdm, interrupt: Interruptible, process: Process):
        self.bar = bar
        self.interrupt = interrupt
        self.process = process
        self.num_finished = 0

    def damaged(self, file: Path, what: str) -> None:
        self._say(f"magvit2: warning: {file}: {what}; made again", sys.stderr)

    def planned(self, report: CorpusReport) -> None:
        self.bar.total = report.num_to_do
        numbers = {
            "{} inputs": report.num_inputs,
            "{} done before": report.num_done_before,
            "{} failed before (--retry_failed tries them again)": report.num_failed_before,
        }
        said = [text.format(number) for text, number in numbers.items() if number]
        self._say(f"{self.process.prefix}{', '.join([*said, f'{report.num_to_do} to do'])}")

    def frames(self, path: str, done: int, total: int) -> None:
        self.bar.set_postfix_str(f"{Path(path).name} {done}/{max(done, total)}")
        self._stop_if_asked()

    def written(self, shard: Path) -> None:
        self._say(f"{shard}: written after {self.num_finished} of {self.bar.total} files")

    def finished(self, path: str, reason: str | None) -> None:
        if reason is not None:
            self._say(f"magvit2: skipped: {path}: {reason}", sys.stderr)
        self.num_finished += 1
        self.bar.update()
        self._stop_if_asked()

    def _say(self, line: str, file: Any = None) -> None:
        self.bar.write(line, file=file or sys.stdout)

    def _stop_if_asked(self) -> None:
        if self.interrupt.requested:
            raise KeyboardInterrupt
