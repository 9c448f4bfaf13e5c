"""This library's side of the benchmarks that train for equal time on the demo's clips.

Training frames and held-out frames are the demo's; a result says what became of the latter.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from equal_time import Kept, Point, RandomClips
from torch import Tensor

from magvit2_pytorch import VideoTokenizer, VideoTokenizerTrainer
from magvit2_pytorch.atomic import replacing
from magvit2_pytorch.data import VideoFile, to_uint8
from magvit2_pytorch.evaluation.demo_run import (
    GAP_FRAMES,
    HELD_OUT_FRAMES,
    SHORT_SIDE,
    demo_clips,
    held_out_clips,
)
from magvit2_pytorch.metrics import CodebookUsage, psnr


@dataclass(frozen=True)
class Result:
    """A row of a table. Figures are of the held-out clips at full size, in float32."""

    name: str
    parameters: int
    bits_per_pixel: float
    """Of a held-out clip, whose first frame takes a latent frame of its own."""
    precision: str
    """In training."""
    steps: int
    seconds: float
    psnr_db: dict[str, float]
    """Of each clip."""
    mean_psnr_db: float
    codes_used: int
    perplexity: float
    curve: list[tuple[int, float, float]]
    """Step, seconds of training, mean PSNR in dB."""

    def write(self, path: Path) -> None:
        with replacing(path) as part:
            part.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Reconstructions:
    """What a tokenizer made of the held-out clips at one time, in the order of `held_out`."""

    step: int
    seconds: float
    recons: Sequence[Tensor]
    """`c t h w` in [-1, 1]."""
    codes: Sequence[Tensor]


def held_out(short_side: int = SHORT_SIDE) -> dict[str, Tensor]:
    """The demo's held-out clips by name: float32 `c t h w` in [-1, 1]."""
    paths = demo_clips()
    clips = held_out_clips(paths, short_side)
    return {path.stem: clip for path, clip in zip(paths, clips, strict=True)}


def write_training_frames(folder: Path, short_side: int = SHORT_SIDE) -> Path:
    """Frames the demo trains on, whole and at this size, as `RandomClips` reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in demo_clips():
        file = VideoFile(path)
        target = folder / f"{path.stem}.npy"
        if not target.exists():
            scale = short_side / min(file.height, file.width)
            size = (round(file.height * scale), round(file.width * scale))
            stop = file.num_frames - HELD_OUT_FRAMES - GAP_FRAMES
            with replacing(target) as part:
                np.save(part, file.read(range(stop), size=size).numpy())
    return folder


def write_held_out(folder: Path) -> Path:
    """The held-out clips for other implementations: NAME.npy, uint8 `t h w c`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, clip in held_out().items():
        with replacing(folder / f"{name}.npy") as part:
            np.save(part, to_uint8(clip).numpy())
    return folder


def evaluate(
    name: str,
    points: Sequence[Reconstructions],
    real: dict[str, Tensor],
    codebook_size: int,
    parameters: int,
    precision: str,
) -> Result:
    """The figures of a training: those of its last point, and PSNR at all of them."""
    decibels = [
        [
            float(psnr(recon[None].clamp(-1, 1), clip[None]))
            for recon, clip in zip(point.recons, real.values(), strict=True)
        ]
        for point in points
    ]
    means = [round(sum(values) / len(values), 3) for values in decibels]
    last = points[-1]
    usage = CodebookUsage(codebook_size)
    for codes in last.codes:
        usage.update(codes)
    used = usage.compute()
    pixels = sum(clip[0].numel() for clip in real.values())
    num_codes = sum(codes.numel() for codes in last.codes)
    return Result(
        name=name,
        parameters=parameters,
        bits_per_pixel=round(num_codes * float(np.log2(codebook_size)) / pixels, 4),
        precision=precision,
        steps=last.step,
        seconds=last.seconds,
        psnr_db={n: round(value, 2) for n, value in zip(real, decibels[-1], strict=True)},
        mean_psnr_db=means[-1],
        codes_used=round(float(used.usage) * codebook_size),
        perplexity=round(float(used.perplexity), 1),
        curve=[(p.step, p.seconds, mean) for p, mean in zip(points, means, strict=True)],
    )


class WatchedTrainer(VideoTokenizerTrainer):
    """The trainer, with its averaged weights kept on the way."""

    kept: Kept

    def train_step(self, *args: Any) -> None:
        progress = self.step / self.config.num_train_steps
        if self.config.max_duration_s:
            progress = max(progress, self.elapsed_s / self.config.max_duration_s)
        self.kept.offer(
            progress, self.step, self.elapsed_s, lambda: self.ema_tokenizer.state_dict()
        )
        super().train_step(*args)


def train(
    name: str,
    folder: Path,
    tokenizer: VideoTokenizer,
    training: dict[str, Any],
    num_points: int = 9,
    cpu: bool = True,
) -> Result:
    """Trains a tokenizer on the demo's clips by these options, and measures it.

    Clips are crops of frames whose short side is the model's size times `random_scale`'s largest.
    What the trainer leaves (log, pictures, tokenizer) lies in `folder`.
    """
    config = tokenizer.config
    short_side = round(config.image_size * max(training.get("random_scale") or (1,)))
    frames = write_training_frames(folder.parent / f"frames-{short_side}", short_side)
    options = training | dict(
        log_every_step=20,
        validate_every_step=1_000_000,
        checkpoint_every_step=1_000_000,
        results_folder=str(folder),
        checkpoints_folder=str(folder / "checkpoints"),
        progress_bar=False,
    )
    seed = training.get("seed", 42)
    real = held_out(short_side)
    trainer = WatchedTrainer(
        tokenizer,
        dataset=RandomClips(frames, training["num_frames"], config.image_size, -1.0, seed),
        valid_dataset=list(real.values()),
        accelerate_kwargs=dict(cpu=cpu),
        **options,
    )
    trainer.kept = Kept(num_points)
    trainer.train()
    trainer.kept.keep(trainer.step, trainer.elapsed_s, trainer.ema_tokenizer.state_dict())
    tried = [reconstruct(trainer.ema_tokenizer, point, real) for point in trainer.kept.points]
    parameters = sum(p.numel() for p in tokenizer.parameters())
    precision = trainer.config.precision
    return evaluate(name, tried, real, tokenizer.codebook_size, parameters, precision)


@torch.no_grad()
def reconstruct(
    tokenizer: VideoTokenizer, point: Point, real: dict[str, Tensor]
) -> Reconstructions:
    """What these weights make of the clips."""
    tokenizer.load_state_dict(point.weights)
    codes = [tokenizer.tokenize(clip[None].to(tokenizer.device)) for clip in real.values()]
    recons = [
        tokenizer.decode_from_code_indices(c, num_frames=clip.shape[1])[0].cpu()
        for c, clip in zip(codes, real.values(), strict=True)
    ]
    return Reconstructions(point.step, point.seconds, recons, [c.cpu() for c in codes])
