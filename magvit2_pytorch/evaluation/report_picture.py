"""Pictures of the worst, median and best clip and their reconstructions."""

import warnings
from collections.abc import Iterable
from pathlib import Path
from textwrap import fill
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8

from magvit2_pytorch.atomic import replacing
from magvit2_pytorch.evaluation.report_text import counted, headline
from magvit2_pytorch.media.frames import as_channels
from magvit2_pytorch.media.video_writer import write_video
from magvit2_pytorch.types import Frames

NUM_FRAMES = 5
"""Frames shown of a clip, evenly spaced from the first to the last."""
CELL_WIDTH, CELL_HEIGHT = 2.8, 3.6
"""Inches that a frame fills at most, keeping its proportions."""
ERROR_SCALE = 4
"""Factor that makes differences brighter."""
COLOURS = {"worst": "#b91c1c", "median": "#a16207", "best": "#15803d"}


class Example(NamedTuple):
    """A clip to show, with its line in the journal."""

    which: str
    """"worst", "median" or "best"."""
    line: dict[str, Any]
    real: Frames
    recon: Frames


def write_pictures(
    folder: Path, report: dict[str, Any], kind: str, examples: Iterable[Example]
) -> list[str]:
    """Writes a picture of a kind, and example videos; returns its name."""
    shown = []
    for example in examples:
        real, recon = _rgb(example.real), _rgb(example.recon)
        if kind == "videos":
            path = folder / f"{kind}-{example.which}.mp4"
            write_video(path, torch.cat((real, recon), dim=2), fps=example.line["fps"])
        frames = torch.linspace(0, len(real) - 1, min(len(real), NUM_FRAMES)).long().unique()
        pair = real[frames].numpy(), recon[frames].numpy()
        shown.append((example.which, _title(example.which, example.line), *pair))
    if not shown:
        return []
    title = f"{report['model']['name']} on {counted(report, kind)}\n{headline(report, kind)}"
    with replacing(folder / f"{kind}.png") as part, warnings.catch_warnings():
        # The font may lack letters of file names.
        warnings.simplefilter("ignore", UserWarning)
        _draw(part, title, shown)
    return [f"{kind}.png"]


def write_token_curve(folder: Path, report: dict[str, Any], kind: str) -> list[str]:
    """Draws PSNR over numbers of tokens; returns the name, if any."""
    rows = report[kind].get("by_tokens")
    if not rows:
        return []
    from matplotlib.figure import Figure

    counts, decibels = [row["num_tokens"] for row in rows], [row["psnr"] for row in rows]
    figure = Figure((6.0, 4.0), layout="constrained")
    axis = figure.subplots()
    axis.plot(counts, decibels, marker="o", color=COLOURS["best"])
    for count, value in zip(counts, decibels, strict=True):
        axis.annotate(
            f"{value:.2f}", (count, value), (0, 7), textcoords="offset points", ha="center"
        )
    axis.set_xscale("log", base=2)
    axis.set_xticks(counts, [str(count) for count in counts])
    axis.set(xlabel="tokens of each part", ylabel="PSNR, dB")
    axis.margins(y=0.2)
    axis.grid(alpha=0.3)
    with replacing(folder / f"{kind}-tokens.png") as part:
        figure.savefig(part, format="png", dpi=100)
    return [f"{kind}-tokens.png"]


def _title(which: str, line: dict[str, Any]) -> str:
    psnr = "equal to the original" if line["psnr"] is None else f"{line['psnr']:.2f} dB"
    texts = [psnr] + [f"SSIM {line['ssim']:.3f}"] * (line["ssim"] is not None)
    if line["kind"] == "video":
        texts.append(f"{line['num_frames']} frames from frame {line['start_frame']}")
    texts.append(f"{line['width']} x {line['height']}")
    return f"{which}:  {line['path']}:  {'  ·  '.join(texts)}"


def _rgb(frames: Frames) -> UInt8[torch.Tensor, "t h w 3"]:
    if frames.shape[-1] == 1:
        return frames.expand(-1, -1, -1, 3)
    return torch.from_numpy(np.stack([as_channels(frame, 3) for frame in frames.numpy()]))


def _draw(path: Path, title: str, examples: list[tuple[str, str, np.ndarray, np.ndarray]]) -> None:
    """Draws originals, reconstructions and errors of all examples below each other."""
    from matplotlib.figure import Figure

    columns = max(3, *(len(real) for _, _, real, _ in examples))
    mosaics, heights = [], []
    for _, _, real, recon in examples:
        scale = min(CELL_WIDTH / real.shape[2], CELL_HEIGHT / real.shape[1])
        mosaics.append(_mosaic(real, recon))
        heights.append(mosaics[-1].shape[0] * scale)
    title = _printable(title, 28 * columns)
    names = [_printable(name, 38 * columns) for _, name, _, _ in examples]
    # Inches above each example, and above all; a layout engine would draw everything twice.
    gap = 0.6 + 0.2 * max(name.count("\n") for name in names)
    top, width = gap + 0.3 * title.count("\n"), columns * CELL_WIDTH + 0.5
    height = top + sum(heights) + gap * len(heights)
    figure = Figure((width, height))
    figure.subplots_adjust(0.3 / width, 0.4 / height, 1 - 0.1 / width, 1 - top / height)
    text = dict(ha="left", parse_math=False)
    figure.suptitle(title, x=0.1 / width, y=1 - 0.1 / height, va="top", fontsize=15, **text)
    spacing = dict(height_ratios=heights, hspace=gap * len(heights) / sum(heights))
    axes = figure.subplots(len(examples), 1, squeeze=False, gridspec_kw=spacing)[:, 0]
    for axis, mosaic, name, (which, _, real, _) in zip(axes, mosaics, names, examples, strict=True):
        axis.set_title(name, fontsize=11, color=COLOURS[which], loc="left", **text)
        axis.imshow(mosaic)
        axis.set(anchor="W", xticks=[], yticks=[])
        # A label at the centre of each row, or of each single frame.
        is_row = len(real) == 1
        side = mosaic.shape[is_row] / 3
        labels = ("original", "reconstruction", f"error x {ERROR_SCALE}")
        set_ticks = axis.set_xticks if is_row else axis.set_yticks
        turned = {} if is_row else dict(rotation=90, va="center")
        set_ticks([side * (number + 0.5) for number in range(3)], labels, fontsize=9, **turned)
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
    figure.savefig(path, format="png", dpi=100, pil_kwargs=dict(compress_level=4))


def _mosaic(real: np.ndarray, recon: np.ndarray) -> UInt8[np.ndarray, "_ _ 3"]:
    """Frames, reconstructions and errors in rows; one frame in one row."""
    from matplotlib import colormaps

    error = np.abs(recon.astype(np.float32) - real).mean(axis=-1) * (ERROR_SCALE / 255)
    rows = real, recon, colormaps["hot"](error, bytes=True)[..., :3]
    gap = max(real.shape[2] // 50, 1)
    margins = ((0, 0), (0, gap), (0, gap), (0, 0))
    # Frames side by side: t h w c -> h (t w) c.
    rows = [np.concatenate(np.pad(x, margins, constant_values=255), axis=1) for x in rows]
    return np.concatenate(rows, axis=1 if len(real) == 1 else 0)


def _printable(text: str, width: int) -> str:
    """Printable text in lines of at most `width` letters."""
    text = text.encode("utf-8", "backslashreplace").decode()  # file names need not be valid text
    return "\n".join(fill(line, width) for line in text.split("\n"))
