"""`magvit2 reconstruct`: encodes and decodes video and image files."""

from magvit2_pytorch.cli.jobs import Job, frame_count, plan_media_jobs, run_jobs
from magvit2_pytorch.cli.model_folder import check_counts, find_tokenizer
from magvit2_pytorch.cli.options import Inputs, MediaOutput, Model, Size, StreamOptions
from magvit2_pytorch.pipelines.progress import FrameCallback


def reconstruct(
    inputs: Inputs,
    /,
    *,
    model: Model,
    output: MediaOutput,
    size: Size = None,
    side_by_side: bool = False,
    computing: StreamOptions,
) -> int:
    """Reconstructs videos and images with a tokenizer, and measures PSNR.

    Encodes and decodes each file in one pass, and prints the PSNR of the decoded frames, over all
    frames and before any video codec. Videos keep their frame rate and their sound (the default
    audio track; a gif has none). A video may have any length: reading, computing and writing run
    at the same time in constant memory. An interrupted command leaves no partial file. Files that
    cannot be used are named and skipped; the exit status is 1 if none could be used.

    Args:
        side_by_side: Put the original to the left of the reconstruction.
    """
    check_counts(size=size)
    find_tokenizer(model)
    jobs = plan_media_jobs(inputs, output)
    tokenizer, _, inference = computing.load(model)
    from magvit2_pytorch.pipelines.files import reconstruct_file

    options = dict(size=size, side_by_side=side_by_side, inference=inference)
    psnrs: list[float] = []

    def work(job: Job, on_frames: FrameCallback) -> str:
        result = reconstruct_file(tokenizer, job.source, job.target, on_frames=on_frames, **options)
        psnrs.append(result.psnr_db)
        pixels = f"{result.width} x {result.height}"
        return f"psnr {result.psnr_db:.2f} dB, {frame_count(result.num_frames)}, {pixels}"

    status = run_jobs(jobs, work)
    if len(psnrs) > 1:
        print(f"mean psnr of {len(psnrs)} files: {sum(psnrs) / len(psnrs):.2f} dB")
    return status
