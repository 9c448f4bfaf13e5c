"""Encode a video of any length in constant memory, and write the reconstruction frame by frame.

python examples/long_video.py TOKENIZER_FOLDER in.mp4 out.mp4
"""

import argparse

from magvit2_pytorch import VideoTokenizer
from magvit2_pytorch.data import VideoFile, VideoWriter, to_float, to_uint8

CHUNK_FRAMES = 16


def stream_codes(file: VideoFile, size: tuple[int, int], tokenizer: VideoTokenizer):
    """Yields the codes that each chunk completes, or None."""
    stream = tokenizer.encode_stream()
    for frames in file.chunks(CHUNK_FRAMES, size):
        yield stream.push(to_float(frames)[None])
    yield stream.flush()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tokenizer")
    parser.add_argument("source")
    parser.add_argument("target")
    args = parser.parse_args()

    tokenizer = VideoTokenizer.from_pretrained(args.tokenizer)
    file = VideoFile(args.source)
    stride = tokenizer.space_factor
    size = tuple(max(stride, side // stride * stride) for side in (file.height, file.width))

    decoder = tokenizer.decode_stream(num_frames=file.num_frames)
    num_codes = 0
    timing = dict(audio_from=args.source, durations=file.durations)
    with VideoWriter(args.target, file.fps, **timing) as writer:
        for codes in stream_codes(file, size, tokenizer):
            if codes is None:
                continue
            num_codes += codes.numel()
            recon = decoder.push(codes)
            for frame in to_uint8(recon[0].clamp(-1, 1)):
                writer.write(frame)
    print(f"{writer.num_frames} frames of {size[0]} x {size[1]} as {num_codes} codes")


if __name__ == "__main__":
    main()
