"""`magvit2 decode`, `reconstruct` and `upscale`: write video and image files."""

from pathlib import Path

from magvit2_pytorch.cli.jobs import Job, frame_count, plan_jobs, plan_media_jobs, run_jobs
from magvit2_pytorch.cli.options import (
    Inputs,
    MediaOutput,
    Model,
    Size,
    StreamOptions,
    UpscaleOptions,
    UpscalerModel,
    check_counts,
    find_model,
    find_tokenizer,
    user_errors,
)
from magvit2_pytorch.pipelines.progress import FrameCallback


def decode(
    codes: list[str],
    /,
    *,
    model: str,
    output: MediaOutput,
    force: bool = False,
    computing: StreamOptions,
) -> int:
    """Decodes code files to videos and images.

    The output has the size and frame rate of the original, or the larger size of a tokenizer that
    was trained to draw its codes larger. A video may have any length: frames are computed while
    earlier ones are written. An interrupted command leaves no partial file. Files
    that cannot be used are named and skipped; the exit status is 1 if none could be used.

    Args:
        codes: Files that `magvit2 tokenize` wrote, and folders of them.
        model: Folder of the tokenizer that made them, or of one that began with it and a frozen
            encoder, or of its run, or hf://OWNER/NAME.
        force: Decode codes of another tokenizer too, if its codebook and strides are the same.
    """
    find_tokenizer(model)
    from magvit2_pytorch.codes.code_file import CODE_SUFFIX, CodeFile, read_codes
    from magvit2_pytorch.media.unusable import UnusableMedia
    from magvit2_pytorch.pipelines.files import decode_file
    from magvit2_pytorch.pipelines.media_file import ALL_WRITABLE, SUFFIX_OF, check_writable

    def suffix(path: Path) -> str:
        try:
            return SUFFIX_OF[CodeFile(path).videos[0].kind]
        except UnusableMedia:  # reported when this file is decoded
            return SUFFIX_OF["video"]

    jobs = plan_jobs(codes, output, [CODE_SUFFIX], suffix, ALL_WRITABLE)
    if len(jobs) == 1:
        with user_errors():
            check_writable(jobs[0].target, CodeFile(jobs[0].source).videos[0].kind)
    tokenizer, tokenizer_id, inference = computing.load(model, needs_codes=True)
    options = dict(inference=inference, tokenizer_id=tokenizer_id, force=force)

    def work(job: Job, on_frames: FrameCallback) -> str:
        codes, video = read_codes(job.source)
        height, width = decode_file(
            tokenizer, codes, video, job.target, on_frames=on_frames, **options
        )
        return f"{frame_count(video.num_frames)}, {width} x {height}"

    return run_jobs(jobs, work)


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


def upscale(
    inputs: Inputs,
    /,
    *,
    model: UpscalerModel,
    output: MediaOutput,
    size: Size = None,
    computing: UpscaleOptions,
) -> int:
    """Enlarges videos and images two or four times by super-resolution.

    Videos keep their frame rate and their sound (the default audio track; a gif has none). A video
    may have any length: reading, computing and writing run at the same time in constant memory. An
    interrupted command leaves no partial file. Files that cannot be used are named and skipped; the
    exit status is 1 if none could be used.
    """
    check_counts(size=size)
    find_model(model, "upscaler", "--model")
    jobs = plan_media_jobs(inputs, output)
    upscaler, inference = computing.load(model)
    from magvit2_pytorch.pipelines.files import upscale_file

    def work(job: Job, on_frames: FrameCallback) -> str:
        options = dict(size=size, inference=inference, on_frames=on_frames)
        num_frames, height, width = upscale_file(upscaler, job.source, job.target, **options)
        return f"{frame_count(num_frames)}, {width} x {height}"

    return run_jobs(jobs, work)
