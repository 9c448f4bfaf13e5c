"""Quality over the number of tokens, and a budget of tokens divided among clips.

python examples/any_number_of_tokens.py TOKENIZER_FOLDER path/to/videos --total 96

The tokenizer is one that `magvit2 train path/to/videos --preset tiny-1d -o run` trained.
"""

import argparse

import torch

from magvit2_pytorch import Tokenizer1d
from magvit2_pytorch.data import ClipSpec, VideoDataset
from magvit2_pytorch.metrics import psnr


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tokenizer")
    parser.add_argument("folder")
    parser.add_argument("--total", type=int, default=96)
    args = parser.parse_args()

    tokenizer = Tokenizer1d.from_pretrained(args.tokenizer)
    config = tokenizer.config
    spec = ClipSpec(num_frames=config.num_frames, image_size=config.image_size)
    dataset = VideoDataset(args.folder, spec, train=False)
    videos = [dataset[number] for number in range(min(4, len(dataset)))]
    sizes = [tuple(video.shape[1:]) for video in videos]

    def quality(codes):
        recons = tokenizer.decode(codes, sizes)
        pairs = zip(recons, videos, strict=True)
        return [float(psnr(recon[None], video[None])) for recon, video in pairs]

    low, high = config.num_tokens
    codes = tokenizer.tokenize(videos, num_tokens=high)
    for count in (low, round((low * high) ** 0.5), high):
        mean = sum(quality([some[:count] for some in codes])) / len(videos)
        print(f"the first {count} of {high} tokens: {mean:.2f} dB")

    counts = tokenizer.allocate(videos, total=args.total)
    decibels = quality(tokenizer.tokenize(videos, num_tokens=counts))
    for count, value in zip(counts, decibels, strict=True):
        print(f"{count} tokens of {args.total}: {value:.2f} dB")
    assert sum(counts) <= args.total


if __name__ == "__main__":
    with torch.inference_mode():
        main()
