"""`magvit2 upscale`: enlarges video and image files by super-resolution."""

from magvit2_pytorch.cli.jobs import Job, frame_count, plan_media_jobs, run_jobs
from magvit2_pytorch.cli.model_folder import check_counts, find_model
from magvit2_pytorch.cli.options import Inputs, MediaOutput, Size, UpscaleOptions, UpscalerModel
from magvit2_pytorch.pipelines.progress import FrameCallback


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
