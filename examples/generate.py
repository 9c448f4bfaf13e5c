"""Train a generator on the codes of videos, and let it continue one of them.

python examples/generate.py TOKENIZER_FOLDER path/to/videos clip.mp4 out.mp4
"""

import argparse
import tempfile
from pathlib import Path

import torch

from magvit2_pytorch import VideoTokenizer
from magvit2_pytorch.codes.code_file import write_codes
from magvit2_pytorch.codes.codes_dataset import CodesDataset
from magvit2_pytorch.data import find_media
from magvit2_pytorch.generators import GENERATOR_PRESETS, Sampling, load_generator
from magvit2_pytorch.media.frames import to_uint8
from magvit2_pytorch.media.video_writer import VideoWriter
from magvit2_pytorch.pipelines.files import tokenize_file
from magvit2_pytorch.pipelines.generation import read_prompt
from magvit2_pytorch.training.generator_task import GeneratorTrainer, generator_for


def train(codes_folder: Path, minutes: float, work: Path):
    """The generator of the best validation in so many minutes."""
    preset = "ar-tiny"
    options = GENERATOR_PRESETS.training(preset) | dict(
        num_train_steps=1_000_000, max_duration_s=60 * minutes, validate_every_step=250,
        results_folder=str(work), checkpoints_folder=str(work / "checkpoints"),
    )  # fmt: skip
    model = GENERATOR_PRESETS.model(preset)
    generator = generator_for(CodesDataset(codes_folder), crop=options["crop"], **model)
    trainer = GeneratorTrainer(generator, dataset_folder=codes_folder, **options)
    trainer.train()
    return load_generator(work / "generator")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("tokenizer", "folder", "clip", "target"):
        parser.add_argument(name)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--num_frames", type=int, default=33)
    args = parser.parse_args()

    tokenizer = VideoTokenizer.from_pretrained(args.tokenizer)
    with tempfile.TemporaryDirectory() as work:
        codes = Path(work) / "codes"
        for number, path in enumerate(find_media(args.folder, "video")):
            stored = tokenize_file(tokenizer, path, size=args.size)
            write_codes(codes / f"{number}.codes.safetensors", *stored)
        generator = train(codes, args.minutes, Path(work) / "run")

    # Codes of the clip's first 17 frames, then new ones, decoded as they come.
    prompt = read_prompt(tokenizer, args.clip, num_frames=17, size=args.size)
    state = generator.read(prompt.codes, generator.begin(1, prompt.codes.shape[2:4]))
    stream, codes = tokenizer.decode_stream(num_frames=args.num_frames), prompt.codes
    with VideoWriter(args.target, prompt.fps) as writer:
        while stream.num_frames < args.num_frames:
            video = stream.push(codes)[0, ..., : prompt.height, : prompt.width]
            for frame in to_uint8(video.clamp(-1, 1)):
                writer.write(frame)
            codes, state, _ = generator.next_frame(state, Sampling(seed=1, top_p=0.9))
    with torch.no_grad():
        bits, _ = generator.bits(prompt.codes)
    print(f"{args.target}: {args.num_frames} frames; the prompt has {bits.mean():.2f} bits a code")


if __name__ == "__main__":
    main()
