"""Report of a generator on held-out ends of videos, with pictures."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from magvit2_pytorch.atomic import as_path, replace_json, replace_text
from magvit2_pytorch.codes.code_header import CodedVideo
from magvit2_pytorch.codes.code_windows import Stretch, split_in_time
from magvit2_pytorch.codes.codes_dataset import CodesDataset
from magvit2_pytorch.evaluation.continuations import (
    Films,
    VideoDistances,
    compare,
    continuations,
    perceptual_of_pairs,
    psnr_of_pairs,
)
from magvit2_pytorch.evaluation.generator_measures import (
    ADDED_COUNTS,
    HeldOut,
    Unigram,
    adaptive_bits,
    held_out_videos,
    nearest_shares,
    state_before,
)
from magvit2_pytorch.evaluation.measure import EvaluationNetworks
from magvit2_pytorch.functional import pad_space
from magvit2_pytorch.generators.autoregressive import AutoregressiveGenerator
from magvit2_pytorch.generators.generator import Generator, State
from magvit2_pytorch.media.frames import to_float, to_uint8
from magvit2_pytorch.media.images import write_grid
from magvit2_pytorch.media.video_reader import VideoFile
from magvit2_pytorch.metrics.bootstrap import bootstrap_interval
from magvit2_pytorch.pipelines.inference import Inference
from magvit2_pytorch.pipelines.media_file import open_media
from magvit2_pytorch.pipelines.progress import FileProgress, Plan
from magvit2_pytorch.tokenizer_1d import AnyTokenizer, Tokenizer1d
from magvit2_pytorch.types import Video
from magvit2_pytorch.version import __version__

PICTURE_FILMS = ("original", "true codes", "most likely", "sample 0", "sample 1", "repeated")


def evaluate_generator(
    generator: Generator,
    tokenizer: AnyTokenizer,
    codes: CodesDataset,
    folder: Path,
    *,
    data: Path | Mapping[str, Path] | None = None,
    valid_frac: float = 0.1,
    num_valid_latents: int | None = None,
    held_out: Mapping[str, int] | None = None,
    num_latents: int = 2,
    num_samples: int = 4,
    max_videos: int = 16,
    networks: EvaluationNetworks = EvaluationNetworks(),
    inference: Inference = Inference(),
    progress: FileProgress | None = None,
) -> dict[str, Any]:
    """Measures a generator and writes a report with a picture per video.

    Held out is the end of each video, as in training with the same `valid_frac` and
    `num_valid_latents`, or by `held_out`, the record of its run. `data` is the folder of the videos
    that were tokenized, or the video of each code file by its name; without it, predictions are
    compared with decoded true codes. With `networks`, continuations are also compared by perceptual
    distance, and by the Fréchet video distance of all of them. Returns the contents of report.json.
    """
    progress = progress or FileProgress()
    train, stretches = split_in_time(codes, 1, valid_frac, num_valid_latents, held_out)
    stretches = [stretch for stretch in stretches if stretch.stop > 1][:max_videos]
    if not stretches:
        raise ValueError(f"{codes.folder} holds no video of two latent frames to predict one of")
    distances = _checked(networks, tokenizer, codes, stretches, num_latents)
    progress.planned(Plan(num_inputs=len(stretches)))
    folder.mkdir(parents=True, exist_ok=True)
    unigram = Unigram(codes, train)
    rows, unigram_bits, first_frames = [], [], []
    for stretch, video in zip(stretches, held_out_videos(codes, stretches), strict=True):
        unigram_bits.append([unigram.bits(video.end, added) for added in ADDED_COUNTS])
        state = state_before(generator, video)
        row = _likelihood(generator, video, state)
        counts = min(num_latents, len(video.end)), num_samples
        films, correct = continuations(generator, tokenizer, video, state, *counts, inference)
        entry, like = codes.header(stretch.video), films["true codes"]
        films["original"] = _original(data, tokenizer, entry, video, like)
        row |= _compared(films, tokenizer, networks)
        row["prediction"]["correct"] = correct
        row["picture"] = _draw(films, tokenizer, folder, video.name)
        if distances is not None:
            distances.add(films)
        row["pixels_of_a_code"] = _pixels_of_a_code(tokenizer, video)
        first_frames.append(video.end[0])
        rows.append(row)
        progress.finished(video.name, None)
    for row, share in zip(rows, nearest_shares(first_frames, codes, train), strict=True):
        row["nearest_training_frame"] = share
    report = _summary(generator, rows, np.array(unigram_bits), networks, distances)
    replace_json(folder / "report.json", report)
    replace_text(folder / "report.md", as_markdown(report))
    return report


def _likelihood(generator: Generator, video: HeldOut, state: State) -> dict[str, Any]:
    """Bits of a held-out code in the adaptive coder and the generator."""
    row = {
        "video": video.name,
        "num_codes": video.end.shape[:3].numel(),
        "held_out_latents": len(video.end),
        "adaptive_coder": adaptive_bits(video, generator.config.levels),
    }
    if isinstance(generator, AutoregressiveGenerator):
        bits = generator.bits(video.end[None].to(generator.device), state=state)[0][0].cpu()
        row |= {"bits": float(bits.mean()), "bits_of_latents": bits.mean(dim=(1, 2)).tolist()}
    return row


def _checked(
    networks: EvaluationNetworks,
    tokenizer: AnyTokenizer,
    codes: CodesDataset,
    stretches: Sequence[Stretch],
    num_latents: int,
) -> VideoDistances | None:
    """Distances of continuations; `ValueError` unless the networks take these videos."""
    perceptual, i3d = networks
    if perceptual is not None and not perceptual.resize_to:
        entries = (codes.header(stretch.video) for stretch in stretches)
        side = min(min(entry.height, entry.width) for entry in entries)
        smallest = perceptual.trunk.min_size
        if side < smallest:
            raise ValueError(f"frames of {side} pixels: {perceptual.name} needs {smallest}")
    if i3d is None:
        return None
    long = [s for s in stretches if s.stop - max(s.start, 1) >= num_latents]
    if len(long) < 2:
        raise ValueError(
            f"{len(long)} videos have {num_latents} held-out latent frames: a Fréchet distance "
            "needs at least 2; use a smaller num_latents, or more videos"
        )
    try:
        num_frames = num_latents * tokenizer.time_factor
        return VideoDistances(i3d, num_frames, tokenizer.config.channels)
    except ValueError as error:
        raise ValueError(f"{error}; num_latents is {num_latents}: try more") from error


def _original(
    data: Path | Mapping[str, Path] | None,
    tokenizer: AnyTokenizer,
    entry: CodedVideo,
    video: HeldOut,
    like: Video,
) -> Video:
    """Frames of the tokenized video, found in `data`, for those predicted.

    Without `data` they are `like`. There may be fewer: the last latent frame may stand for fewer
    than it decodes to.
    """
    if data is None:
        return like
    if isinstance(data, Mapping):
        path = data[video.name]
    else:
        path = as_path(entry.source, data) if data.is_dir() else data
    media = open_media(path, tokenizer.config.channels, entry.header.size)
    media.frames.close()
    alone = tokenizer.num_alone
    start = alone + (video.start - alone) * tokenizer.time_factor
    stop = min(start + like.shape[2], media.num_frames)
    if start >= stop:
        raise ValueError(f"{path} has {media.num_frames} frames: is it the one of {video.name}?")
    file = VideoFile(path, tokenizer.config.channels)
    frames = file.read(range(start, stop), (media.height, media.width))
    frames = pad_space(to_float(frames)[None], tokenizer.space_factor)
    if frames.shape[3:] != like.shape[3:]:
        raise ValueError(
            f"{path} has frames of {media.height} x {media.width}: is it the one of {video.name}?"
        )
    return frames


def _pixels_of_a_code(tokenizer: AnyTokenizer, video: HeldOut) -> float | int:
    if isinstance(tokenizer, Tokenizer1d):
        return tokenizer.time_factor * math.prod(video.size) / video.codes.shape[3]
    return tokenizer.time_factor * tokenizer.space_factor**2


def _compared(
    films: dict[str, Video], tokenizer: AnyTokenizer, networks: EvaluationNetworks
) -> dict[str, Any]:
    """Measures of a continuation, whose films get the length of the original."""
    step, length = tokenizer.time_factor, films["original"].shape[2]
    films.update({name: film[:, :, :length] for name, film in films.items()})
    values = {"prediction": vars(compare(films, psnr_of_pairs, step))}
    if networks.perceptual is not None:
        measure = partial(perceptual_of_pairs, network=networks.perceptual)
        values["perceptual"] = vars(compare(films, measure, step, np.min))
    return values


def _draw(films: Films, tokenizer: AnyTokenizer, folder: Path, name: str) -> str:
    """Draws the last frame of each latent; returns the picture's name."""
    step = tokenizer.time_factor
    grid = [
        to_uint8(films[kind][0, :, step - 1 :: step].clamp(-1, 1))
        for kind in PICTURE_FILMS
        if kind in films
    ]
    picture = f"{name.replace('/', '-').split('.')[0]}.png"
    write_grid(folder / picture, grid)
    return picture


def _summary(
    generator: Generator,
    rows: Sequence[Mapping[str, Any]],
    unigram_bits: np.ndarray,
    networks: EvaluationNetworks,
    distances: VideoDistances | None,
) -> dict[str, Any]:
    """The report of all videos."""
    counts = np.array([row["num_codes"] for row in rows], dtype=float)
    report: dict[str, Any] = {
        "library_version": __version__,
        "generator": generator.config.to_dict(),
        "uniform_bits": generator.code_space.bits,
        "unigram_bits": float((unigram_bits * counts[:, None]).sum(0).min() / counts.sum()),
        "adaptive_coder_bits": _mean(rows, "adaptive_coder"),
        "videos": list(rows),
    }
    if "bits" in rows[0]:
        values = [row["bits"] for row in rows]
        interval = bootstrap_interval(values)
        report["bits"] = _mean(rows, "bits")
        report["bits_interval"] = None if interval is None else list(interval)
        report["bits_per_pixel"] = report["bits"] / rows[0]["pixels_of_a_code"]
    for kind in ("prediction", "perceptual"):
        if kind in rows[0]:
            report[kind] = {
                name: np.mean([row[kind][name] for row in rows], axis=0).tolist()
                for name in rows[0][kind]
                if len({len(row[kind][name]) for row in rows}) == 1
            }
    report["networks"] = networks.metadata()
    if distances is not None:
        report["fvd"] = distances.report()
    return report


def _mean(rows: Sequence[Mapping[str, Any]], name: str) -> float:
    """Mean over codes, of which videos have different numbers."""
    weights = [row["num_codes"] for row in rows]
    return float(np.average([row[name] for row in rows], weights=weights))


def as_markdown(report: Mapping[str, Any]) -> str:
    """The report as text."""
    lines = ["# Generator on held-out ends of videos", ""]
    lines += ["| model of the codes | bits per code |", "|---|---|"]
    lines.append(f"| all codes equally likely | {report['uniform_bits']:.2f} |")
    lines.append(f"| frequencies of codes (unigram) | {report['unigram_bits']:.2f} |")
    lines.append(f"| the adaptive entropy coder | {report['adaptive_coder_bits']:.2f} |")
    if "bits" in report:
        interval = report["bits_interval"]
        text = "" if interval is None else f" ({interval[0]:.2f} to {interval[1]:.2f})"
        lines.append(f"| this generator, exactly | {report['bits']:.3f}{text} |")
    lines += ["", "Prediction of the next latents, PSNR in dB, mean over videos:", ""]
    lines += prediction_table(report["prediction"])
    if "perceptual" in report:
        name = report["networks"]["perceptual"]["name"]
        lines += ["", f"The same by {name}: the lower, the more alike.", ""]
        lines += prediction_table(report["perceptual"], digits=3)
    if "fvd" in report:
        lines += ["", *_distance_lines(report["fvd"])]
    lines += ["", "Rows of the pictures: " + ", ".join(PICTURE_FILMS) + ".", ""]
    for row in report["videos"]:
        bits = f"{row['bits']:.3f} bits, " if "bits" in row else ""
        lines.append(
            f"- {row['video']}: {bits}adaptive coder {row['adaptive_coder']:.2f}; "
            f"![{row['video']}]({row['picture']})"
        )
    return "\n".join(lines) + "\n"


def _distance_lines(distances: Mapping[str, Any]) -> list[str]:
    """Lines on the Fréchet video distances."""
    sizes = ", ".join(f"{height} x {width}" for height, width in distances["sizes"])
    lines = [
        f"Fréchet video distance (gFVD, I3D by protocol {distances['protocol']}) to the real "
        f"continuations of {distances['num_real']} held-out ends, {distances['num_frames']} "
        f"frames of {sizes} after the prompts:",
        "",
        "| continuations | distance |",
        "|---|---|",
    ]
    for name, title in TITLES.items():
        if name in distances:
            value = distances[name]
            number = f"{distances['num_generated']} samples" if name == "sampled" else title
            lines.append(f"| {number} | {'-' if value is None else f'{value:.1f}'} |")
    if distances["num_real"] <= distances["num_features"]:
        lines += [
            "",
            f"{distances['num_real']} clips are fewer than the {distances['num_features']} "
            "features of one: such distances depend on the number of clips more than on their "
            "likeness, and compare only with each other.",
        ]
    return lines


TITLES = {
    "most_likely": "most likely codes", "sampled": "samples, mean", "best": "samples, best",
    "repeated": "last frame repeated", "ceiling": "true codes (the tokenizer alone)",
    "pairwise": "between two samples",
}  # fmt: skip
"""Kinds of continuations."""


def prediction_table(prediction: Mapping[str, Sequence[float]], digits: int = 2) -> list[str]:
    """Lines of a table of a measure of each further latent frame.

    A column for each latent frame, a row for each kind of continuation.
    """
    count = len(prediction.get("most_likely", ()))
    numbers = " | ".join(str(n + 1) for n in range(count))
    lines = [f"| frames of latent | {numbers} |", "|---" * (count + 1) + "|"]
    for name, title in TITLES.items():
        values = " | ".join(f"{value:.{digits}f}" for value in prediction.get(name, ()))
        lines.append(f"| {title} | {values} |")
    if "correct" in prediction:
        shares = " | ".join(f"{100 * value:.0f} %" for value in prediction["correct"])
        lines.append(f"| most likely codes that are right | {shares} |")
    return lines
