"""PSNR of a 1-D tokenizer over its number of tokens, after minutes of training.

    python benchmarks/any_number_of_tokens.py train --minutes 5
    python benchmarks/any_number_of_tokens.py table
    python benchmarks/any_number_of_tokens.py step

`train` trains a preset on the demo's clips at half size, without their last frames, and measures
the averaged weights on fixed crops of the held-out frames: with tokens asked for, with the first
ones of more tokens, at other sizes than those of training, on training clips, and beside the mean
colours of as many blocks. It keeps any_number_of_tokens.json, and draws PSNR over tokens. `table`
prints the result. `step` compares a training step on packs whose attention is grouped by length
with one call for each sample.
"""

import argparse
import json
import math
import random
import time
import warnings
from pathlib import Path
from statistics import median
from typing import Any

import torch
from demo_training import held_out, write_training_frames
from equal_time import RandomClips, markdown
from torch import Tensor
from torch.nn import functional as F

from magvit2_pytorch import Tokenizer1d
from magvit2_pytorch.atomic import replacing
from magvit2_pytorch.layers import transformer
from magvit2_pytorch.metrics import psnr
from magvit2_pytorch.tokenizer_1d import PRESETS_1D, towers
from magvit2_pytorch.training.sequence_task import Tokenizer1dTrainer

RESULTS = Path(__file__).with_suffix(".json")
CURVE = Path(__file__).parents[1] / "examples" / "any_number_of_tokens.png"
COUNTS = (4, 8, 16, 32, 64, 128, 192)
SHORT_SIDE = 64
OTHER_SIZES = {"16 x 64 x 64, 64 tokens": ((16, 64, 64), 64), "8 x 48 x 48": ((8, 48, 48), 32)}


def crops(videos: list[Tensor], size: tuple[int, int, int], number: int, seed: int) -> list[Tensor]:
    """Fixed random crops `c t h w` of this size, from one video after another."""
    rng, clips = random.Random(seed), []
    for index in range(number):
        video = videos[index % len(videos)]
        pairs = zip(video.shape[1:], size, strict=True)
        start = [rng.randint(0, have - wanted) for have, wanted in pairs]
        parts = (slice(at, at + side) for at, side in zip(start, size, strict=True))
        clips.append(video[(slice(None), *parts)])
    return clips


def decibels(recons: list[Tensor], clips: list[Tensor]) -> float:
    """Mean PSNR over clips."""
    values = [float(psnr(a[None], b[None])) for a, b in zip(recons, clips, strict=True)]
    return round(sum(values) / len(values), 2)


def blocks_of_mean_colour(clip: Tensor, count: int) -> Tensor:
    """The clip from the mean colours of as many blocks as tokens, interpolated."""
    frames = 1 if count < 32 else 2
    side = max(1, math.isqrt(count // frames))
    means = F.adaptive_avg_pool3d(clip[None], (frames, side, side))
    return F.interpolate(means, clip.shape[1:], mode="trilinear")[0]


@torch.no_grad()
def measure(tokenizer: Tokenizer1d, frames: Path) -> dict[str, Any]:
    """PSNR by number of tokens, in all ways that the table shows."""
    clips = crops(list(held_out(SHORT_SIDE).values()), (8, 64, 64), 8, seed=1)
    dataset = RandomClips(frames, 8, 64, -1.0, seed=7)
    trained_on = [dataset[number] for number in range(8)]
    bits = math.log2(tokenizer.codebook_size) / math.prod(clips[0].shape[1:])
    rows = []
    longest = tokenizer.tokenize(clips, max(COUNTS[:-1]))
    for count in COUNTS:
        row = {"tokens": count, "bits_per_pixel": round(bits * count, 4)}
        for name, some in (("held_out", clips), ("training", trained_on)):
            codes = tokenizer.tokenize(some, count)
            row[name] = decibels(tokenizer.decode(codes, (8, 64, 64)), some)
        prefix = [codes[:count] for codes in longest]
        row["first_of_128"] = decibels(tokenizer.decode(prefix, (8, 64, 64)), clips)
        blocks = [blocks_of_mean_colour(clip, count) for clip in clips]
        row["mean_colours"] = decibels(blocks, clips)
        rows.append(row)
    others = {}
    for name, (size, count) in OTHER_SIZES.items():
        some = crops(list(held_out(SHORT_SIDE).values()), size, 8, seed=1)
        codes = tokenizer.tokenize(some, count)
        sizes = [tuple(clip.shape[1:]) for clip in some]
        with warnings.catch_warnings():
            # Sizes above those of training are meant here.
            warnings.simplefilter("ignore")
            others[name] = decibels(tokenizer.decode(codes, sizes), some)
    return {"rows": rows, "other_sizes": others}


def train(preset: str, minutes: float, folder: Path, **options: Any) -> dict[str, Any]:
    """Trains on the demo's clips and measures."""
    torch.manual_seed(0)
    tokenizer = Tokenizer1d.from_preset(preset)
    frames = write_training_frames(folder / f"frames-{SHORT_SIDE}", SHORT_SIDE)
    config = tokenizer.config
    size = config.height_and_width[0]
    training = PRESETS_1D.training(preset) | dict(
        num_train_steps=1_000_000, max_duration_s=minutes * 60, log_every_step=20,
        validate_every_step=1_000_000, checkpoint_every_step=1_000_000, progress_bar=False,
        results_folder=str(folder), checkpoints_folder=str(folder / f"checkpoints-{time.time()}"),
    )  # fmt: skip
    trainer = Tokenizer1dTrainer(
        tokenizer,
        dataset=RandomClips(frames, config.num_frames, size, -1.0, seed=42),
        valid_dataset=crops(list(held_out(SHORT_SIDE).values()), (8, size, size), 3, seed=1),
        **(training | options),
    )
    trainer.train()
    ema = trainer.ema_tokenizer.cpu()
    return {
        "preset": preset,
        "minutes": minutes,
        "steps": trainer.step,
        "steps_per_s": round(trainer.step / trainer.elapsed_s, 3),
        "threads": torch.get_num_threads(),
        "device": str(trainer.accelerator.device),
    } | measure(ema, frames)


def table(result: dict[str, Any]) -> str:
    """The result in Markdown."""
    names = ("tokens", "bits_per_pixel", "held_out", "first_of_128", "training", "mean_colours")
    titles = (
        "tokens", "bits per pixel", "held out, dB", "first of 128, dB", "training clips, dB",
        "as many mean colours, dB",
    )  # fmt: skip
    rows = [[row[name] for name in names] for row in result["rows"]]
    others = "; ".join(f"{name}: {value} dB" for name, value in result["other_sizes"].items())
    head = (
        f"{result['preset']}, {result['minutes']} minutes, {result['steps']} steps "
        f"({result['steps_per_s']} a second, {result['threads']} threads). Other sizes: {others}."
    )
    return f"{head}\n\n{markdown(titles, rows)}"


def draw(result: dict[str, Any], path: Path) -> None:
    """PSNR over tokens as a picture."""
    from matplotlib.figure import Figure

    figure = Figure((6.4, 4.0), layout="constrained")
    axis = figure.subplots()
    counts = [row["tokens"] for row in result["rows"]]
    labels = {
        "held_out": "tokens asked for",
        "first_of_128": "first tokens of 128",
        "mean_colours": "mean colours of blocks",
    }
    for (name, label), style in zip(labels.items(), ("o-", "s--", "x:"), strict=True):
        axis.plot(counts, [row[name] for row in result["rows"]], style, label=label)
    axis.set_xscale("log", base=2)
    axis.set_xticks(counts, [str(count) for count in counts])
    axis.set(xlabel="tokens for 8 x 64 x 64 pixels", ylabel="PSNR of held-out clips, dB")
    axis.grid(alpha=0.3)
    axis.legend()
    with replacing(path) as part:
        figure.savefig(part, format="png", dpi=110)


def attend_one_by_one(pairs: list) -> Any:
    """Attention with a call for each sample, as `attend_spans` without groups."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        single = [
            transformer.attend_spans([((0, b - a), (0, d - c))])(
                q[:, :, a:b], k[:, :, c:d], v[:, :, c:d]
            )
            for (a, b), (c, d) in pairs
        ]
        return torch.cat(single, dim=2)

    return attend


def time_steps(preset: str, num_steps: int) -> dict[str, float]:
    """Median CPU seconds of forward and backward pass on the same packs, in both ways."""
    from magvit2_pytorch.data.packs import PackGroup
    from magvit2_pytorch.training.sequence_task import SequenceAutoencoder, SequenceTrainingConfig

    tokenizer = Tokenizer1d.from_preset(preset)
    config = SequenceTrainingConfig(**PRESETS_1D.training(preset))
    spec = config.pack_spec(tokenizer.config)
    model = SequenceAutoencoder(tokenizer, config.precision)
    packs = [
        [
            PackGroup(torch.rand(clips, 3, *size) * 2 - 1, count, prefix)
            for size, count, prefix, clips in spec.draw(random.Random(seed))
        ]
        for seed in range(num_steps)
    ]
    grouped, times = towers.attend_spans, {"grouped": [], "one by one": []}
    for pack in [packs[0], *packs]:
        for name, attend in (("grouped", grouped), ("one by one", attend_one_by_one)):
            towers.attend_spans = attend
            started = time.process_time()
            out = model(pack)
            pairs = zip(out.recons, pack, strict=True)
            sum((recon.float() - group.clips).square().mean() for recon, group in pairs).backward()
            times[name].append(time.process_time() - started)
    towers.attend_spans = grouped
    return {name: round(median(values[1:]), 4) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("train", "table", "step"))
    parser.add_argument("--preset", default="tiny-1d", choices=tuple(PRESETS_1D))
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--folder", type=Path, default=Path("any_number_of_tokens"))
    parser.add_argument("--precision", choices=("fp32", "bf16"))
    args = parser.parse_args()
    if args.what == "step":
        print(json.dumps(time_steps(args.preset, args.steps)))
        return
    if args.what == "train":
        options = {} if args.precision is None else {"precision": args.precision}
        result = train(args.preset, args.minutes, args.folder, **options)
        with replacing(RESULTS) as part:
            part.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        draw(result, CURVE)
    print(table(json.loads(RESULTS.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
