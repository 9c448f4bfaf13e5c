"""Aggregates per-clip lines into a report."""

import json
import math
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from magvit2_pytorch.atomic import replace_text
from magvit2_pytorch.evaluation.journal import LINES_FILE, EvaluationError
from magvit2_pytorch.evaluation.measure import EvaluationNetworks, Totals
from magvit2_pytorch.evaluation.report_text import ROWS, as_markdown
from magvit2_pytorch.metrics.bootstrap import LEVEL, NUM_RESAMPLES, bootstrap_interval
from magvit2_pytorch.metrics.codebook import CodebookUsage
from magvit2_pytorch.types import MediaKind
from magvit2_pytorch.version import __version__

FORMAT = "magvit2-evaluation"
FORMAT_VERSION = 1
Line = dict[str, Any]


def summarize(
    lines: Callable[[], Iterator[Line]], totals: Totals, networks: EvaluationNetworks, seed: int
) -> dict[str, Any]:
    """Summaries of videos and images; `EvaluationError` if no clip was measured."""
    skipped = [line for line in lines() if "skipped" in line]
    report: dict[str, Any] = dict(
        magvit2_version=__version__,
        clips_file=LINES_FILE,
        interval=dict(level=LEVEL, resamples=NUM_RESAMPLES, of="files", kind="percentile"),
        not_measured=_not_measured(totals.tokenizer.codebook_size is None, networks),
        num_skipped=len(skipped),
        skipped=[dict(path=line["path"], reason=line["skipped"]) for line in skipped],
    )
    for kind, name in (("video", "videos"), ("image", "images")):
        report[name] = _summary(lines, kind, totals, seed)
    if report["videos"] is None and report["images"] is None:
        first = "; ".join(f"{line['path']}: {line['skipped']}" for line in skipped[:3])
        raise EvaluationError(f"no clip could be measured: {first}{'; ...' * (len(skipped) > 3)}")
    return report


def _summary(
    lines: Callable[[], Iterator[Line]], kind: MediaKind, totals: Totals, seed: int
) -> dict[str, Any] | None:
    columns = {name: array("d") for name in ROWS}
    file_of, line_of = array("q"), array("q")
    num_frames, last_path = 0, None
    for number, line in enumerate(lines()):
        if line.get("kind") != kind:
            continue
        # Clips of a file are consecutive.
        is_new_file = line["path"] != last_path
        file_of.append(file_of[-1] + is_new_file if file_of else 0)
        line_of.append(number)
        last_path = line["path"]
        num_frames += line["num_frames"]
        for name, column in columns.items():
            column.append(math.nan if line[name] is None else line[name])
    if not line_of:
        return None
    files = np.array(file_of)
    metrics = {name: _metric(np.array(column), files, seed) for name, column in columns.items()}
    error, energy = (metrics[name] for name in ("temporal_error", "motion_energy"))
    has_motion = energy is not None and energy["mean"] > 0
    return dict(
        num_clips=len(line_of),
        num_files=file_of[-1] + 1,
        num_frames=num_frames,
        metrics=metrics,
        temporal_error_of_motion=error["mean"] / energy["mean"] if has_motion else None,
        frechet={
            name: dict(
                # A single vector has no covariance.
                distance=part.compute() if part.num_vectors > 1 else None,
                num_vectors=part.num_vectors,
                dim=part.dim,
                is_rank_deficient=part.is_rank_deficient,
            )
            for name, part in totals.distances(kind).items()
        },
        codebook=_codebook(totals.usage(kind)),
        examples=_examples(lines, np.array(columns["psnr"]), np.array(line_of)),
        **_by_tokens(lines, kind),
    )


def _by_tokens(lines: Callable[[], Iterator[Line]], kind: MediaKind) -> dict[str, Any]:
    """Means over clips for each number of tokens of a 1-D tokenizer."""
    sums: dict[str, list[float]] = {}
    for line in lines():
        if line.get("kind") == kind:
            for count, values in line.get("by_tokens", {}).items():
                pair = values["psnr"], values["bits_per_pixel"], 1.0
                sums[count] = [
                    a + b for a, b in zip(sums.get(count, (0.0,) * 3), pair, strict=True)
                ]
    rows = [
        dict(num_tokens=int(count), psnr=total / number, bits_per_pixel=bits / number)
        for count, (total, bits, number) in sums.items()
    ]
    return {"by_tokens": rows} if rows else {}


def _metric(values: np.ndarray, files: np.ndarray, seed: int) -> dict[str, Any] | None:
    """Mean, its interval, median and range over clips with a value."""
    known = ~np.isnan(values)
    if not known.any():
        return None
    values = values[known]
    interval = bootstrap_interval(values, files[known].tolist(), seed=seed)
    return dict(
        mean=float(values.mean()),
        low=interval and interval.low,
        high=interval and interval.high,
        median=float(np.median(values)),
        min=float(values.min()),
        max=float(values.max()),
        num_clips=len(values),
    )


def _codebook(usage: CodebookUsage | None) -> dict[str, Any] | None:
    if usage is None:
        return None
    use = usage.compute()._asdict()
    del use["bit_means"]
    return dict(num_codes=usage.num_codes, **use)


def _examples(
    lines: Callable[[], Iterator[Line]], psnrs: np.ndarray, line_of: np.ndarray
) -> dict[str, Line]:
    """Lines of the worst, the median and the best clip."""
    # A clip that equals its original has no finite PSNR and is the best possible.
    order = np.argsort(np.nan_to_num(psnrs, nan=math.inf), kind="stable")
    clips = {"worst": order[0], "median": order[len(order) // 2], "best": order[-1]}
    if len(order) < 3:
        del clips["median"]
    if len(order) < 2:
        del clips["worst"]
    names = {int(line_of[clip]): name for name, clip in clips.items()}
    examples = {names[number]: line for number, line in enumerate(lines()) if number in names}
    return {name: examples[name] for name in clips}


def _not_measured(is_continuous: bool, networks: EvaluationNetworks) -> dict[str, str]:
    """Metrics that were not measured, and how to get them."""
    missing = {}
    if networks.perceptual is None:
        missing["perceptual"] = "LPIPS needs weights: give perceptual_weights"
        missing["frechet_frames"] = missing["frechet_motion"] = missing["perceptual"]
    if networks.i3d is None:
        missing["fvd"] = "FVD needs I3D as TorchScript: give i3d and fvd_protocol"
    if is_continuous:
        missing["codebook"] = "the tokenizer is continuous and has no codes"
    return missing


def write_report(folder: Path, report: dict[str, Any], pictures: Sequence[str]) -> None:
    """Writes report.json and report.md, each atomically."""
    text = json.dumps(report, indent=2, allow_nan=False) + "\n"
    replace_text(folder / "report.json", text)
    replace_text(folder / "report.md", as_markdown(report, pictures))
