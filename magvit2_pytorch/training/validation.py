"""Validation of the averaged tokenizer on held-out clips: metrics and pictures."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

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
) -> tuple[dict[str, float | int], list[Example]]:
    """Means over at most `max_clips` held-out clips, and a few of them.

    These are PSNR in dB, codebook usage and perplexity of a discrete tokenizer, and the perceptual
    distance if there is a network. The tokenizer is set to eval mode. Clips may differ in size and
    may be fewer than the processes. `options` are passed to the tokenizer.
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
    return values, examples


def write_examples(
    examples: list[Example], folder: Path, name: str, fps: float | None
) -> list[Path]:
    """Writes examples as NAME-0.png and NAME-0.mp4; returns their paths."""
    paths = []
    for number, example in enumerate(examples):
        clips = [to_uint8(clip[0]) for clip in example]
        num_frames = len(clips[0])
        shown = torch.linspace(0, num_frames - 1, min(num_frames, FRAMES_IN_GRID)).long()
        path = folder / f"{name}-{number}.png"
        write_grid(path, [clip[shown] for clip in clips])
        if num_frames > 1:
            path = path.with_suffix(".mp4")
            write_video(path, torch.cat(clips, dim=2), fps=fps or 8.0)
        paths.append(path)
    return paths
