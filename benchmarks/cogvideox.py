"""Side by side with an autoencoder of diffusers of the same compression: CogVideoX's.

    python benchmarks/cogvideox.py

Both turn 4 x 8 x 8 pixels into one latent of 16 channels, causally, and have about as many
parameters: ours is the preset `walt-small`, theirs `AutoencoderKLCogVideoX` at half its width. Both
with random weights, whole clips, no tiling. Medians over rounds that take turns in fresh
processes; diffusers is installed into benchmarks/.venv-diffusers.
"""

import argparse
import json
import sys
from contextlib import nullcontext

import torch
from side_by_side import OURS, environment, measure, take_turns

THEIRS = "diffusers CogVideoX"


def build(implementation: str):
    if implementation == OURS:
        from magvit2_pytorch import VideoTokenizer

        return VideoTokenizer.from_preset("walt-small", continuous_dim=16).eval()
    from diffusers import AutoencoderKLCogVideoX

    widths = (64, 128, 128, 256)
    return AutoencoderKLCogVideoX(block_out_channels=widths, layers_per_block=3).eval()


def operation(implementation: str, name: str, model, video):
    """What is timed, as a function without arguments."""
    if implementation == OURS:
        latents = model.quantize(model.encode(video)).quantized
        return lambda: model.encode(video) if name == "encode" else model.decode(latents)
    latents = model.encode(video).latent_dist.mode()
    if name == "encode":
        return lambda: model.encode(video).latent_dist.mode()
    return lambda: model.decode(latents).sample


def worker(args):
    torch.manual_seed(0)
    model = build(args.worker[0])
    video = torch.rand(1, 3, args.frames[0], args.sizes[0], args.sizes[0]) * 2 - 1
    bf16 = args.precisions[0] == "bf16"
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext():
        run = operation(*args.worker, model, video)
        result = measure(run, args.repeat)
    result["parameters"] = sum(p.numel() for p in model.parameters())
    print(json.dumps(result))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("worker", nargs="*", help="for processes that this one starts")
    parser.add_argument("--diffusers_python", help="an interpreter that has diffusers")
    parser.add_argument("--precisions", nargs="+", default=("fp32", "bf16"))
    parser.add_argument("--frames", type=int, nargs="+", default=(17,))
    parser.add_argument("--sizes", type=int, nargs="+", default=(128,))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=2)
    args = parser.parse_args()
    if args.worker:
        return worker(args)
    python = args.diffusers_python or environment("diffusers", "torch", "diffusers", "transformers")
    pythons = {OURS: sys.executable, THEIRS: python}

    def task(operation: str, size: int, frames: int, precision: str) -> tuple[str, ...]:
        options = ("--sizes", str(size), "--frames", str(frames), "--repeat", str(args.repeat))
        return (operation, *options, "--precisions", precision)

    cases = [
        (operation, size, frames, precision)
        for operation in ("encode", "decode")
        for size in args.sizes
        for frames in args.frames
        for precision in args.precisions
    ]
    cells = take_turns(pythons, "cogvideox.py", [task(*case) for case in cases], args.rounds)
    for name in pythons:
        print(f"{name}: {cells[name, task(*cases[0])].parameters / 1e6:.1f} M parameters")
    print(f"\n| | size | frames | precision | here | {THEIRS} | faster | memory here | there |")
    print("| --- " * 9 + "|")
    for case in cases:
        mine, other = (cells[name, task(*case)] for name in pythons)
        print(
            f"| {' | '.join(map(str, case))} | {mine.median_s:.2f} s | {other.median_s:.2f} s | "
            f"{other.median_s / mine.median_s:.2f}x | {mine.memory} | {other.memory} |"
        )


if __name__ == "__main__":
    main()
