"""Rate and distortion of tokenizers beside H.264, H.265 and AV1, on the same frames.

    python benchmarks/rate_distortion.py --model demo/tokenizer -o rate_distortion
    python benchmarks/rate_distortion.py --model demo/tokenizer --frames 120 -o longer
    python benchmarks/rate_distortion.py --model a/tokenizer b/tokenizer --data videos/*.mp4
    python benchmarks/rate_distortion.py --model demo/tokenizer --generator demo/generator

Without --data, the demo's clips; of every file the last --frames frames, 17 unless said, which are
those that the demo holds out: with more, frames that it trained on are among them. Short side 128.

A tokenizer has two points of one quality: its codes at their fixed length, and as
`codes.entropy_coding` writes them, counted in bytes that were decoded again. The shape of the clip
is in the latter, not in the former; the tokenizer itself in neither, as no decoder is in a codec's.
With --generator, an autoregressive generator of its codes, a third point has them as
`generators.compression` writes them, likewise without the generator: unlike the adaptive coder, it
has learnt from other frames, by default from earlier ones of the same videos. The codecs' settings
are in `video_codecs.py`: their slowest sensible presets, tuned for PSNR, looking ahead over the
clip, parameter sets counted, containers not. PSNR and SSIM are of RGB in 8 bits on both sides; the
codecs code in 4:2:0, as video is, and what this alone costs is the ceiling in the table. --weights
names a perceptual network as `losses.PerceptualLoss` reads it.

Writes curves.json, curves.png, table.md and a picture of each clip: the middle frame of the
original, of the tokenizer and of each codec at the nearest rate that was measured, for each point.
"""

import argparse
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import numpy as np
import torch
from equal_time import markdown
from torch import Tensor
from video_codecs import CODECS, available_codecs, code_frames, color_round_trip

from magvit2_pytorch import VideoTokenizer
from magvit2_pytorch.cli.options import find_model
from magvit2_pytorch.codes.entropy_coding import compress, decompress
from magvit2_pytorch.data import VideoFile, to_float, to_uint8, write_grid
from magvit2_pytorch.evaluation.demo_run import (
    HELD_OUT_FRAMES,
    demo_clips,
    held_out_clips,
    unique_names,
)
from magvit2_pytorch.generators import AutoregressiveGenerator, load_generator
from magvit2_pytorch.generators.compression import compress_codes, decompress_codes
from magvit2_pytorch.losses import build_perceptual
from magvit2_pytorch.metrics import psnr, ssim
from magvit2_pytorch.pipelines.fingerprint import TokenizerId

KINDS = ("fixed length", "entropy coded", "coded by the generator")
FRAMES_AT_ONCE = 16
"""That a perceptual network sees."""

Measures = dict[str, Callable[[Tensor, Tensor], float]]
"""Of two clips `t h w c` in bytes, by name."""


class Point(NamedTuple):
    """One clip, or the mean of several, coded in one way."""

    series: str
    quality: int | None
    """A codec's CRF."""
    bits_per_pixel: float
    values: dict[str, float]
    """By the names of measures."""


class Clip(NamedTuple):
    """What was measured of one stretch of video."""

    name: str
    frames: Tensor
    points: list[Point]
    shown: dict[tuple[str, int | None], Tensor]
    """The middle frame of each point."""
    ceilings: dict[str, float]
    """Of the measures, for 4:2:0 with nothing coded."""


def last_frames(path: Path, num_frames: int) -> Tensor:
    """`t h w c` bytes of the last frames, or of all if there are fewer, as the demo sizes them."""
    num_frames = min(num_frames, VideoFile(path).num_frames)
    return to_uint8(held_out_clips([path], num_frames=num_frames)[0])


def build_measures(weights: Path | None) -> Measures:
    def on_clips(metric) -> Callable[[Tensor, Tensor], float]:
        return lambda recon, real: float(metric(to_float(recon)[None], to_float(real)[None]))

    measures = {"PSNR": on_clips(psnr), "SSIM": on_clips(ssim)}
    if weights is not None:
        network = build_perceptual(weights)

        @torch.no_grad()
        def distance(recon: Tensor, real: Tensor) -> float:
            pairs = zip(recon.split(FRAMES_AT_ONCE), real.split(FRAMES_AT_ONCE), strict=True)
            sums = [len(b) * float(network(to_float(a)[None], to_float(b)[None])) for a, b in pairs]
            return sum(sums) / len(real)

        measures[network.name] = distance
    return measures


def label_of(folder: Path) -> str:
    """The folder's name, or its parent's where it only says "tokenizer"."""
    folder = folder.resolve()
    return folder.parent.name if folder.name == "tokenizer" else folder.name


def generator_of(
    tokenizer: VideoTokenizer, folders: Sequence[Path]
) -> AutoregressiveGenerator | None:
    """The generator in one of the folders that was trained on the tokenizer's codes."""
    fingerprint = TokenizerId.of(tokenizer).fingerprint
    for folder in folders:
        generator = load_generator(find_model(str(folder), "generator", "--generator"))
        if not isinstance(generator, AutoregressiveGenerator):
            raise ValueError(
                f"{folder} has no exact probabilities: give an autoregressive generator"
            )
        if generator.config.tokenizer_fingerprint == fingerprint:
            return generator.eval()
    return None


@torch.no_grad()
def tokenizer_bits(
    tokenizer: VideoTokenizer, frames: Tensor, generator: AutoregressiveGenerator | None = None
) -> tuple[Tensor, dict[str, float]]:
    """A clip as it comes back from its codes, and what these cost, by kind."""
    codes = tokenizer.tokenize(to_float(frames)[None])
    data = compress(codes[0], tokenizer.quantizer)
    codes = decompress(data, tokenizer.quantizer)[None]
    positions = codes.numel() // tokenizer.num_codebooks
    bits = [positions * tokenizer.quantizer.bits_per_position, len(data) * 8]
    if generator is not None:
        data = compress_codes(codes[0], generator)
        codes = decompress_codes(data, generator)[None]
        bits.append(len(data) * 8)
    recon = tokenizer.decode_from_code_indices(codes, num_frames=len(frames))
    return to_uint8(recon[0].float().clamp(-1, 1)), dict(zip(KINDS, bits, strict=False))


def measure_clip(
    path: Path,
    name: str,
    tokenizers: dict[str, VideoTokenizer],
    num_frames: int,
    measures: Measures,
    generators: dict[str, AutoregressiveGenerator | None],
) -> Clip:
    frames = last_frames(path, num_frames)
    num_pixels, middle = frames[..., 0].numel(), len(frames) // 2
    points, shown = [], {}

    def add(series: str, quality: int | None, bits: float, recon: Tensor) -> None:
        values = {name: measure(recon, frames) for name, measure in measures.items()}
        points.append(Point(series, quality, bits / num_pixels, values))
        shown[series, quality] = recon[middle]

    for label, tokenizer in tokenizers.items():
        recon, bits = tokenizer_bits(tokenizer, frames, generators[label])
        for kind, number in bits.items():
            add(f"{label}, {kind}", None, number, recon)
    for codec_name, codec in available_codecs().items():
        for quality in codec.qualities:
            coded = code_frames(frames, codec, quality, VideoFile(path).fps)
            add(codec_name, quality, coded.num_bytes * 8, coded.frames)
    bare = color_round_trip(frames)
    ceilings = {name: measure(bare, frames) for name, measure in measures.items()}
    return Clip(name, frames, points, shown, ceilings)


def mean_points(clips: Sequence[Clip]) -> list[Point]:
    """Means over clips of rate and measures, at each quality of each series."""
    groups = zip(*(clip.points for clip in clips), strict=True)
    return [
        Point(
            series=group[0].series,
            quality=group[0].quality,
            bits_per_pixel=mean(p.bits_per_pixel for p in group),
            values={name: mean(p.values[name] for p in group) for name in group[0].values},
        )
        for group in groups
    ]


def value_at(curve: Sequence[Point], bits_per_pixel: float, name: str) -> float | None:
    """A curve's measure at a rate, linear in the rate's logarithm; None beyond its ends."""
    return _crossing(
        [(np.log(p.bits_per_pixel), p.values[name]) for p in curve], np.log(bits_per_pixel)
    )


def rate_at(curve: Sequence[Point], value: float, name: str) -> float | None:
    """The rate at which a curve reaches a measure; None beyond its ends."""
    found = _crossing([(p.values[name], np.log(p.bits_per_pixel)) for p in curve], value)
    return None if found is None else float(np.exp(found))


def _crossing(points: Sequence[tuple[float, float]], x: float) -> float | None:
    xs, ys = zip(*sorted(points), strict=True)
    return float(np.interp(x, xs, ys)) if xs[0] <= x <= xs[-1] else None


def table(name: str, rows: dict[str, list[Point]], ceilings: dict[str, float]) -> str:
    """One measure: each of our points beside what the codecs make of its rate and quality."""
    measured = {point.series for points in rows.values() for point in points}
    codecs = [codec for codec in CODECS if codec in measured]
    heads = ["clip", "codes", "bits per pixel", name]
    heads += [f"{codec} at this rate" for codec in codecs]
    heads += [f"{codec}'s rate at this {name}" for codec in codecs]
    lines = []
    for clip, points in rows.items():
        curves = [[p for p in points if p.series == codec] for codec in codecs]
        for point in (p for p in points if p.quality is None):
            value, rate = point.values[name], point.bits_per_pixel
            cells = [clip, point.series, f"{rate:.4f}", f"{value:.3f}"]
            there = [value_at(curve, rate, name) for curve in curves]
            cells += ["-" if x is None else f"{x:.3f}" for x in there]
            rates = [rate_at(curve, value, name) for curve in curves]
            cells += ["-" if x is None else f"{x:.4f} ({x / rate:.0%} of ours)" for x in rates]
            lines.append(cells)
    ceiling = ", ".join(f"{clip} {value:.3f}" for clip, value in ceilings.items())
    return f"## {name}\n\n{markdown(heads, lines)}\n\n4:2:0 with nothing coded: {ceiling}\n"


def plot(points: Sequence[Point], path: Path) -> None:
    """Each measure over bits per pixel: a line to a codec, joined marks to a tokenizer."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = list(points[0].values)
    figure = Figure(figsize=(5.5 * len(names), 5), layout="constrained")
    FigureCanvasAgg(figure)
    curves: dict[str, list[Point]] = {}
    for point in points:
        key = point.series if point.quality is not None else point.series.rsplit(", ", 1)[0]
        curves.setdefault(key, []).append(point)
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False).flat, names, strict=True):
        for label, curve in curves.items():
            pairs = [(p.bits_per_pixel, p.values[name]) for p in curve]
            ours = curve[0].quality is None
            style = dict(marker="*", markersize=14, linestyle=":") if ours else dict(marker=".")
            (line,) = axes.plot(*zip(*pairs, strict=True), label=label, **style)
            for pair, kind in zip(pairs, KINDS, strict=False) if ours else ():
                axes.annotate(kind, pair, (0, -14), textcoords="offset points", fontsize=7,
                              ha="center", color=line.get_color())  # fmt: skip
        axes.set(xscale="log", xlabel="bits per pixel", title=name)
        axes.grid(alpha=0.3, which="both")
        axes.legend()
    figure.savefig(path, dpi=110)


def write_picture(clip: Clip, path: Path) -> None:
    """A row to each of our points: original, ours, each codec where its rate is nearest."""
    rows = []
    for ours in (p for p in clip.points if p.quality is None):
        row = [clip.frames[len(clip.frames) // 2], clip.shown[ours.series, None]]
        for codec in available_codecs():
            curve = [p for p in clip.points if p.series == codec]
            near = min(curve, key=lambda p: abs(np.log(p.bits_per_pixel / ours.bits_per_pixel)))
            row.append(clip.shown[codec, near.quality])
        rows.append(row)
    write_grid(path, rows)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, nargs="+", required=True, help="tokenizers' folders")
    parser.add_argument("--generator", type=Path, nargs="+", default=[], help="of their codes")
    parser.add_argument("--data", type=Path, nargs="+", help="videos; the demo's unless said")
    parser.add_argument("--frames", type=int, default=HELD_OUT_FRAMES, help="the last of each")
    parser.add_argument("--weights", type=Path, help="of a perceptual network to measure with")
    parser.add_argument("-o", "--output", type=Path, default=Path("rate_distortion"))
    args = parser.parse_args()
    # SVT-AV1 would say on stderr what it was told, for every clip and quality.
    os.environ.setdefault("SVT_LOG", "1")
    names = [label_of(folder) for folder in args.model]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in args.model]
    folders = zip(names, args.model, strict=True)
    tokenizers = {name: VideoTokenizer.from_pretrained(folder).eval() for name, folder in folders}
    generators = {name: generator_of(one, args.generator) for name, one in tokenizers.items()}
    if args.generator and not any(generators.values()):
        parser.error("--generator: none was trained on codes of these tokenizers")
    missing = sorted(set(CODECS) - set(available_codecs()))
    if missing:
        print(f"this PyAV has no {', '.join(missing)}", flush=True)
    measures = build_measures(args.weights)
    args.output.mkdir(parents=True, exist_ok=True)
    paths = args.data or demo_clips()
    clips = []
    for path, name in zip(paths, unique_names(paths), strict=True):
        clip = measure_clip(path, name, tokenizers, args.frames, measures, generators)
        write_picture(clip, args.output / f"{name}.png")
        print(f"{name}: {' x '.join(map(str, clip.frames.shape[:3]))}", flush=True)
        clips.append(clip)
    average = mean_points(clips)
    rows = {clip.name: clip.points for clip in clips}
    if len(clips) > 1:
        rows["mean"] = average
    plot(average, args.output / "curves.png")
    tables = [
        table(name, rows, {clip.name: clip.ceilings[name] for clip in clips}) for name in measures
    ]
    (args.output / "table.md").write_text("\n".join(tables), encoding="utf-8")
    print("\n".join(tables))
    described = {
        "models": [str(folder) for folder in args.model],
        "generators": [str(folder) for folder in args.generator],
        "codecs": {name: asdict(codec) for name, codec in available_codecs().items()},
        "codecs_missing": missing,
        "clips": [
            dict(
                name=clip.name,
                num_frames=len(clip.frames),
                height=clip.frames.shape[1],
                width=clip.frames.shape[2],
                ceilings=clip.ceilings,
                points=[point._asdict() for point in clip.points],
            )
            for clip in clips
        ],
    }
    (args.output / "curves.json").write_text(json.dumps(described, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
