"""What bf16 changes: codes that agree with those of float32, and what the others cost.

    magvit2 demo && python benchmarks/bf16_agreement.py

Every clip goes through a trained tokenizer in float32 and under bf16 autocast. Said are the share
of codes that are the same (and of bits, where codes are bits), and the PSNR of both
reconstructions: codes that differ lie at a decision boundary, where either is about as good. By
default the demo's tokenizer and the clips that it was trained on the beginnings of.
"""

import argparse

import torch

from magvit2_pytorch import VideoTokenizer
from magvit2_pytorch.data import VideoFile, to_float
from magvit2_pytorch.evaluation.demo_run import demo_clips
from magvit2_pytorch.functional import autocast
from magvit2_pytorch.metrics import psnr


def last_frames(path: str, num_frames: int, size: int) -> torch.Tensor:
    """A video `1 c t h w` of the last frames of a file, its sides cut to multiples of 16."""
    file = VideoFile(path)
    scale = size / min(file.height, file.width)
    sides = tuple(round(side * scale) // 16 * 16 for side in (file.height, file.width))
    frames = torch.stack(list(file.frames(sides))[-num_frames:])
    return to_float(frames)[None]


@torch.no_grad()
def both(tokenizer: VideoTokenizer, video: torch.Tensor) -> dict[str, tuple]:
    """Codes and PSNR in both precisions."""
    found = {}
    for precision in ("fp32", "bf16"):
        with autocast("cpu", precision):
            codes = tokenizer.tokenize(video)
            recon = tokenizer.decode_from_code_indices(codes, num_frames=video.shape[2])
        found[precision] = codes, float(psnr(recon.float(), video).mean())
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="demo/tokenizer")
    parser.add_argument("--videos", nargs="*", help="those of the demo, if not said")
    parser.add_argument("--num_frames", type=int, default=17)
    parser.add_argument("--size", type=int, default=128)
    args = parser.parse_args()
    tokenizer = VideoTokenizer.from_pretrained(args.model).eval()
    print("| clip | codes | the same | bits the same | PSNR fp32 | bf16 |")
    print("| --- | --- | --- | --- | --- | --- |")
    for path in args.videos or demo_clips():
        found = both(tokenizer, last_frames(str(path), args.num_frames, args.size))
        (codes, exact), (other, low) = found["fp32"], found["bf16"]
        same = float((codes == other).float().mean())
        num_bits = (tokenizer.codebook_size - 1).bit_length()
        flips = sum(int(((codes ^ other) >> bit & 1).sum()) for bit in range(num_bits))
        bits = 1 - flips / (codes.numel() * num_bits)
        name = str(path).rsplit("/", 1)[-1]
        quality = f"{exact:.2f} dB | {low:.2f} dB"
        print(f"| {name} | {codes.numel()} | {same:.2%} | {bits:.3%} | {quality} |")


if __name__ == "__main__":
    main()
