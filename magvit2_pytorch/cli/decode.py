"""`magvit2 decode`: code files to video and image files."""

from pathlib import Path
from typing import Literal

from magvit2_pytorch.cli.batch import FrameCounter, frames, run_jobs
from magvit2_pytorch.cli.errors import check_counts, user_errors
from magvit2_pytorch.cli.jobs import Job, plan_jobs
from magvit2_pytorch.cli.model_folder import Device, find_tokenizer, load_tokenizer


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
    """Turns files of codes back into videos and images.

    They get the size and frame rate of the originals. Any length will do: frames are computed
    while those before them are written, and what is interrupted leaves no file. Files that cannot
    be used are named and skipped; the exit status is 1 if none could be.

    Args:
        codes: Files that `magvit2 tokenize` wrote, and folders of them.
        model: Folder of the tokenizer that made them, or of its run, or hf://OWNER/NAME.
        output: A name ending in .mp4, .mov, .m4v, .mkv or .gif (.png, .jpg, .jpeg, .webp or .bmp
            for an image) for one file; else a folder, which gets .mp4 and .png files by the names
            and sub-folders of the inputs.
        force: Decode even what another tokenizer made, if its codebook and strides are the same.
        chunk_frames: Frames to compute at a time: fewer need less memory, more may be faster.
        tile_size: Compute frames in tiles of so many pixels to a side, or `auto` for as many as
            fit into memory: the same but for rounding, for sizes that do not fit.
        device: Where to compute; auto takes a GPU if there is one.
        precision: What convolutions compute in.
    """
    check_counts(chunk_frames=chunk_frames)
    find_tokenizer(model)
    from magvit2_pytorch.data import CODE_SUFFIX, UnusableMedia, read_code_header, read_codes
    from magvit2_pytorch.evaluation.files import decode_file
    from magvit2_pytorch.evaluation.media import ALL_WRITABLE, SUFFIX_OF, check_writable
    from magvit2_pytorch.tokenizer.tile_size import check_tile_size

    def suffix(path: Path) -> str:
        try:
            return SUFFIX_OF[read_code_header(path).kind]
        except UnusableMedia:  # said when its turn comes
            return SUFFIX_OF["video"]

    jobs = plan_jobs(codes, output, [CODE_SUFFIX], suffix, ALL_WRITABLE)
    if len(jobs) == 1:
        with user_errors():
            check_writable(jobs[0].target, read_code_header(jobs[0].source).kind)
    tokenizer, tokenizer_id = load_tokenizer(model, device)
    with user_errors():
        check_tile_size(tile_size, tokenizer.space_factor)

    def work(job: Job, on_frames: FrameCounter) -> str:
        stored, header = read_codes(job.source)
        decode_file(
            tokenizer,
            stored,
            header,
            job.target,
            chunk_frames=chunk_frames,
            precision=precision,
            tile_size=tile_size,
            tokenizer_id=tokenizer_id,
            force=force,
            on_frames=on_frames,
        )
        return f"{frames(header.num_frames)}, {header.width} x {header.height}"

    return run_jobs(jobs, work)
