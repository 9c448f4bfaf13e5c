"""How far logits move when the picture moves by one pixel: anti-aliased against plain subsampling.

    python benchmarks/shift_invariance.py

For each discriminator the mean of |logit(x) - logit(x one pixel to the right)|, in standard
deviations of the logits over the samples; mean and spread over random initialisations. Inputs are
moving 1/f noise (the spectrum of natural pictures), cropped from a larger field so that a shift
brings in new pixels. Untrained networks: this is what the architecture alone gives.
"""

import argparse
import time
from statistics import mean, stdev

import torch

from magvit2_pytorch.discriminators import build_discriminator

TAPS = {1: "none (plain)", 3: "[1, 2, 1] / 4", 4: "[1, 3, 3, 1] / 8"}
MODELS = {
    "frame": (1, dict(dim=16, dim_mults=(2, 4, 4, 4))),
    "video": (5, dict(dim=8, dim_mults=(2, 4, 4, 4))),
}
MARGIN = 16


def natural_clips(num: int, num_frames: int, size: int) -> torch.Tensor:
    """Pictures with amplitudes 1/f that drift by a pixel a frame, in [-1, 1]."""
    full = size + 2 * MARGIN
    frequency = torch.fft.fftfreq(full)
    radius = (frequency[:, None] ** 2 + frequency[None] ** 2).sqrt().clamp(min=1 / full)
    spectrum = torch.fft.fft2(torch.randn(num, 3, full, full)) / radius
    picture = torch.fft.ifft2(spectrum).real
    picture = 0.4 * picture / picture.std(dim=(1, 2, 3), keepdim=True)
    frames = [picture.roll(t, dims=-2) for t in range(num_frames)]
    return torch.stack(frames, dim=2).clamp(-1, 1)


@torch.no_grad()
def movement(name: str, blur_taps: int, seed: int, num: int, size: int) -> float:
    torch.manual_seed(seed)
    num_frames, options = MODELS[name]
    clips = natural_clips(num, num_frames, size)
    discriminator = build_discriminator(name, blur_taps=blur_taps, **options)
    here, there = (
        clips[..., MARGIN : MARGIN + size, left : left + size] for left in (MARGIN, MARGIN - 1)
    )
    before, after = (discriminator((view,)).logits[0].flatten() for view in (here, there))
    return ((before - after).abs().mean() / before.std()).item()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--size", type=int, default=48)
    given = parser.parse_args()
    started = time.perf_counter()
    print(f"{'discriminator':<15}{'blur':<18}{'movement / std':>16}")
    for name in MODELS:
        for taps, words in TAPS.items():
            moved = [
                movement(name, taps, seed, given.samples, given.size) for seed in range(given.seeds)
            ]
            print(f"{name:<15}{words:<18}{mean(moved):>9.4f} ± {stdev(moved):.4f}")
    print(f"{given.seeds} seeds, {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
