"""`magvit2 decode`: decodes code files to video and image files."""

from pathlib import Path

from magvit2_pytorch.cli.jobs import Job, frame_count, plan_jobs, run_jobs
from magvit2_pytorch.cli.model_folder import find_tokenizer, user_errors
from magvit2_pytorch.cli.options import MediaOutput, StreamOptions
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

    The output has the size and frame rate of the original. A video may have any length: frames are
    computed while earlier ones are written. An interrupted command leaves no partial file. Files
    that cannot be used are named and skipped; the exit status is 1 if none could be used.

    Args:
        codes: Files that `magvit2 tokenize` wrote, and folders of them.
        model: Folder of the tokenizer that made them, or of its run, or hf://OWNER/NAME.
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
        decode_file(tokenizer, codes, video, job.target, on_frames=on_frames, **options)
        return f"{frame_count(video.num_frames)}, {video.width} x {video.height}"

    return run_jobs(jobs, work)
