"""Super-resolution of decoded frames: held-out quality beside bicubic enlargement, and memory.

    magvit2 demo --minutes 4 -o run
    python benchmarks/super_resolution.py run --minutes 5 -o sr
    python benchmarks/super_resolution.py run --minutes 5 -o large --decoder --sharp
    python benchmarks/super_resolution.py run --memory -o sr

Trains a preset on the demo's clips but for their ends, as the demo trains its tokenizer; clips
smaller than the enlarged frames are left out. With --decoder it trains the tokenizer's own decoder
to draw frames of twice the size, as `magvit2 film` does, and with --sharp either of them with a
discriminator. Prints PSNR and temporal error of the last frames, decoded and clean, enlarged and by
bicubic interpolation, and a perceptual distance if --perceptual_weights names a network's weights.
The temporal error is that of the changes from frame to frame, relative to their energy. --memory
enlarges 720p to 1440p in tiles.
"""

import argparse
import resource
import time
from pathlib import Path

import torch

from magvit2_pytorch import (
    SuperResolution,
    SuperResolutionTrainer,
    VideoTokenizer,
    VideoTokenizerTrainer,
    recipe,
)
from magvit2_pytorch.convert.inflate import enlarged
from magvit2_pytorch.data.clips import ClipSpec
from magvit2_pytorch.data.datasets import VideoDataset
from magvit2_pytorch.evaluation.demo_run import (
    GAP_FRAMES,
    HELD_OUT_FRAMES,
    SHARP,
    demo_clips,
    held_out_clips,
    unique_names,
)
from magvit2_pytorch.evaluation.generator_run import timed_run
from magvit2_pytorch.losses.perceptual import build_perceptual
from magvit2_pytorch.media.frames import to_uint8
from magvit2_pytorch.media.images import write_grid
from magvit2_pytorch.media.video_reader import VideoFile
from magvit2_pytorch.metrics.quality import psnr, temporal_consistency
from magvit2_pytorch.pipelines.inference import reconstruct_clip
from magvit2_pytorch.super_resolution import SR_PRESETS
from magvit2_pytorch.training.super_resolution_task import SuperResolutionTrainingConfig

DECODER = {name: SHARP[name] for name in ("freeze_encoder", "learning_rate", "warmup_steps")}
SHARPER = {name: value for name, value in SHARP.items() if name not in DECODER} | dict(
    frame_discriminator=SHARP["frame_discriminator"] | dict(num_frames=2)
)
"""The discriminator of the demo, on half as many frames: they have four times the pixels."""


def large_clips(short_side: int) -> list[Path]:
    """The demo's clips that have at least this short side."""
    sides = {path: min(VideoFile(path).height, VideoFile(path).width) for path in demo_clips()}
    return [path for path, side in sides.items() if side >= short_side]


def train(tokenizer: VideoTokenizer, options: argparse.Namespace) -> None:
    torch.manual_seed(0)
    upscaler = SuperResolution.from_preset(options.preset)
    training = SR_PRESETS.training(options.preset)
    if options.decoder:
        upscaler = enlarged(tokenizer, upscaler.scale)
        training = recipe("small") | DECODER
    if options.sharp:
        training |= SHARPER
    training |= timed_run(options.output, options.minutes)
    short_side = SR_PRESETS.training(options.preset)["short_side"]
    paths = large_clips(short_side)
    if options.decoder:
        spec = ClipSpec(num_frames=17, image_size=128, flip=True, random_scale=(2.0, 2.0))
    else:
        config = SuperResolutionTrainingConfig(**training)
        spec, _ = config.clip_specs(upscaler.config, "videos")
    dataset = VideoDataset(
        paths,
        spec,
        clips_per_video=64,
        frame_range=(None, -(HELD_OUT_FRAMES + GAP_FRAMES)),
        cache_dir=options.output / "frames",
    )
    data = dict(dataset=dataset, valid_dataset=held_out_clips(paths, short_side))
    if options.decoder:
        trainer = VideoTokenizerTrainer(upscaler, **data, **training)
    else:
        trainer = SuperResolutionTrainer(tokenizer, upscaler, **data, **training)
    started = time.process_time()
    trainer.train()
    used = time.process_time() - started
    print(f"{trainer.step} steps in {trainer.elapsed_s:.0f} s, {used:.0f} s of processor time")


@torch.no_grad()
def measure(tokenizer: VideoTokenizer, options: argparse.Namespace) -> None:
    weights = options.perceptual_weights
    perceptual = None if weights is None else build_perceptual(weights)
    short_side = SR_PRESETS.training(options.preset)["short_side"]
    scale = SR_PRESETS.model(options.preset)["scale"]
    bicubic = SuperResolution(scale=scale).bicubic
    if options.decoder:
        decoder = VideoTokenizer.from_pretrained(options.output / "tokenizer").eval()
    else:
        upscaler = SuperResolution.from_pretrained(options.output / "upscaler").eval()
    paths = large_clips(short_side)
    print(f"{'clip':16} {'input':8} {'enlarged':8}    PSNR dB  temporal  perceptual")
    for name, clip in zip(unique_names(paths), held_out_clips(paths, short_side), strict=True):
        high = clip[None]
        clean = torch.nn.functional.avg_pool3d(high, (1, scale, scale))
        decoded = reconstruct_clip(tokenizer, clean)[0].clamp(-1, 1)
        ways = {("decoded", "bicubic"): bicubic(decoded)}
        if options.decoder:
            ways["decoded", "decoder"] = reconstruct_clip(decoder, high)[0]
        else:
            ways["decoded", "network"] = upscaler(decoded)
            ways |= {("clean", "bicubic"): bicubic(clean), ("clean", "network"): upscaler(clean)}
        rows = [list(to_uint8(high[0])[[0, 8, 16]])]
        for (kind, method), out in ways.items():
            out = out.clamp(-1, 1)
            distance = "-" if perceptual is None else f"{float(perceptual(out, high)):.4f}"
            error, energy = temporal_consistency(out, high)
            values = f"{float(psnr(out, high)):9.3f} {float(error / energy):9.4f}"
            print(f"{name:16} {kind:8} {method:8} {values} {distance:>10}", flush=True)
            if kind == "decoded":
                rows.append(list(to_uint8(out[0])[[0, 8, 16]]))
        write_grid(options.output / f"{name}.png", rows)


def memory(upscaler: SuperResolution, options: argparse.Namespace) -> None:
    """Peak memory of enlarging 720p frames one by one, in tiles and whole."""
    for tile_size in (128, None):
        stream = upscaler.stream(tile_size=tile_size)
        for number in range(options.frames):
            started = time.process_time()
            stream.push(torch.rand(1, 3, 1, 720, 1280) * 2 - 1)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            spent = time.process_time() - started
            print(
                f"tile {tile_size}, frame {number}: {spent:.1f} s, peak {peak:.0f} MB", flush=True
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--preset", default="x2-small", choices=list(SR_PRESETS))
    parser.add_argument("--minutes", type=float, default=5.0, help="0 measures an earlier run")
    parser.add_argument("--perceptual_weights")
    parser.add_argument("--decoder", action="store_true", help="a larger decoder, x2-small's scale")
    parser.add_argument("--sharp", action="store_true", help="with a discriminator of frames")
    parser.add_argument("--memory", action="store_true", help="measure memory only")
    parser.add_argument("--frames", type=int, default=4)
    options = parser.parse_args()
    if options.memory:
        memory(SuperResolution.from_pretrained(options.output / "upscaler"), options)
        return
    folder = options.tokenizer / "tokenizer"
    tokenizer = VideoTokenizer.from_pretrained(folder if folder.is_dir() else options.tokenizer)
    if options.minutes:
        train(tokenizer, options)
    measure(tokenizer, options)


if __name__ == "__main__":
    main()
