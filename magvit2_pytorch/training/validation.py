"""Held-out clips through the averaged tokenizer: figures, and pictures to look at."""

from pathlib import Path
from typing import NamedTuple

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor, nn

from magvit2_pytorch.data import to_uint8, write_grid, write_video
from magvit2_pytorch.functional import autocast
from magvit2_pytorch.metrics import CodebookUsage, psnr
from magvit2_pytorch.tokenizer.model import VideoTokenizer
from magvit2_pytorch.training.config import TrainingConfig
from magvit2_pytorch.types import Clips

NUM_EXAMPLES = 3
FRAMES_IN_GRID = 5


Example = tuple[Float[Tensor, "1 _ _ _ _"], Float[Tensor, "1 _ _ _ _"]]
"""A clip and its reconstruction; the next one may have another size."""


class Validation(NamedTuple):
    """What held-out clips gave."""

    values: dict[str, float | int]
    """Means over the clips: psnr in dB, codebook_usage and perplexity where there are codes, the
    perceptual distance where there is a network for it."""
    examples: list[Example]
    """A few clips and their reconstructions, one in a batch, on the CPU."""


@torch.no_grad()
def validate(
    tokenizer: VideoTokenizer,
    clips: Clips,
    config: TrainingConfig,
    accelerator: Accelerator,
    perceptual: nn.Module | None = None,
) -> Validation:
    """PSNR (peak to peak 2) of each clip, averaged over clips and processes, in eval mode.

    Each process takes every n-th clip, alone and in order, so that clips of any size will do and
    few clips keep nobody waiting.
    """
    tokenizer.eval()
    usage = None
    if tokenizer.codebook_size is not None:
        usage = CodebookUsage(tokenizer.codebook_size, tokenizer.num_codebooks)
    total = torch.zeros(3, device=accelerator.device)
    examples: list[Example] = []
    num_clips = min(len(clips), config.num_valid_clips)
    for index in range(accelerator.process_index, num_clips, accelerator.num_processes):
        clip: Tensor = clips[index]
        video = clip[None].to(accelerator.device)
        video = video[:, :, None] if video.ndim == 4 else video
        with autocast(accelerator.device, config.precision):
            codes, recon = tokenizer(video, return_codes=True, return_recon=True)
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
        used = usage.gathered().compute()
        values |= {"codebook_usage": float(used.usage), "perplexity": float(used.perplexity)}
    return Validation(values, examples)


def write_examples(
    examples: list[Example], folder: Path, name: str, fps: float | None
) -> list[Path]:
    """Original above reconstruction as PNG, a few frames of each clip, and side by side as mp4.

    Files are called NAME-0.png and so on. Returns one path for each example: the video, or the
    picture where there is one frame.
    """
    paths = []
    for number, (real, recon) in enumerate(examples):
        real, recon = to_uint8(real[0]), to_uint8(recon[0])
        chosen = torch.linspace(0, len(real) - 1, min(len(real), FRAMES_IN_GRID)).long()
        path = folder / f"{name}-{number}.png"
        write_grid(path, [list(real[chosen]), list(recon[chosen])])
        if len(real) > 1:
            path = path.with_suffix(".mp4")
            write_video(path, torch.cat((real, recon), dim=2), fps=fps or 8.0)
        paths.append(path)
    return paths
