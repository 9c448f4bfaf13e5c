"""Images first, then video: what inflating an image tokenizer is worth.

    python benchmarks/two_stages.py --images FOLDER --held_out_images FOLDER

The network of `magvit2` at a quarter of its width, one unit to a level. Stage I trains its
two-dimensional form on the images; stage II inflates that and trains on the demo's clips, with
images among them ("mixed") and without; beside them the same network starts on the clips from
nothing, for as long as both stages took together. Figures are of held-out images and of the
clips' held-out last frames. Nothing adversarial and nothing perceptual: squared error x 5, entropy
and commitment.
"""

import argparse
from pathlib import Path
from typing import Any

import torch

from magvit2_pytorch import VideoTokenizer, VideoTokenizerTrainer
from magvit2_pytorch.convert.inflate import inflate_into
from magvit2_pytorch.data import ClipSpec, ImageDataset, VideoDataset, to_uint8, write_grid
from magvit2_pytorch.evaluation.demo_run import (
    GAP_FRAMES,
    HELD_OUT_FRAMES,
    demo_clips,
    held_out_clips,
)
from magvit2_pytorch.metrics import CodebookUsage, psnr
from magvit2_pytorch.tokenizer.presets import magvit2_options
from magvit2_pytorch.types import Clips

WAYS = ("stage II", "stage II mixed", "from nothing")
SIDE = 64
MULTS = (1, 2, 2, 4)
MIDDLES = {
    "lfq": dict(codebook_size=2**18),
    # As in `small`: a norm keeps the bits apart, and the losses that should are not needed.
    "lfq-norm": dict(
        codebook_size=2**18,
        lfq_norm="layer",
        lfq_entropy_loss_weight=0.0,
        lfq_commitment_loss_weight=0.0,
    ),
    "continuous": dict(continuous_dim=8),
}
TRAINING = dict(
    # What `small` learns fastest with; the papers' rates are for days, not minutes.
    optimizer="muon",
    learning_rate=0.02,
    warmup_steps=30,
    schedule="linear",
    max_grad_norm=None,
    reconstruction_loss_weight=5.0,
    ema_decay=0.98,
    precision="bf16",
    num_train_steps=1_000_000,
    validate_every_step=1_000_000,
    checkpoint_every_step=1_000_000,
    log_every_step=10,
)


def build(in_time: bool, quantizer: str) -> VideoTokenizer:
    """The same network with time and without."""
    torch.manual_seed(0)
    halve_time = (False, in_time, in_time)
    options = magvit2_options(32, MULTS, halve_time, 1, 3 if in_time else (1, 3, 3))
    return VideoTokenizer(**(options | MIDDLES[quantizer]), image_size=SIDE)


def video_clips() -> VideoDataset:
    spec = ClipSpec(num_frames=17, image_size=SIDE, flip=True, random_scale=(2.0, 2.0))
    frame_range = (None, -HELD_OUT_FRAMES - GAP_FRAMES)
    return VideoDataset(demo_clips(), spec, clips_per_video=64, frame_range=frame_range)


def pictures(folder: Path, train: bool) -> ImageDataset:
    """Random crops of pictures two to six times as large, or the middle at twice the size."""
    if train:
        spec = ClipSpec(num_frames=1, image_size=SIDE, flip=True, random_scale=(2.0, 6.0))
    else:
        spec = ClipSpec(num_frames=1, image_size=2 * SIDE)
    return ImageDataset(folder, spec, train=train)


def train(
    tokenizer: VideoTokenizer,
    folder: Path,
    minutes: float,
    data: Clips,
    valid: Clips,
    **options: Any,
) -> VideoTokenizer:
    trainer = VideoTokenizerTrainer(
        tokenizer,
        dataset=data,
        valid_dataset=valid,
        max_duration_s=minutes * 60,
        results_folder=str(folder),
        checkpoints_folder=str(folder / "checkpoints"),
        progress_bar=False,
        **(TRAINING | options),
    )
    trainer.train()
    print(f"{folder.name}: {trainer.step} steps", flush=True)
    return trainer.ema_tokenizer


@torch.no_grad()
def measure(tokenizer: VideoTokenizer, clips: Clips, picture: Path) -> tuple[float, int, float]:
    """Mean PSNR, codes used and perplexity over clips; the first above what became of them."""
    tokenizer.eval()
    usage = None
    if tokenizer.codebook_size is not None:
        usage = CodebookUsage(tokenizer.codebook_size)
    values, rows = [], [[], []]
    for clip in clips:
        real = clip[None] if clip.ndim == 4 else clip[None, :, None]
        recon = tokenizer(real).clamp(-1, 1)
        values.append(float(psnr(recon, real).mean()))
        if usage is not None:
            usage.update(tokenizer.tokenize(real))
        for row, video in zip(rows, (real, recon), strict=True):
            frame = to_uint8(video[0])[video.shape[2] // 2]
            row.append(frame[: 2 * SIDE, : 2 * SIDE])
    write_grid(picture, rows)
    used = usage.compute() if usage is not None else None
    mean = sum(values) / len(values)
    if used is None:
        return mean, 0, 0.0
    return mean, round(used.usage * tokenizer.codebook_size), used.perplexity


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--held_out_images", type=Path, required=True)
    parser.add_argument("--image_minutes", type=float, default=4.0)
    parser.add_argument("--video_minutes", type=float, default=8.0)
    parser.add_argument("--quantizer", choices=tuple(MIDDLES), default="lfq")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--output", type=Path, default=Path("two-stages"))
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    images, held_out_images = pictures(args.images, True), pictures(args.held_out_images, False)
    clips, held_out = video_clips(), held_out_clips(demo_clips())

    def report(name: str, tokenizer: VideoTokenizer) -> None:
        figures = []
        for kind, data in (("images", held_out_images), ("clips", held_out)):
            picture = args.output / f"{name}-{kind}.png"
            db, num_used, perplexity = measure(tokenizer, data, picture)
            figures.append(f"{db:.2f} | {num_used} | {perplexity:.0f}")
        print(f"| {name} | {' | '.join(figures)} |", flush=True)

    print("| | images dB | codes | perplexity | clips dB | codes | perplexity |", flush=True)
    image_tokenizer = train(
        build(False, args.quantizer),
        args.output / "stage-1",
        args.image_minutes,
        images,
        held_out_images,
        batch_size=16,
    )
    report("stage I", image_tokenizer)
    inflated = build(True, args.quantizer)
    inflate_into(inflated, image_tokenizer)
    report("inflated", inflated)
    ways = {
        "stage II": (inflated, args.video_minutes, {}),
        "stage II mixed": (
            build(True, args.quantizer),
            args.video_minutes,
            dict(image_dataset=images, image_batch_size=16, image_frac=0.3),
        ),
        "from nothing": (build(True, args.quantizer), args.image_minutes + args.video_minutes, {}),
    }
    inflate_into(ways["stage II mixed"][0], image_tokenizer)
    for name in args.ways:
        tokenizer, minutes, options = ways[name]
        folder = args.output / name.replace(" ", "-")
        trained = train(tokenizer, folder, minutes, clips, held_out, batch_size=2, **options)
        report(name, trained)


if __name__ == "__main__":
    main()
