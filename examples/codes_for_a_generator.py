"""Encode a folder into one tensor of codes, the training data of a language model over video.

python examples/codes_for_a_generator.py TOKENIZER_FOLDER path/to/videos codes.safetensors
"""

import argparse

import torch
from safetensors.torch import save_file
from torch.utils.data import DataLoader

from magvit2_pytorch import VideoTokenizer
from magvit2_pytorch.data import ClipSpec, VideoDataset


@torch.inference_mode()
def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tokenizer")
    parser.add_argument("folder")
    parser.add_argument("target")
    parser.add_argument("--num_frames", type=int, default=17)
    args = parser.parse_args()

    tokenizer = VideoTokenizer.from_pretrained(args.tokenizer)
    spec = ClipSpec(num_frames=args.num_frames, image_size=tokenizer.config.image_size)
    clips = VideoDataset(args.folder, spec, train=False)
    codes = [tokenizer.tokenize(video) for video in DataLoader(clips, batch_size=4)]
    codes = torch.cat(codes)
    sequences = codes.flatten(1)
    save_file({"codes": sequences}, args.target)
    grid = " x ".join(map(str, codes.shape[1:]))
    print(f"{len(sequences)} sequences of {sequences.shape[1]} tokens ({grid}) in {args.target}")

    # Decode: a generator's flat sequence needs only its grid (latent frames, rows, columns).
    video = tokenizer.decode_from_code_indices(sequences[:1], grid=tuple(codes.shape[1:4]))
    print(f"decoded to {tuple(video.shape)}")


if __name__ == "__main__":
    main()
