"""Pictures of the worst, median and best clip and their reconstructions."""

import warnings
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from magvit2_pytorch.evaluation.evaluation_clips import (
    ClipChoice,
    EvaluatedFile,
    SkippedFile,
    iter_clips,
)
from magvit2_pytorch.evaluation.measure import reconstruct_clip
from magvit2_pytorch.evaluation.report_text import counted, headline
from magvit2_pytorch.media.frames import as_channels, to_float, to_uint8
from magvit2_pytorch.media.images import write_image
from magvit2_pytorch.media.video_writer import write_video
from magvit2_pytorch.pipelines.inference import Inference
from magvit2_pytorch.tokenizer.model import VideoTokenizer
from magvit2_pytorch.types import Frames

NUM_FRAMES = 5
"""Frames shown of a clip, evenly spaced from the first to the last."""
CELL_WIDTH, CELL_HEIGHT = 280, 360
"""Pixels of the cell that a frame is resized to fit, keeping its proportions."""
ERROR_SCALE = 4
"""Factor that makes differences brighter."""

MARGIN, GAP, LABEL_WIDTH = 28, 6, 130
INK, FAINT, PAPER = (24, 24, 27), (113, 113, 122), (255, 255, 255)
COLOURS = {"worst": (185, 28, 28), "median": (161, 98, 7), "best": (21, 128, 61)}

Picture = UInt8[np.ndarray, "_ _ 3"]


class Example(NamedTuple):
    """A clip to show."""

    which: str
    """"worst", "median" or "best"."""
    title: str
    rows: dict[str, list[Picture]]
    """Frames side by side, by the label of the row."""


def write_pictures(
    folder: Path,
    report: dict[str, Any],
    files: Sequence[EvaluatedFile],
    choice: ClipChoice,
    tokenizer: VideoTokenizer,
    inference: Inference,
) -> list[str]:
    """Reconstructs a report's examples and writes pictures of them.

    Returns the names of the PNG files. Videos are also written as `videos-worst.mp4` and so on,
    with the original on the left, because only a video shows flicker. A file that no longer exists
    is left out, with a warning.
    """
    names = []
    for kind in ("videos", "images"):
        if report[kind] is None:
            continue
        examples = []
        for which, line in report[kind]["examples"].items():
            pair = _reconstruct_example(line, files, choice, tokenizer, inference)
            if pair is None:
                continue
            examples.append(Example(which, _title(which, line), _rows(*pair, kind)))
            if kind == "videos":
                frames = torch.cat([_rgb(side) for side in pair], dim=2)
                write_video(folder / f"{kind}-{which}.mp4", frames, fps=line["fps"])
        if examples:
            page = _page(f"{report['model']['name']} on {counted(report, kind)}",
                         headline(report, kind), examples)  # fmt: skip
            write_image(folder / f"{kind}.png", torch.from_numpy(np.array(page)))
            names.append(f"{kind}.png")
    return names


def _reconstruct_example(
    line: dict[str, Any],
    files: Sequence[EvaluatedFile],
    choice: ClipChoice,
    tokenizer: VideoTokenizer,
    inference: Inference,
) -> tuple[Frames, Frames] | None:
    """Frames and reconstruction of a clip; None if it is gone."""
    file = [file for file in files if file.name == line["path"]]
    with closing(iter_clips(file, choice, tokenizer.config.channels, line["clip"])) as clips:
        clip = next(clips, None)
    if clip is None or isinstance(clip, SkippedFile):
        reason = clip.reason if clip else "it has fewer clips than before"
        warnings.warn(f"{line['path']} is not shown: {reason}", stacklevel=3)
        return None
    real = to_float(clip.frames.to(tokenizer.device))[None]
    recon, *_ = reconstruct_clip(tokenizer, real, inference)
    return clip.frames, to_uint8(recon[0].float().clamp(-1, 1)).cpu()


def _title(which: str, line: dict[str, Any]) -> str:
    psnr = "equal to the original" if line["psnr"] is None else f"{line['psnr']:.2f} dB"
    texts = [psnr] + [f"SSIM {line['ssim']:.3f}"] * (line["ssim"] is not None)
    if line["kind"] == "video":
        start = line["start_frame"]
        texts.append(f"{line['num_frames']} frames from frame {start}")
    texts.append(f"{line['width']} x {line['height']}")
    return f"{line['path']}:  {'  ·  '.join(texts)}"


def _rows(real: Frames, recon: Frames, kind: str) -> dict[str, list[Picture]]:
    shown = torch.linspace(0, len(real) - 1, min(len(real), NUM_FRAMES)).long().unique()
    pair = [_rgb(frames[shown]).numpy() for frames in (real, recon)]
    # Errors of the measured pixels, before resizing for the picture.
    error = [_heat_map(*frames) for frames in zip(*pair, strict=True)]
    rows = {"original": pair[0], "reconstruction": pair[1], f"error x {ERROR_SCALE}": error}
    fitted = {label: [_fit_to_cell(picture) for picture in row] for label, row in rows.items()}
    if kind == "images":  # one frame each: put the three side by side
        return {", ".join(fitted): [row[0] for row in fitted.values()]}
    return fitted


def _rgb(frames: Frames) -> UInt8[torch.Tensor, "t h w 3"]:
    return torch.from_numpy(np.stack([as_channels(_grey_to_rgb(f), 3) for f in frames.numpy()]))


def _grey_to_rgb(frame: UInt8[np.ndarray, "h w c"]) -> UInt8[np.ndarray, "h w k"]:
    return np.repeat(frame, 3, axis=-1) if frame.shape[-1] == 1 else frame


def _fit_to_cell(picture: Picture) -> Picture:
    height, width = picture.shape[:2]
    scale = min(CELL_WIDTH / width, CELL_HEIGHT / height)
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    return np.array(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))


def _heat_map(real: Picture, recon: Picture) -> Picture:
    """Mean absolute difference: black is 0, then red, yellow, white."""
    difference = np.abs(recon.astype(np.float32) - real.astype(np.float32)).mean(axis=-1)
    level = (difference * ERROR_SCALE / 255).clip(0, 1) * 3
    return np.stack([(level - i).clip(0, 1) * 255 for i in range(3)], axis=-1).astype(np.uint8)


def _page(title: str, headline: str, examples: Sequence[Example]) -> Image.Image:
    """Draws all examples below each other, under a title and a headline."""
    columns = max(len(row) for example in examples for row in example.rows.values())
    width = MARGIN * 2 + LABEL_WIDTH + max(columns, 3) * (CELL_WIDTH + GAP) - GAP
    # An upper bound of the height: the rest is cropped.
    heights = [sum(row[0].shape[0] + GAP for row in e.rows.values()) + 90 for e in examples]
    page = Image.new("RGB", (width, sum(heights) + 260), PAPER)
    draw = ImageDraw.Draw(page)
    y = _write(draw, MARGIN, title, 17, FAINT, width)
    y = _write(draw, y + 2, headline, 24, INK, width) + 14
    for example in examples:
        y = _draw_example(page, draw, y, example, width)
    return page.crop((0, 0, width, y + MARGIN))


def _draw_example(
    page: Image.Image, draw: ImageDraw.ImageDraw, y: int, example: Example, width: int
) -> int:
    draw.text((MARGIN, y), example.which, fill=COLOURS[example.which], font=_font(20))
    y = _write(draw, y + 3, example.title, 16, INK, width, left=MARGIN + LABEL_WIDTH) + 6
    for label, row in example.rows.items():
        for line, text in enumerate(label.split(", ")):
            draw.text((MARGIN, y + 4 + 18 * line), text, fill=FAINT, font=_font(14))
        for column, picture in enumerate(row):
            left = MARGIN + LABEL_WIDTH + column * (picture.shape[1] + GAP)
            page.paste(Image.fromarray(picture), (left, y))
        y += row[0].shape[0] + GAP
    return y + 22


def _write(
    draw: ImageDraw.ImageDraw,
    y: int,
    text: str,
    size: int,
    fill: tuple[int, int, int],
    width: int,
    left: int = MARGIN,
) -> int:
    """Draws wrapped text and returns the y position below it."""
    font, lines = _font(size), [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width - left - MARGIN or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    for line in lines:
        draw.text((left, y), line, fill=fill, font=font)
        y += round(size * 1.35)
    return y


def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)
