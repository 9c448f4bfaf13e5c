"""Report of a generator on held-out ends of videos, with pictures."""

import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from magvit2_pytorch.atomic import as_path, replacing
from magvit2_pytorch.codes.code_header import CodedVideo
from magvit2_pytorch.codes.code_windows import split_in_time
from magvit2_pytorch.codes.codes_dataset import CodesDataset
from magvit2_pytorch.evaluation.generator_measures import (
    ADDED_COUNTS,
    HeldOut,
    Prediction,
    Unigram,
    adaptive_bits,
    exact_bits,
    held_out_videos,
    nearest_share,
    predict,
)
from magvit2_pytorch.generators.autoregressive import AutoregressiveGenerator
from magvit2_pytorch.generators.generator import Generator
from magvit2_pytorch.media.frames import to_float, to_uint8
from magvit2_pytorch.media.images import write_grid
from magvit2_pytorch.metrics.bootstrap import bootstrap_interval
from magvit2_pytorch.pipelines.inference import Inference
from magvit2_pytorch.pipelines.media_file import open_media, pad_space
from magvit2_pytorch.pipelines.progress import FileProgress, Plan
from magvit2_pytorch.tokenizer.model import VideoTokenizer
from magvit2_pytorch.version import __version__

PICTURE_FILMS = ("original", "true codes", "most likely", "sample 0", "sample 1", "repeated")


def evaluate_generator(
    generator: Generator,
    tokenizer: VideoTokenizer,
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
    inference: Inference = Inference(),
    progress: FileProgress | None = None,
) -> dict[str, Any]:
    """Measures a generator and writes a report with a picture per video.

    Held out is the end of each video, as in training with the same `valid_frac` and
    `num_valid_latents`, or by `held_out`, the record of its run. `data` is the folder of the videos
    that were tokenized, or the video of each code file by its name; without it, predictions are
    compared with decoded true codes. Returns the contents of report.json.
    """
    progress = progress or FileProgress()
    train, stretches = split_in_time(codes, 1, valid_frac, num_valid_latents, held_out)
    stretches = [stretch for stretch in stretches if stretch.stop > 1][:max_videos]
    if not stretches:
        raise ValueError(f"{codes.folder} holds no video of two latent frames to predict one of")
    progress.planned(Plan(num_inputs=len(stretches)))
    folder.mkdir(parents=True, exist_ok=True)
    unigram = Unigram(codes, train, codes.codebook_size**codes.num_codebooks)
    rows, unigram_bits = [], []
    for stretch, video in zip(stretches, held_out_videos(codes, stretches), strict=True):
        num_positions = video.end.numel() // codes.num_codebooks
        row = {"video": video.name, "num_codes": num_positions, "held_out_latents": len(video.end)}
        row["adaptive_coder"] = adaptive_bits(video, generator.config.levels)
        unigram_bits.append(
            [unigram.bits(video.end, codes.num_codebooks, added) for added in ADDED_COUNTS]
        )
        if isinstance(generator, AutoregressiveGenerator):
            bits = exact_bits(generator, video)
            row["bits"] = float(bits.mean())
            row["bits_of_latents"] = bits.mean(dim=(1, 2)).tolist()
        entry, length = codes.header(stretch.video), len(video.codes[0])
        real = None if data is None else _real_video(data, tokenizer, entry, video.name, length)
        row |= _prediction(
            generator, tokenizer, video, real, (num_latents, num_samples), inference, folder
        )
        row["pixels_of_a_code"] = tokenizer.time_factor * tokenizer.space_factor**2
        row["nearest_training_frame"] = nearest_share(video.end[0], codes, train)
        rows.append(row)
        progress.finished(video.name, None)
    report = _summary(generator, rows, np.array(unigram_bits))
    texts = {"report.json": json.dumps(report, indent=2) + "\n", "report.md": as_markdown(report)}
    for file, text in texts.items():
        with replacing(folder / file) as part:
            part.write_text(text, encoding="utf-8")
    return report


def _real_video(
    data: Path | Mapping[str, Path],
    tokenizer: VideoTokenizer,
    entry: CodedVideo,
    name: str,
    num_latents: int,
) -> torch.Tensor:
    """The video that was tokenized, found in `data`."""
    if isinstance(data, Mapping):
        path = data[name]
    else:
        path = as_path(entry.source, data) if data.is_dir() else data
    num_frames = 1 + (num_latents - 1) * tokenizer.time_factor
    media = open_media(path, tokenizer.config.channels, entry.header.size)
    with closing(media.frames) as frames:
        video = torch.stack(list(islice(frames, num_frames)))
    return pad_space(to_float(video)[None], tokenizer.space_factor)


def _prediction(
    generator: Generator,
    tokenizer: VideoTokenizer,
    video: HeldOut,
    real: torch.Tensor | None,
    counts: tuple[int, int],
    inference: Inference,
    folder: Path,
) -> dict[str, Any]:
    """Measures of a continuation; draws the last frame of each latent."""
    if real is None:
        stream = inference.decode_stream(tokenizer)
        real = stream.push(video.codes.to(tokenizer.device)).cpu().clamp(-1, 1)
    num_latents = min(counts[0], len(video.end))
    prediction, films = predict(
        generator, tokenizer, video, real, num_latents, counts[1], inference
    )
    step = tokenizer.time_factor
    grid = [
        list(to_uint8(films[name][0, :, step - 1 :: step].clamp(-1, 1)))
        for name in PICTURE_FILMS
        if name in films
    ]
    name = video.name.replace("/", "-").split(".")[0]
    write_grid(folder / f"{name}.png", grid)
    return {"prediction": vars(prediction), "picture": f"{name}.png"}


def _summary(
    generator: Generator, rows: Sequence[Mapping[str, Any]], unigram_bits: np.ndarray
) -> dict[str, Any]:
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
    names = Prediction.__dataclass_fields__
    report["prediction"] = {
        name: np.mean([row["prediction"][name] for row in rows], axis=0).tolist()
        for name in names
        if len({len(row["prediction"][name]) for row in rows}) == 1
    }
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
    lines += ["", "Rows of the pictures: " + ", ".join(PICTURE_FILMS) + ".", ""]
    for row in report["videos"]:
        bits = f"{row['bits']:.3f} bits, " if "bits" in row else ""
        lines.append(
            f"- {row['video']}: {bits}adaptive coder {row['adaptive_coder']:.2f}; "
            f"![{row['video']}]({row['picture']})"
        )
    return "\n".join(lines) + "\n"


def prediction_table(prediction: Mapping[str, Sequence[float]]) -> list[str]:
    """Lines of a table: PSNR in dB of each further latent frame.

    A column for each kind of continuation.
    """
    count = len(prediction.get("most_likely", ()))
    lines = []
    lines.append(f"| frames of latent | {' | '.join(str(n + 1) for n in range(count))} |")
    lines.append("|---" * (count + 1) + "|")
    titles = {
        "most_likely": "most likely codes", "sampled": "samples, mean", "best": "samples, best",
        "repeated": "last frame repeated", "ceiling": "true codes (the tokenizer alone)",
        "pairwise": "between two samples",
    }  # fmt: skip
    for name, title in titles.items():
        values = " | ".join(f"{value:.2f}" for value in prediction.get(name, ()))
        lines.append(f"| {title} | {values} |")
    shares = " | ".join(f"{100 * value:.0f} %" for value in prediction.get("correct", ()))
    return [*lines, f"| most likely codes that are right | {shares} |"]
