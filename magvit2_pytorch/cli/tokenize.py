"""`magvit2 tokenize`: video and image files to code files."""

from typing import Literal

from magvit2_pytorch.cli.batch import OnFrames, frames, run_jobs
from magvit2_pytorch.cli.errors import check_counts, mistakes
from magvit2_pytorch.cli.jobs import Job, plan_jobs
from magvit2_pytorch.cli.model_folder import Device, find_tokenizer, load_tokenizer


def tokenize(
    inputs: list[str],
    /,
    *,
    model: str,
    output: str,
    size: int | None = None,
    chunk_frames: int = 16,
    device: Device = "auto",
    precision: Literal["fp32", "bf16"] = "fp32",
) -> int:
    """Turns videos and images into files of discrete codes.

    Any size and length will do: memory does not grow with the number of frames, and what the
    tokenizer's strides do not divide is padded, and cut off again by `magvit2 decode`. Files that
    cannot be used are named and skipped; the exit status is 1 if none could be.

    Args:
        inputs: Video and image files, and folders of them.
        model: Folder of the tokenizer or of the run that trained it, or hf://OWNER/NAME.
        output: A name ending in .codes.safetensors for one file; else a folder, which gets the
            names and sub-folders of the inputs.
        size: Resize to this many pixels on the short side; the file's own size if not given.
        chunk_frames: Frames in memory at a time: fewer need less memory, more may be faster.
        device: Where to compute; auto takes a GPU if there is one.
        precision: What convolutions compute in; bf16 is faster where the hardware knows it and
            changes a few codes in a thousand.
    """
    check_counts(size=size, chunk_frames=chunk_frames)
    find_tokenizer(model)
    from magvit2_pytorch.data import CODE_SUFFIX, write_codes
    from magvit2_pytorch.data.sources import IMAGE_SUFFIXES, VIDEO_SUFFIXES
    from magvit2_pytorch.evaluation.compatibility import check_takes_files
    from magvit2_pytorch.evaluation.files import tokenize_file

    sources = VIDEO_SUFFIXES + IMAGE_SUFFIXES
    jobs = plan_jobs(inputs, output, sources, lambda source: CODE_SUFFIX, [CODE_SUFFIX])
    tokenizer, identity = load_tokenizer(model, device)
    with mistakes():
        check_takes_files(tokenizer, needs_codes=True)

    def work(job: Job, on_frames: OnFrames) -> str:
        codes, header = tokenize_file(
            tokenizer,
            job.source,
            size=size,
            chunk_frames=chunk_frames,
            precision=precision,
            identity=identity,
            on_frames=on_frames,
        )
        write_codes(job.target, codes, header)
        grid = " x ".join(map(str, header.codes_shape))
        return f"{frames(header.num_frames)}, {header.width} x {header.height}, to {grid} codes"

    return run_jobs(jobs, work)
