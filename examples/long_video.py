"""Code a video of any length in constant memory, and write the reconstruction as it comes.

python examples/long_video.py TOKENIZER_FOLDER in.mp4 out.mp4
"""

import argparse

import torch

from magvit2_pytorch import VideoTokenizer
from magvit2_pytorch.data import VideoFile, VideoWriter, to_float, to_uint8


@torch.inference_mode()
def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tokenizer")
    parser.add_argument("source")
    parser.add_argument("target")
    args = parser.parse_args()

    tokenizer = VideoTokenizer.from_pretrained(args.tokenizer)
    file = VideoFile(args.source)
    stride, step = tokenizer.space_factor, tokenizer.time_factor
    size = tuple(max(stride, side // stride * stride) for side in (file.height, file.width))

    frames = file.frames(size)
    encoder_past = decoder_past = None
    num_codes = 0
    # The first chunk is the first frame alone, every other one a latent frame's worth.
    chunk = [next(frames)]
    with VideoWriter(args.target, file.fps) as writer:
        while chunk:
            missing = 0 if encoder_past is None else step - len(chunk)
            video = to_float(torch.stack(chunk + chunk[-1:] * missing))[None]
            latents, encoder_past = tokenizer.encode_chunk(video, encoder_past)
            quantized, codes = tokenizer.quantize(latents)
            recon, decoder_past = tokenizer.decode_chunk(quantized, decoder_past)
            for frame in to_uint8(recon[0])[: len(chunk)]:
                writer.write(frame)
            num_codes += codes.numel()
            chunk = [frame for _, frame in zip(range(step), frames, strict=False)]
    print(f"{writer.num_frames} frames of {size[0]} x {size[1]} as {num_codes} codes")


if __name__ == "__main__":
    main()
