r"""Reconstruction first, then discriminators: what becomes of PSNR and of sharpness.

    python benchmarks/adversarial.py --weights WEIGHTS --judge OTHER_WEIGHTS
    python benchmarks/adversarial.py --judge OTHER_WEIGHTS --start demo/tokenizer --minutes 6 \
        --ways "decoder error alone" "decoder frame gan" --blend 0.5 0.75

Trains the `small` preset on the demo's clips for its error alone, then goes on from there for
the same number of steps in several ways, and measures held-out clips on the way: PSNR, the
distance in the features of a judge that no way was trained with (both files are such as
`magvit2_pytorch.losses.PerceptualLoss` reads), block edges (`metrics.block_edges`) and flicker (the
error of frame differences over their energy). With --blend, weights part of the way from the start
to the end are measured too. Pictures lie in the output folder; comparison.png has all ways' ends
below each other.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from equal_time import markdown

from magvit2_pytorch import VideoTokenizer, VideoTokenizerTrainer
from magvit2_pytorch.data import VideoDataset, to_uint8, write_grid
from magvit2_pytorch.evaluation.demo_run import (
    GAP_FRAMES,
    HELD_OUT_FRAMES,
    SHARP,
    demo_clips,
    held_out_clips,
)
from magvit2_pytorch.losses import build_perceptual
from magvit2_pytorch.metrics import block_edges, psnr, temporal_consistency
from magvit2_pytorch.tokenizer.presets import recipe
from magvit2_pytorch.training.batches import clip_spec
from magvit2_pytorch.training.tracking import read_log
from magvit2_pytorch.training.training_config import TrainingConfig

GAN = dict(
    adaptive_adversarial_weight=True,
    # As strong as reconstruction, each: what these ways had when they were measured, whatever
    # their weights and ramps said (LOG.md, section 7).
    frame_adversarial_weight=1.0,
    multiscale_adversarial_weight=1.0,
    frame_discriminator=dict(dim=16),
    multiscale_discriminator=dict(dim=16, scales=((5, 1), (5, 3))),
    discriminator_learning_rate=2e-4,
    adversarial_start_step=50,
    gradient_penalty_weight=1.0,
    gradient_penalty_every=8,
    lecam_loss_weight=0.001,
)
GENTLE_GAN = GAN | dict(adversarial_start_step=100)
PATCH_GAN = GAN | dict(
    adversarial_loss="relativistic",
    frame_discriminator=dict(dim=16, dim_mults=(2, 4), num_frames=4, head="patch"),
    multiscale_discriminator=dict(dim=16, dim_mults=(2, 4), scales=((5, 1), (5, 3)), head="patch"),
    discriminator_learning_rate=1e-3,
    adversarial_start_step=150,
)
LIGHT_GAN = PATCH_GAN | dict(
    frame_adversarial_weight=0.1,
    multiscale_adversarial_weight=0.1,
    adversarial_start_step=50,
    adversarial_ramp_steps=50,
)
PERCEPTUAL = dict(perceptual_loss_weight=0.02, perceptual_num_frames=2)
WAYS = {
    "error alone": {},
    "gan": GAN,
    "perceptual": PERCEPTUAL,
    "gan and perceptual": GAN | PERCEPTUAL,
    "gentle gan": GENTLE_GAN,
    "patch gan": PATCH_GAN,
    "patch gan and perceptual": PATCH_GAN | PERCEPTUAL,
    "light gan": LIGHT_GAN,
    "light gan and perceptual": LIGHT_GAN | PERCEPTUAL,
    "light gan, features": LIGHT_GAN | dict(feature_matching_weight=1.0),
    "gentle gan and perceptual": GENTLE_GAN | PERCEPTUAL,
    "decoder error alone": dict(freeze_encoder=True, warmup_steps=SHARP["warmup_steps"]),
    "decoder frame gan": SHARP,
}


def clips(tokenizer: VideoTokenizer, training: dict[str, Any]) -> VideoDataset:
    """Random clips of the frames that are not held out, by the preset's recipe."""
    spec = clip_spec(TrainingConfig.from_dict(training), tokenizer.config, "video")
    frame_range = (None, -HELD_OUT_FRAMES - GAP_FRAMES)
    return VideoDataset(demo_clips(), spec, clips_per_video=64, frame_range=frame_range)


class WatchedTrainer(VideoTokenizerTrainer):
    """Each validation is a row of the table and a picture."""

    def watch(self, name: str, perceptual: torch.nn.Module, folder: Path) -> None:
        self.name, self.perceptual, self.folder = name, perceptual, folder

    def validate(self) -> dict[str, float]:
        picture = self.folder / f"{self.name.replace(' ', '-')}-{self.step}.png"
        figures = measure(self.ema_tokenizer, self.perceptual, picture)
        line = [x for x in read_log(self.tracking.path) if "loss" in x][-1]
        logits = [
            " ".join(f"{line[n]:.2f}" for n in line if n.endswith(f"_{side}_logit"))
            for side in ("real", "fake")
        ]
        print_row(self.name, self.step, figures, *logits, f"{1 / line['steps_per_s']:.2f}")
        return {f"valid/{key}": value for key, value in figures.items()}


def print_row(name: str, step: int | str, figures: dict[str, float], *rest: str) -> None:
    values = (f"{value:.3f}" for value in figures.values())
    cells = [name, step, *values, *(rest or ("", "", ""))]
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def build_trainer(tokenizer: VideoTokenizer, folder: Path, **options) -> WatchedTrainer:
    training = recipe("small") | dict(
        log_every_step=10,
        checkpoint_every_step=1_000_000,
        results_folder=str(folder),
        checkpoints_folder=str(folder / "checkpoints"),
    )
    training |= options
    return WatchedTrainer(
        tokenizer,
        dataset=clips(tokenizer, training),
        valid_dataset=held_out_clips(demo_clips()),
        **training,
    )


@torch.no_grad()
def measure(tokenizer: VideoTokenizer, perceptual: torch.nn.Module, picture: Path) -> dict:
    """Means over the held-out clips, and frame 8 of each above its reconstruction."""
    tokenizer.eval()
    rows = [[], []]
    values = {"psnr": [], "perceptual": [], "block_edges": [], "flicker": []}
    for clip in held_out_clips(demo_clips()):
        real = clip[None]
        recon = tokenizer(real).clamp(-1, 1)
        values["psnr"].append(float(psnr(recon, real).mean()))
        values["perceptual"].append(float(perceptual(recon, real)))
        values["block_edges"].append(float(block_edges(recon, tokenizer.config.patch[1])))
        error, energy = temporal_consistency(recon, real)
        values["flicker"].append(float(error / energy))
        for row, video in zip(rows, (real, recon), strict=True):
            row.append(shown(video))
    write_grid(picture, rows)
    return {name: sum(figures) / len(figures) for name, figures in values.items()}


def blended(first: Path, last: Path, share: float) -> VideoTokenizer:
    """Weights so much of the way from one tokenizer to another."""
    start, end = (VideoTokenizer.from_pretrained(folder) for folder in (first, last))
    for weight, target in zip(start.parameters(), end.parameters(), strict=True):
        weight.data.lerp_(target.data, share)
    return start


@torch.no_grad()
def write_comparison(path: Path, tokenizers: list[Path]) -> None:
    """Frame 8 of each held-out clip, and below it what each way's tokenizer makes of it."""
    videos = [clip[None] for clip in held_out_clips(demo_clips())]
    rows = [[shown(video) for video in videos]]
    for folder in tokenizers:
        tokenizer = VideoTokenizer.from_pretrained(folder).eval()
        rows.append([shown(tokenizer(video).clamp(-1, 1)) for video in videos])
    write_grid(path, rows)


def shown(video: torch.Tensor) -> torch.Tensor:
    """Frame 8 of the first clip, at most 144 pixels of its width."""
    return to_uint8(video[0])[8, :, :144]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", help="of the perceptual network of the ways that have one")
    parser.add_argument("--judge", required=True, help="of another one, to measure with")
    parser.add_argument("--first_steps", type=int, default=400, help="for the error alone")
    parser.add_argument("--steps", type=int, default=200, help="of each way")
    parser.add_argument("--minutes", type=float, help="of each way, in place of --steps")
    parser.add_argument("--start", type=Path, help="tokenizer to start from, in place of training")
    parser.add_argument("--every", type=int, default=50, help="steps between two rows")
    parser.add_argument("--ways", nargs="+", choices=tuple(WAYS), default=tuple(WAYS))
    parser.add_argument(
        "--training", type=json.loads, default={}, help="options in place of each way's own"
    )
    parser.add_argument("--blend", type=float, nargs="+", default=(), help="shares of the way")
    parser.add_argument("--output", type=Path, default=Path("adversarial"))
    args = parser.parse_args()
    perceptual = build_perceptual(args.judge)

    columns = "way", "steps", "PSNR", "perceptual", "block edges", "flicker"
    columns += "real logits", "fake logits", "s/step"
    print(markdown(columns, []), flush=True)
    args.output.mkdir(parents=True, exist_ok=True)
    start = args.output / "start"
    first = start / "tokenizer" if args.start is None else args.start
    if not first.exists():
        torch.manual_seed(0)
        options = dict(num_train_steps=args.first_steps, validate_every_step=args.first_steps)
        trainer = build_trainer(VideoTokenizer.from_preset("small"), start, **options)
        trainer.watch("before", perceptual, args.output)
        trainer.train()
    limits = dict(num_train_steps=args.steps, validate_every_step=args.every)
    if args.minutes is not None:
        limits = dict(num_train_steps=1_000_000, max_duration_s=args.minutes * 60)
        limits |= dict(validate_every_step=1_000_000)
    folders = [args.output / way.replace(" ", "-") for way in args.ways]
    for way, folder in zip(args.ways, folders, strict=True):
        torch.manual_seed(0)
        trainer = build_trainer(
            VideoTokenizer.from_pretrained(first),
            folder,
            perceptual_weights=args.weights,
            **(limits | dict(learning_rate=SHARP["learning_rate"]) | WAYS[way] | args.training),
        )
        trainer.watch(way, perceptual, args.output)
        trainer.train()
        for share in args.blend:
            tokenizer = blended(first, folder / "tokenizer", share)
            picture = args.output / f"{folder.name}-{share:g}.png"
            print_row(f"{way}, {share:g} of the way", "", measure(tokenizer, perceptual, picture))
    write_comparison(args.output / "comparison.png", [first, *(f / "tokenizer" for f in folders)])


if __name__ == "__main__":
    main()
