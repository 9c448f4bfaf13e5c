"""`magvit2 tokenize`: encodes video and image files to code files or shards."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from magvit2_pytorch.atomic import as_path, normalized
from magvit2_pytorch.cli.jobs import (
    Job,
    Process,
    current_process,
    frame_count,
    has_suffix,
    plan_jobs,
    resumable,
    run_jobs,
)
from magvit2_pytorch.cli.options import (
    Inputs,
    Model,
    Size,
    StreamOptions,
    UsageError,
    UserError,
    check_counts,
    find_tokenizer,
    user_errors,
)
from magvit2_pytorch.cli.progress_bar import interruptible_bar
from magvit2_pytorch.pipelines.progress import FrameCallback, Plan

if TYPE_CHECKING:
    from magvit2_pytorch.codes.code_header import CodedVideo, CodeHeader
    from magvit2_pytorch.codes.views import View
    from magvit2_pytorch.tokenizer.model import VideoTokenizer


@dataclass(frozen=True, kw_only=True)
class ShardOptions:
    """Options of a large corpus, whose codes go to few files."""

    shard_mb: float | None = None
    """Write shards of up to this many megabytes, each with the codes of many inputs. 256 is a good
    size; a killed process loses at most one shard."""
    retry_failed: bool = False
    """With --shard_mb, retry all files that failed in an earlier run; by default only those that
    have changed since."""

    def check(self, output: str) -> None:
        """Raises `UserError` unless the options fit each other and the output."""
        if self.shard_mb is None:
            if self.retry_failed:
                raise UsageError(
                    "--retry_failed requires --shard_mb; without it, failed files are always "
                    "retried"
                )
            return
        from magvit2_pytorch.codes.code_file import CODE_SUFFIX

        if not 0 < self.shard_mb < float("inf"):
            raise UsageError(f"--shard_mb {self.shard_mb}: must be above 0")
        if has_suffix(Path(output), [CODE_SUFFIX]):
            raise UserError(f"{output} names a file, but --shard_mb writes several: name a folder")


def tokenize(
    inputs: Inputs,
    /,
    *,
    model: Model,
    output: str,
    size: Size = None,
    views: str | None = None,
    shards: ShardOptions,
    computing: StreamOptions,
) -> int:
    """Encodes videos and images to files of discrete codes.

    Videos may have any size and length. Memory is constant apart from 8 bytes per code. Sizes that
    are not multiples of the tokenizer's strides are padded; `magvit2 decode` cuts the padding off.
    Files that cannot be used are named and skipped; the exit status is 1 if none could be used.

    Running the same command again continues an interrupted one: existing output is kept if file,
    tokenizer, size and precision are the same. Several processes share the files:

      torchrun --nproc_per_node 8 -m magvit2_pytorch tokenize videos/ ...

    With --shard_mb, for a large corpus, the output folder gets a few large files, which
    `CodesDataset` reads, and manifest.jsonl, which lists the result or the error of each input.

    Args:
        output: For one input, a file name ending in .codes.safetensors; otherwise a folder, which
            gets the names and sub-folders of the inputs.
        views: Also encode mirrored videos (flip), videos from each of the first N frames on
            (shift:N), or both (flip,shift:N), as files of their own: more codes of one film, to
            train a generator on.
    """
    check_counts(size=size)
    shards.check(output)
    find_tokenizer(model)
    from magvit2_pytorch.codes.code_file import CODE_SUFFIX
    from magvit2_pytorch.codes.views import View, parse_views
    from magvit2_pytorch.media.sources import IMAGE_SUFFIXES, VIDEO_SUFFIXES

    def suffix(source: Path) -> str:
        # In a corpus, inputs keep their full name.
        return CODE_SUFFIX if shards.shard_mb is None else source.suffix + CODE_SUFFIX

    jobs = plan_jobs(inputs, output, VIDEO_SUFFIXES + IMAGE_SUFFIXES, suffix, [CODE_SUFFIX])
    process = current_process()
    if computing.device != "cpu":
        process.select_gpu()
    with user_errors(to=UsageError):
        chosen = [View()] if views is None else parse_views(views)
    tokenizer, tokenizer_id, inference = computing.load(model, needs_codes=True)
    options = dict(size=size, inference=inference, tokenizer_id=tokenizer_id)
    with resumable():
        if shards.shard_mb is None:
            jobs, work = _work_on_files(tokenizer, jobs, options, chosen)
            return run_jobs(jobs, work) if process.is_single else _run_share(jobs, work, process)
        max_bytes = max(round(shards.shard_mb * 1e6), 1)
        options |= dict(views=chosen, max_shard_bytes=max_bytes, retry_failed=shards.retry_failed)
        return _tokenize_to_shards(tokenizer, jobs, as_path(output), process, options)


def _work_on_files(
    tokenizer: "VideoTokenizer",
    jobs: Sequence[Job],
    options: dict[str, Any],
    views: "Sequence[View]",
) -> tuple[list[Job], Callable[[Job, FrameCallback], str]]:
    """Jobs for all views of all inputs, and the function for one."""
    from magvit2_pytorch.codes.code_file import CODE_SUFFIX, write_codes
    from magvit2_pytorch.pipelines.files import code_header, tokenize_file

    view_of = {}
    for job in jobs:
        name = job.target.name
        stem, suffix = name[: -len(CODE_SUFFIX)], name[-len(CODE_SUFFIX) :]
        for view in views:
            view_of[Job(job.source, job.target.with_name(view.path(stem) + suffix))] = view
    header = code_header(tokenizer, **options)

    def work(job: Job, on_frames: FrameCallback) -> str:
        view = view_of[job]
        video, ending = _existing(job, view, header), ", already there"
        if video is None:
            options_of_file = dict(on_frames=on_frames, view=view, **options)
            codes, video = tokenize_file(tokenizer, job.source, **options_of_file)
            write_codes(job.target, codes, video)
            ending = ""
        shape = " x ".join(map(str, video.shape))
        size = f"{video.width} x {video.height}"
        return f"{frame_count(video.num_frames)}, {size}, to {shape} codes{ending}"

    return list(view_of), work


def _run_share(
    jobs: Sequence[Job], work: Callable[[Job, FrameCallback], str], process: Process
) -> int:
    """Runs this process's share; a failure does not stop other processes."""
    share = jobs[process.rank :: process.world_size]
    print(f"{process.prefix}{len(share)} of {len(jobs)} files", flush=True)
    try:
        # Launchers stop all processes when one fails; a broken file must not cause that.
        run_jobs(share, work)
    except UserError as error:
        print(f"magvit2: skipped: {error}", file=sys.stderr)
    return 0


def _tokenize_to_shards(
    tokenizer: "VideoTokenizer",
    jobs: Sequence[Job],
    folder: Path,
    process: Process,
    options: dict[str, Any],
) -> int:
    """Tokenizes this process's share to shards; Ctrl-C writes what is ready."""
    from magvit2_pytorch.codes.code_file import CODE_SUFFIX
    from magvit2_pytorch.pipelines.corpus import MANIFEST, CorpusMismatch, tokenize_corpus

    def plan_text(plan: Plan) -> str:
        numbers = {
            "{} inputs": plan.num_inputs,
            "{} done before": plan.num_done_before,
            "{} failed before (--retry_failed tries them again)": plan.num_failed_before,
        }
        texts = [text.format(number) for text, number in numbers.items() if number]
        return f"{process.prefix}{', '.join([*texts, f'{plan.num_to_do} to do'])}"

    names = [job.target.relative_to(folder).as_posix() for job in jobs]
    inputs = {n.removesuffix(CODE_SUFFIX): job.source for n, job in zip(names, jobs, strict=True)}
    # One bar per terminal: all processes have equal shares.
    bar = interruptible_bar("file", hidden=process.local_rank > 0, plan_text=plan_text)
    share = dict(rank=process.rank, world_size=process.world_size)
    with bar as progress, user_errors(CorpusMismatch):
        report = tokenize_corpus(tokenizer, inputs, folder, progress=progress, **share, **options)
    failed = f", {len(report.failed)} failed" * bool(report.failed)
    print(f"{process.prefix}{folder}: {report.num_done} done{failed}; see {folder / MANIFEST}")
    return 1 if process.is_single and report.failed and not report.num_done else 0


def _existing(job: Job, view: "View", header: "CodeHeader") -> "CodedVideo | None":
    """Metadata of codes that exist, are intact and up to date."""
    from magvit2_pytorch.codes.code_file import CodeFile
    from magvit2_pytorch.codes.code_header import file_state
    from magvit2_pytorch.media.unusable import UnusableMedia

    name = normalized(view.path(job.source.name))
    current = (header, name, file_state(job.source))
    try:
        file = CodeFile(job.target)
        for index, video in enumerate(file.videos):
            if (video.header, normalized(video.source), video.state) == current:
                file.read_verified(index)
                return video
    except UnusableMedia:
        pass
    return None
