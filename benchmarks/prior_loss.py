"""What the prior loss brings: bits of a later generator, and decibels that it costs.

    python benchmarks/prior_loss.py --minutes 10 --steps 300

Trains the `small` preset on the demo's clips for equal time at each weight of the prior loss. Then
a generator learns the codes of each tokenizer's training frames for equal steps. Prints held-out
PSNR, and the held-out bits of that generator: the loss pays if they fall by 5 % or more at 0.2 dB
or less.
"""

import argparse
from pathlib import Path

import torch

from magvit2_pytorch import VideoTokenizer
from magvit2_pytorch.evaluation.demo_run import demo_clips, held_out_clips, train_demo
from magvit2_pytorch.generators import AutoregressiveGenerator
from magvit2_pytorch.metrics.quality import psnr

NUM_FRAMES = 113
"""Last frames of each clip whose codes are used."""
NUM_HELD_OUT, NUM_GAP = 5, 2
"""Latent frames at the end that the generator is measured on, and those before them left out."""
WINDOW, CROP = 3, 8
"""Latent frames, rows and columns of an example."""


@torch.no_grad()
def codes_of(tokenizer: VideoTokenizer) -> list[torch.Tensor]:
    """Codes `1 j y x` of the last frames of each clip."""
    clips = held_out_clips(demo_clips(), num_frames=NUM_FRAMES)
    return [tokenizer.tokenize(clip[None]) for clip in clips]


@torch.no_grad()
def held_out_psnr(tokenizer: VideoTokenizer) -> float:
    clips = held_out_clips(demo_clips())
    values = [psnr(tokenizer(clip[None]).clamp(-1, 1), clip[None]).mean() for clip in clips]
    return float(torch.stack(values).mean())


def example(grids: list[torch.Tensor], draws: torch.Generator) -> torch.Tensor:
    """A random window of the codes to train on."""
    grid = grids[int(torch.randint(len(grids), (), generator=draws))]
    limits = (grid.shape[1] - NUM_HELD_OUT - NUM_GAP, *grid.shape[2:4])
    parts = [slice(None)]
    for size, limit in zip((WINDOW, CROP, CROP), limits, strict=True):
        first = int(torch.randint(limit - size + 1, (), generator=draws))
        parts.append(slice(first, first + size))
    return grid[tuple(parts)]


def held_out_bits(grids: list[torch.Tensor], tokenizer: VideoTokenizer, steps: int) -> float:
    """Mean bits of a held-out position's codes, under a generator trained for some steps."""
    torch.manual_seed(0)
    levels = (tokenizer.digit_levels,) * tokenizer.num_codebooks
    generator = AutoregressiveGenerator(levels=levels)
    optimizer = torch.optim.AdamW(generator.parameters(), 2e-3, (0.9, 0.98), weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / 30, 2 * (1 - step / steps), 1)
    )
    draws = torch.Generator().manual_seed(0)
    for _ in range(steps):
        codes = torch.cat([example(grids, draws) for _ in range(4)])
        optimizer.zero_grad()
        generator.loss(codes)[0].backward()
        torch.nn.utils.clip_grad_norm_(generator.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    generator.eval()
    bits = [generator.bits(grid)[0][:, -NUM_HELD_OUT:].flatten() for grid in grids]
    return float(torch.cat(bits).mean())


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="of each tokenizer's training")
    parser.add_argument("--steps", type=int, default=300, help="of each generator's training")
    parser.add_argument("--weights", type=float, nargs="+", default=[0.0, 0.003, 0.01, 0.06])
    parser.add_argument("--output", type=Path, default=Path("prior-loss"))
    options = parser.parse_args()
    print("| weight | held-out PSNR, dB | bits of a position |\n| --- | --- | --- |")
    for weight in options.weights:
        folder = options.output / f"{weight:g}"
        tokenizer = VideoTokenizer.from_preset("small")
        clips = demo_clips()
        trainer = train_demo(tokenizer, clips, folder, options.minutes, prior_loss_weight=weight)
        tokenizer = trainer.ema_tokenizer
        bits = held_out_bits(codes_of(tokenizer), tokenizer, options.steps)
        print(f"| {weight:g} | {held_out_psnr(tokenizer):.2f} | {bits:.3f} |", flush=True)


if __name__ == "__main__":
    main()
