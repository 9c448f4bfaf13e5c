"""Validation of the averaged tokenizer on held-out clips: metrics and pictures."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor, nn

from magvit2_pytorch.data.user_clips import share_of_clips
from magvit2_pytorch.functional import autocast
from magvit2_pytorch.media.frames import to_uint8
from magvit2_pytorch.media.images import write_grid
from magvit2_pytorch.media.video_writer import write_video
from magvit2_pytorch.metrics.codebook import CodebookUsage
from magvit2_pytorch.metrics.quality import psnr
from magvit2_pytorch.training.training_config import TrainingConfig
from magvit2_pytorch.types import Clips, Video

NUM_EXAMPLES = 3
FRAMES_IN_GRID = 5


Example = tuple[Float[Tensor, "1 _ _ _ _"], ...]
"""A clip and its reconstructions; examples may differ in size."""


class HeldOutResults(NamedTuple):
    """Means over held-out clips, and a few of them."""

    values: dict[str, float | int]
    """Means over the clips: psnr in dB, codebook_usage and perplexity of a discrete tokenizer, and
    perceptual if there is a perceptual network."""
    examples: list[Example]
    """A few clips and their reconstructions in batches of one, on the CPU."""


def running_quality(
    means: Mapping[str, float], usage: CodebookUsage | None
) -> dict[str, float | int]:
    """PSNR and codebook use since the last line of the log."""
    if "mse" not in means:
        return {}
    # From the mean error over clips, peak to peak 2: approximate, not for comparisons.
    values = {"psnr": float(10 * torch.tensor(4 / max(means["mse"], 1e-12)).log10())}
    if usage is None:
        return values
    used = usage.gathered().compute()
    return values | {"codebook_usage": float(used.usage), "perplexity": float(used.perplexity)}


def held_out_videos(clips: Clips, max_clips: int, accelerator: Accelerator) -> Iterator[Video]:
    """This process's share of at most `max_clips` clips, on the device."""
    share = accelerator.process_index, accelerator.num_processes
    for clip in share_of_clips(clips, max_clips, *share):
        video = clip[None].to(accelerator.device)
        yield video[:, :, None] if video.ndim == 4 else video


@torch.no_grad()
def validate(
    tokenizer: nn.Module,
    clips: Clips,
    max_clips: int,
    config: TrainingConfig,
    accelerator: Accelerator,
    perceptual: nn.Module | None = None,
    **options: Any,
) -> HeldOutResults:
    """Mean PSNR and other metrics of at most `max_clips` held-out clips.

    PSNR is peak to peak 2, and the tokenizer is set to eval mode. Each process takes every n-th
    clip, one at a time and in order, so clips may differ in size and may be fewer than the
    processes. `options` are passed to the tokenizer.
    """
    tokenizer.eval()
    usage = None
    if tokenizer.codebook_size is not None:
        usage = CodebookUsage(tokenizer.codebook_size, tokenizer.num_codebooks)
    total = torch.zeros(3, device=accelerator.device)
    examples: list[Example] = []
    for video in held_out_videos(clips, max_clips, accelerator):
        with autocast(accelerator.device, config.precision):
            codes, recon = tokenizer(video, return_codes=True, return_recon=True, **options)
        recon = recon.float()
        distance = perceptual(recon, video) if perceptual is not None else 0.0
        total += total.new_tensor((float(psnr(recon, video)), float(distance), 1.0))
        if usage is not None:
            usage.update(codes)
        if len(examples) < NUM_EXAMPLES:
            examples.append((video.cpu(), recon.cpu()))
    total = accelerator.reduce(total, reduction="sum")
    values = {"psnr": float(total[0] / total[2])}
    if perceptual is not None:
        values["perceptual"] = float(total[1] / total[2])
    if usage is not None:
        result = usage.gathered().compute()
        values |= {"codebook_usage": float(result.usage), "perplexity": float(result.perplexity)}
    return HeldOutResults(values, examples)


def write_examples(
    examples: list[Example], folder: Path, name: str, fps: float | None
) -> list[Path]:
    """Writes originals and reconstructions as PNG and mp4.

    NAME-0.png shows a few frames of the first clip above their reconstructions, and NAME-0.mp4 both
    side by side. Returns one path for each example: the mp4, or the PNG if there is only one frame.
    """
    paths = []
    for number, example in enumerate(examples):
        clips = [to_uint8(clip[0]) for clip in example]
        num_frames = len(clips[0])
        shown = torch.linspace(0, num_frames - 1, min(num_frames, FRAMES_IN_GRID)).long()
        path = folder / f"{name}-{number}.png"
        write_grid(path, [list(clip[shown]) for clip in clips])
        if num_frames > 1:
            path = path.with_suffix(".mp4")
            write_video(path, torch.cat(clips, dim=2), fps=fps or 8.0)
        paths.append(path)
    return paths
