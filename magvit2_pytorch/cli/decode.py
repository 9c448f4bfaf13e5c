"""`magvit2 decode`: decodes code files to video and image files."""

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


def decode(
    codes: list[str],
    /,
    *,
    model: str,
    output: str,
    force: bool = False,
    chunk_frames: int = 16,
    tile_size: int | Literal["auto"] | None = None,
    device: Device = "auto",
    precision: Literal["fp32", "bf16"] = "fp32",
) -> int:
    """Decodes code files to videos and images.

    The output has the size and frame rate of the original. A video may have any length: frames are
    computed while earlier ones are written. An interrupted command leaves no partial file. Files
    that cannot be used are named and skipped; the exit status is 1 if none could be used.

    Args:
        codes: Files that `magvit2 tokenize` wrote, and folders of them.
        model: Folder of the tokenizer that made them, or of its run, or hf://OWNER/NAME.
        output: For one input, a file name ending in .mp4, .mov, .m4v, .mkv or .gif (for an image,
            .png, .jpg, .jpeg, .webp or .bmp); otherwise a folder, which gets .mp4 and .png files
            with the names and sub-folders of the inputs.
        force: Decode codes of another tokenizer too, if its codebook and strides are the same.
    """
    check_counts(chunk_frames=chunk_frames)
    find_tokenizer(model)
    from magvit2_pytorch.codes.code_file import CODE_SUFFIX, CodeFile, read_codes
    from magvit2_pytorch.media.unusable import UnusableMedia
    from magvit2_pytorch.pipelines.files import decode_file
    from magvit2_pytorch.pipelines.inference import Inference
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
    tokenizer, tokenizer_id = load_tokenizer(model, device)
    inference = Inference(precision, tile_size, chunk_frames)
    with user_errors():
        inference.check(tokenizer)

    def work(job: Job, on_frames: FrameCounter) -> str:
        codes, video = read_codes(job.source)
        decode_file(
            tokenizer,
            codes,
            video,
            job.target,
            inference=inference,
            tokenizer_id=tokenizer_id,
            force=force,
            on_frames=on_frames,
        )
        return f"{frame_count(video.num_frames)}, {video.width} x {video.height}"

    return run_jobs(jobs, work)
