"""`magvit2 tokenize --shard_mb`: tokenizes a corpus to shards.

Imported only when needed, because its own imports take a second.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from magvit2_pytorch.cli.model_folder import user_errors
from magvit2_pytorch.cli.train import Process
from magvit2_pytorch.pipelines.corpus import (
    CorpusMismatch,
    CorpusProgress,
    CorpusReport,
    tokenize_corpus,
)
from magvit2_pytorch.pipelines.corpus_folder import MANIFEST
from magvit2_pytorch.tokenizer.model import VideoTokenizer
from magvit2_pytorch.training.processes import Interruptible


def tokenize_to_shards(
    tokenizer: VideoTokenizer,
    inputs: Mapping[str, Path],
    folder: Path,
    process: Process,
    **options: Any,
) -> int:
    """Tokenizes this process's share, shows progress and returns the exit status.

    `options` are those of `tokenize_corpus`. Ctrl-C writes the codes that are ready. The status
    is 1 if this is the only process and every input it tried failed.
    """
    # One bar per terminal: all processes have equal shares.
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
    return 1 if process.is_single and report.failed and not report.num_done else 0


class _CorpusBar(CorpusProgress):
    """A progress bar, and lines of text for the log."""

    def __init__(self, bar: tqdm, interrupt: Interruptible, process: Process):
        self.bar = bar
        self.interrupt = interrupt
        self.process = process
        self.num_finished = 0

    def damaged(self, file: Path, reason: str) -> None:
        self._print(
            f"magvit2: warning: {file}: {reason}; its inputs are tokenized again", sys.stderr
        )

    def planned(self, report: CorpusReport) -> None:
        self.bar.total = report.num_to_do
        numbers = {
            "{} inputs": report.num_inputs,
            "{} done before": report.num_done_before,
            "{} failed before (--retry_failed tries them again)": report.num_failed_before,
        }
        texts = [text.format(number) for text, number in numbers.items() if number]
        self._print(f"{self.process.prefix}{', '.join([*texts, f'{report.num_to_do} to do'])}")

    def frames(self, path: str, done: int, total: int) -> None:
        self.bar.set_postfix_str(f"{Path(path).name} {done}/{max(done, total)}")
        self._stop_if_interrupted()

    def written(self, shard: Path) -> None:
        self._print(f"{shard}: written after {self.num_finished} of {self.bar.total} files")

    def finished(self, path: str, reason: str | None) -> None:
        if reason is not None:
            self._print(f"magvit2: skipped: {path}: {reason}", sys.stderr)
        self.num_finished += 1
        self.bar.update()
        self._stop_if_interrupted()

    def _print(self, line: str, file: Any = None) -> None:
        self.bar.write(line, file=file or sys.stdout)

    def _stop_if_interrupted(self) -> None:
        if self.interrupt.requested:
            raise KeyboardInterrupt
