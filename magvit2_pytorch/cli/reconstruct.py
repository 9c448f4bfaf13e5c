"""`magvit2 reconstruct`: video and image files through a tokenizer and back."""

from pathlib import Path
from typing import Literal

from magvit2_pytorch.cli.batch import FrameCounter, frames, run_jobs
from magvit2_pytorch.cli.errors import check_counts, user_errors
from magvit2_pytorch.cli.jobs import Job, plan_jobs
from magvit2_pytorch.cli.model_folder import Device, find_tokenizer, load_tokenizer


def reconstruct(
    inputs: list[str],
    /,
    *,
    model: str,
    output: str,
    size: int | None = None,
    side_by_side: bool = False,
    chunk_frames: int = 16,
    tile_size: int | Literal["auto"] | None = None,
    device: Device = "auto",
    precision: Literal["fp32", "bf16"] = "fp32",
) -> int:
    """Shows what a tokenizer keeps of videos and images, and measures it.

    Codes and decodes each file in one go, and prints the PSNR of what was decoded, over all
    frames and before any video codec. Videos keep their frame rate and their sound (the first
    audio track; a gif has none). Any length will do: reading, computing and writing go on at the
    same time in constant memory, and what is interrupted leaves no file. Files that cannot be used
    are named and skipped; the exit status is 1 if none could be.

    Args:
        inputs: Video and image files, and folders of them.
        model: Folder of the tokenizer or of the run that trained it, or hf://OWNER/NAME.
        output: A name ending in .mp4, .mov, .m4v, .mkv or .gif (.png, .jpg, .jpeg, .webp or .bmp
            for an image) for one file; else a folder, which gets .mp4 and .png files by the names
            and sub-folders of the inputs.
        size: Resize to this many pixels on the short side; the file's own size if not given.
        side_by_side: Put the original to the left of the reconstruction.
        chunk_frames: Frames to compute at a time: fewer need less memory, more may be faster.
        tile_size: Compute frames in tiles of so many pixels to a side, or `auto` for as many as
            fit into memory: the same but for rounding, for sizes that do not fit.
        device: Where to compute; auto takes a GPU if there is one.
        precision: What convolutions compute in.
    """
    check_counts(size=size, chunk_frames=chunk_frames)
    find_tokenizer(model)
    from magvit2_pytorch.data.sources import IMAGE_SUFFIXES, VIDEO_SUFFIXES
    from magvit2_pytorch.evaluation.compatibility import check_supports_files
    from magvit2_pytorch.evaluation.files import reconstruct_file
    from magvit2_pytorch.evaluation.media import (
        ALL_WRITABLE,
        SUFFIX_OF,
        check_writable,
        media_kind,
    )
    from magvit2_pytorch.tokenizer.tile_size import check_tile_size

    sources = VIDEO_SUFFIXES + IMAGE_SUFFIXES

    def suffix(path: Path) -> str:
        return SUFFIX_OF[media_kind(path)]

    jobs = plan_jobs(inputs, output, sources, suffix, ALL_WRITABLE)
    with user_errors():
        for job in jobs:
            check_writable(job.target, media_kind(job.source))
    tokenizer, _ = load_tokenizer(model, device)
    with user_errors():
        check_supports_files(tokenizer, needs_codes=False)
        check_tile_size(tile_size, tokenizer.space_factor)
    psnrs: list[float] = []

    def work(job: Job, on_frames: FrameCounter) -> str:
        result = reconstruct_file(
            tokenizer,
            job.source,
            job.target,
            side_by_side=side_by_side,
            size=size,
            chunk_frames=chunk_frames,
            precision=precision,
            tile_size=tile_size,
            on_frames=on_frames,
        )
        psnrs.append(result.psnr_db)
        size_text = f"{frames(result.num_frames)}, {result.width} x {result.height}"
        return f"psnr {result.psnr_db:.2f} dB, {size_text}"

    status = run_jobs(jobs, work)
    if len(psnrs) > 1:
        print(f"mean psnr of {len(psnrs)} files: {sum(psnrs) / len(psnrs):.2f} dB")
    return status
