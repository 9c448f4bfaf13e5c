"""`magvit2 tokenize`: video and image files to code files, or to shards of codes."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from magvit2_pytorch.cli.batch import FrameCounter, frames, run_jobs
from magvit2_pytorch.cli.errors import UsageError, UserError, check_counts, user_errors
from magvit2_pytorch.cli.jobs import Job, has_suffix, plan_jobs
from magvit2_pytorch.cli.model_folder import Device, find_tokenizer, load_tokenizer
from magvit2_pytorch.cli.processes import Process, current_process

if TYPE_CHECKING:
    from magvit2_pytorch.data.code_file import CodeHeader, Origin
    from magvit2_pytorch.tokenizer.model import VideoTokenizer


def tokenize(
    inputs: list[str],
    /,
    *,
    model: str,
    output: str,
    size: int | None = None,
    shard_mb: float | None = None,
    retry_failed: bool = False,
    chunk_frames: int = 16,
    tile_size: int | Literal["auto"] | None = None,
    device: Device = "auto",
    precision: Literal["fp32", "bf16"] = "fp32",
) -> int:
    """Turns videos and images into files of discrete codes.

    Any size and length will do: memory does not grow with the number of frames, but for 8 bytes a
    code, and what the tokenizer's strides do not divide is padded, and cut off again by
    `magvit2 decode`. Files that cannot be used are named and skipped; the exit status is 1 if none
    could be.

    The same command goes on where an earlier one stopped: what is there already is left as it is,
    if file, tokenizer, size and precision are the same. Several processes share the files:

      torchrun --nproc_per_node 8 -m magvit2_pytorch tokenize videos/ ...

    With --shard_mb, for a corpus, the output folder gets a few large files that `CodesDataset`
    reads, and manifest.jsonl: what became of each input, and why some failed.

    Args:
        inputs: Video and image files, and folders of them.
        model: Folder of the tokenizer or of the run that trained it, or hf://OWNER/NAME.
        output: A name ending in .codes.safetensors for one file; else a folder, which gets the
            names and sub-folders of the inputs.
        size: Resize to this many pixels on the short side; the file's own size if not given.
        shard_mb: Write shards of up to so many megabytes, with the codes of many inputs in each;
            256 is a good size, and what a process that is killed can lose.
        retry_failed: With --shard_mb, try files again that failed in an earlier run; if not
            given, only those that have changed since.
        chunk_frames: Frames in memory at a time: fewer need less memory, more may be faster.
        tile_size: Compute frames in tiles of so many pixels to a side, or `auto` for as many as
            fit into memory: the same but for rounding, for sizes that do not fit.
        device: Where to compute; auto takes a GPU if there is one.
        precision: What convolutions compute in; bf16 is faster where the hardware knows it and
            changes about two codes in a hundred, which decode as well.
    """
    check_counts(size=size, chunk_frames=chunk_frames)
    _check_shards(shard_mb, retry_failed, output)
    find_tokenizer(model)
    from magvit2_pytorch.data import CODE_SUFFIX
    from magvit2_pytorch.data.sources import IMAGE_SUFFIXES, VIDEO_SUFFIXES
    from magvit2_pytorch.evaluation.compatibility import check_supports_files
    from magvit2_pytorch.tokenizer.tile_size import check_tile_size

    def suffix(source: Path) -> str:
        # In a corpus an input keeps its whole name.
        return CODE_SUFFIX if shard_mb is None else source.suffix + CODE_SUFFIX

    sources = VIDEO_SUFFIXES + IMAGE_SUFFIXES
    jobs = plan_jobs(inputs, output, sources, suffix, [CODE_SUFFIX])
    process = current_process()
    if device != "cpu":
        process.select_gpu()
    tokenizer, tokenizer_id = load_tokenizer(model, device)
    with user_errors():
        check_supports_files(tokenizer, needs_codes=True)
        check_tile_size(tile_size, tokenizer.space_factor)
    options = dict(
        size=size, chunk_frames=chunk_frames, precision=precision, tokenizer_id=tokenizer_id
    )
    options["tile_size"] = tile_size
    try:
        if shard_mb is None:
            return _tokenize_to_files(tokenizer, jobs, process, options)
        from magvit2_pytorch.cli.corpus import tokenize_to_shards

        folder = Path(output).expanduser()
        names = [job.target.relative_to(folder).as_posix() for job in jobs]
        return tokenize_to_shards(
            tokenizer,
            {n.removesuffix(CODE_SUFFIX): job.source for n, job in zip(names, jobs, strict=True)},
            folder,
            process,
            max_shard_bytes=max(round(shard_mb * 1e6), 1),
            retry_failed=retry_failed,
            **options,
        )
    except KeyboardInterrupt:
        print("magvit2: the same command goes on where this one stops", file=sys.stderr)
        raise


def _check_shards(shard_mb: float | None, retry_failed: bool, output: str) -> None:
    if shard_mb is None:
        if retry_failed:
            raise UsageError("--retry_failed goes with --shard_mb: else they are always tried")
        return
    from magvit2_pytorch.data.code_file import CODE_SUFFIX

    if not 0 < shard_mb < float("inf"):
        raise UsageError(f"--shard_mb {shard_mb}: megabytes, more than none")
    if has_suffix(Path(output), [CODE_SUFFIX]):
        raise UserError(f"{output} names a file, and --shard_mb writes several: name a folder")


def _tokenize_to_files(
    tokenizer: "VideoTokenizer", jobs: Sequence[Job], process: Process, options: dict[str, Any]
) -> int:
    """A code file for each input of this process's share."""
    from magvit2_pytorch.data.code_file import Origin, write_codes
    from magvit2_pytorch.data.unusable import blame
    from magvit2_pytorch.evaluation.files import tokenize_file

    def work(job: Job, on_frames: FrameCounter) -> str:
        with blame(job.source):
            how = options["size"], options["precision"]
            origin = Origin.of(job.source, job.source.name, *how)
        header, there = _made_before(job.target, options["tokenizer_id"].fingerprint, origin), True
        if header is None:
            codes, header = tokenize_file(tokenizer, job.source, on_frames=on_frames, **options)
            write_codes(job.target, codes, header, origin)
            there = False
        grid = " x ".join(map(str, header.codes_shape))
        size = f"{header.width} x {header.height}"
        said = f"{frames(header.num_frames)}, {size}, to {grid} codes"
        return f"{said}, already there" if there else said

    if process.alone:
        return run_jobs(jobs, work)
    share = jobs[process.rank :: process.world_size]
    print(f"{process.prefix}{len(share)} of {len(jobs)} files", flush=True)
    try:
        # Launchers stop all processes when one has failed, and a broken file is no such reason.
        run_jobs(share, work)
    except UserError as error:
        print(f"magvit2: skipped: {error}", file=sys.stderr)
    return 0


def _made_before(target: Path, fingerprint: str, origin: "Origin") -> "CodeHeader | None":
    """The header of a code file that holds what would be made now, if there is one."""
    from magvit2_pytorch.data import UnusableMedia
    from magvit2_pytorch.data.code_shards import check_stored, stored_videos

    try:
        videos = stored_videos(target)
        for video in videos:
            check_stored(video)
    except UnusableMedia:
        return None
    same = [v.header for v in videos if (v.header.fingerprint, v.origin) == (fingerprint, origin)]
    return same[0] if same else None
