"""`magvit2 reconstruct`: encodes and decodes video and image files."""

from pathlib import Path
from typing import Literal

from magvit2_pytorch.cli.jobs import FrameCounter, Job, frame_count, plan_jobs, run_jobs
from magvit2_pytorch.cli.model_folder import (
    Device,
    check_counts,
    find_tokenizer,
    load_tokenizer,
    user_errors,
)


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
    """Reconstructs videos and images with a tokenizer, and measures PSNR.

    Encodes and decodes each file in one pass, and prints the PSNR of the decoded frames, over all
    frames and before any video codec. Videos keep their frame rate and their sound (the default
    audio track; a gif has none). A video may have any length: reading, computing and writing run
    at the same time in constant memory. An interrupted command leaves no partial file. Files that
    cannot be used are named and skipped; the exit status is 1 if none could be used.

    Args:
        inputs: Video and image files, and folders of them.
        output: For one input, a file name ending in .mp4, .mov, .m4v, .mkv or .gif (for an image,
            .png, .jpg, .jpeg, .webp or .bmp); otherwise a folder, which gets .mp4 and .png files
            with the names and sub-folders of the inputs.
        side_by_side: Put the original to the left of the reconstruction.
    """
    check_counts(size=size, chunk_frames=chunk_frames)
    find_tokenizer(model)
    from magvit2_pytorch.media.sources import IMAGE_SUFFIXES, VIDEO_SUFFIXES
    from magvit2_pytorch.pipelines.files import reconstruct_file
    from magvit2_pytorch.pipelines.fingerprint import check_supports_files
    from magvit2_pytorch.pipelines.inference import Inference
    from magvit2_pytorch.pipelines.media_file import (
        ALL_WRITABLE,
        SUFFIX_OF,
        check_writable,
        media_kind,
    )

    sources = VIDEO_SUFFIXES + IMAGE_SUFFIXES

    def suffix(path: Path) -> str:
        return SUFFIX_OF[media_kind(path)]

    jobs = plan_jobs(inputs, output, sources, suffix, ALL_WRITABLE)
    with user_errors():
        for job in jobs:
            check_writable(job.target, media_kind(job.source))
    tokenizer, _ = load_tokenizer(model, device)
    inference = Inference(precision, tile_size, chunk_frames)
    with user_errors():
        check_supports_files(tokenizer, needs_codes=False)
        inference.check(tokenizer)
    psnrs: list[float] = []

    def work(job: Job, on_frames: FrameCounter) -> str:
        result = reconstruct_file(
            tokenizer,
            job.source,
            job.target,
            side_by_side=side_by_side,
            size=size,
            inference=inference,
            on_frames=on_frames,
        )
        psnrs.append(result.psnr_db)
        pixels = f"{result.width} x {result.height}"
        return f"psnr {result.psnr_db:.2f} dB, {frame_count(result.num_frames)}, {pixels}"

    status = run_jobs(jobs, work)
    if len(psnrs) > 1:
        print(f"mean psnr of {len(psnrs)} files: {sum(psnrs) / len(psnrs):.2f} dB")
    return status
