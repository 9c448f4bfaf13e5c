"""A report for people, in Markdown."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from magvit2_pytorch.metrics import compression_ratio

NUM_SHOWN = 20
"""Files that cannot be used that are named; report.json names all."""


class Row(NamedTuple):
    """How a number of a clip is shown."""

    label: str
    digits: int
    better: str = ""
    """Which way, if either is."""


ROWS = {
    "psnr": Row("PSNR, dB", 2, "higher"),
    "ssim": Row("SSIM", 4, "higher"),
    "ms_ssim": Row("MS-SSIM", 4, "higher"),
    "perceptual": Row("{perceptual}", 4, "lower"),
    "temporal_error": Row("temporal error", 6, "lower"),
    "motion_energy": Row("motion of the originals", 6),
    "bits_per_pixel": Row("bits per pixel", 5, "lower"),
    "tokens": Row("tokens to a clip", 0),
    "tokens_per_second": Row("tokens per second of video", 1),
}
"""Numbers of a clip, by their names in its line."""
DISTANCES = {
    "frechet_frames": "Fréchet distance of {features} of frames (not FVD)",
    "frechet_motion": "Fréchet distance of changes of {features} between frames (not FVD)",
    "fvd_stylegan_v": "rFVD by StyleGAN-V's protocol",
    "fvd_logits": "rFVD of I3D logits",
}


def as_markdown(report: dict[str, Any], pictures: Sequence[str]) -> str:
    """The whole report; `pictures` are names of files beside it."""
    return "\n".join(_lines(report, pictures)) + "\n"


def headline(report: dict[str, Any], kind: str) -> str:
    """The numbers that come first, of "videos" or "images"."""
    of_kind = report[kind]
    psnr, ssim, bits = (of_kind["metrics"][n] for n in ("psnr", "ssim", "bits_per_pixel"))
    said = [f"PSNR {psnr['mean']:.2f} dB{_interval(psnr, 2)}" if psnr else "equal to the originals"]
    if ssim:
        said.append(f"SSIM {ssim['mean']:.3f}")
    if bits:
        smaller = compression_ratio(bits["mean"])
        said.append(f"{bits['mean']:.4f} bits per pixel, {smaller:.0f} times smaller than raw")
    return " · ".join(said)


def counted(report: dict[str, Any], kind: str) -> str:
    """How much was measured, of "videos" or "images"."""
    of_kind = report[kind]
    if kind == "images":
        return f"{of_kind['num_files']} {_plural('image', of_kind['num_files'])}"
    clips, files = of_kind["num_clips"], of_kind["num_files"]
    each = report["settings"]["num_frames"]
    frames = f"{each} {_plural('frame', each)}"
    return f"{clips} {_plural('clip', clips)} of {frames} from {files} {_plural('video', files)}"


def _lines(report: dict[str, Any], pictures: Sequence[str]) -> Iterator[str]:
    model, data = report["model"], report["data"]
    yield f"# {model['name']} on {data['source']}"
    for kind in ("videos", "images"):
        if report[kind] is not None:
            yield from _kind(report, kind, [name for name in pictures if name.startswith(kind)])
    yield from _what_it_means(report)
    yield from _how(report)
    if report["num_skipped"]:
        yield from ("", "## Files that could not be used", "")
        for skipped in report["skipped"][:NUM_SHOWN]:
            yield f"- {skipped['path']}: {skipped['reason']}"
        if report["num_skipped"] > NUM_SHOWN:
            yield f"- and {report['num_skipped'] - NUM_SHOWN} more, named in report.json"


def _kind(report: dict[str, Any], kind: str, pictures: Sequence[str]) -> Iterator[str]:
    of_kind = report[kind]
    yield from ("", f"## {kind.capitalize()}", "", f"**{headline(report, kind)}**", "")
    yield f"{counted(report, kind)[0].upper()}{counted(report, kind)[1:]}."
    for name in pictures:
        yield from ("", f"![{', '.join(of_kind['examples'])} of the {kind}]({name})")
    yield from (
        "",
        "| of a clip | mean | 95 % interval | median | lowest | highest | clips | better |",
    )
    yield "| --- | ---: | :---: | ---: | ---: | ---: | ---: | --- |"
    for name, row in ROWS.items():
        metric = of_kind["metrics"][name]
        if metric is None:
            continue
        mean, *rest = (f"{metric[n]:.{row.digits}f}" for n in ("mean", "median", "min", "max"))
        interval = _interval(metric, row.digits).strip(" ()") or "one file"
        cells = [_named(row.label, report), mean, interval, *rest, metric["num_clips"], row.better]
        yield f"| {' | '.join(map(str, cells))} |"
    yield from ("", "| of all together | |", "| --- | ---: |")
    for label, value in _together(report, of_kind):
        yield f"| {label} | {value} |"


def _together(report: dict[str, Any], of_kind: dict[str, Any]) -> Iterator[tuple[str, str]]:
    share = of_kind["temporal_error_of_motion"]
    if share is not None:
        yield "temporal error, as a part of the motion", f"{share:.3f}"
    for name, distance in of_kind["frechet"].items():
        value = "too few" if distance["distance"] is None else f"{distance['distance']:.4g}"
        few = f", {distance['num_vectors']} vectors of {distance['dim']}"
        few += ": **too few**" * distance["is_rank_deficient"]
        yield _named(DISTANCES[name], report) + few, value
    codebook = of_kind["codebook"]
    if codebook is not None:
        yield "codes in use, of all there are", f"{100 * codebook['usage']:.2f} %"
        most = "codes in use, of as many as there could be"
        yield most, f"{100 * codebook['usage_of_possible']:.2f} %"
        yield "perplexity of the codes", f"{codebook['perplexity']:.1f}"
        if codebook["dead_bits"] is not None:
            yield "bits that never change", str(codebook["dead_bits"])


def _what_it_means(report: dict[str, Any]) -> Iterator[str]:
    kinds = [report[kind] for kind in ("videos", "images") if report[kind] is not None]
    yield from ("", "## How to read it", "")
    yield (
        "- Intervals hold the mean of 95 of 100 such samples of files (bootstrap over files, "
        "percentiles); with few files they are too narrow."
    )
    yield (
        "- PSNR: of each clip, values from -1 to 1; its mean leaves out clips that equal their "
        "originals. MS-SSIM only where both sides have 161 pixels."
    )
    if any(it["temporal_error_of_motion"] is not None for it in kinds):
        yield (
            "- Temporal error: mean squared error of the differences between frames. As a part of "
            "the motion it is 0 where all moves as in the original, 1 where nothing moves, and "
            "more where flicker outweighs the motion."
        )
    distances = [(name, it) for kind in kinds for name, it in kind["frechet"].items()]
    if distances:
        yield "- A Fréchet distance is one number of all clips, with no interval; lower is better."
    if any(name.startswith("frechet") for name, _ in distances):
        yield (
            "- The Fréchet distances of features of frames are to compare tokenizers on the same "
            "clips with the same weights; they are no FID and no FVD."
        )
    if any(it["is_rank_deficient"] for _, it in distances):
        yield (
            "- **Too few**: with no more vectors than each has numbers, covariances are incomplete "
            "and the distance falls as clips are added. Compare it on the same clips only."
        )
    for name, reason in report["not_measured"].items():
        yield f"- Not measured: {name} ({reason})."


def _how(report: dict[str, Any]) -> Iterator[str]:
    model, data, judges = report["model"], report["data"], report["judges"]
    codebook = "continuous latents"
    if model["codebook_size"] is not None:
        books = f" x {model['num_codebooks']}" if model["num_codebooks"] > 1 else ""
        codebook = f"{model['codebook_size']:,} codes{books}"
    yield from ("", "## What was measured, and how", "", "| | |", "| --- | --- |")
    facts = {
        "tokenizer": f"{model['name']}, {model['parameters'] / 1e6:.1f} M parameters",
        "latents": f"{model['time_factor']} x {model['space_factor']} x {model['space_factor']} "
        f"to one, {model['quantizer']}, {codebook}",
        "weights and configuration, SHA-256": model["fingerprint"],
        "data": f"{data['source']}, {data['num_files']} files",
        "names and sizes of the files, SHA-256": data["digest"],
        **{name.replace("_", " "): value for name, value in report["settings"].items()},
        "device": report["device"],
    }
    if judges["perceptual"]:
        named = judges["perceptual"]
        facts["perceptual network, SHA-256"] = f"{named['name']}, {named['weights']}"
    if judges["i3d"]:
        facts["I3D, SHA-256"] = f"{judges['i3d']['protocol']}, {judges['i3d']['file']}"
    facts["version of magvit2_pytorch"] = report["magvit2_version"]
    facts["time measured"] = f"{report['elapsed_s']:.0f} s"
    for name, value in facts.items():
        yield f"| {name} | {'not given' if value is None else value} |"
    yield from ("", f"Every clip is a line of {report['clips_file']}.")


def _named(label: str, report: dict[str, Any]) -> str:
    judge = report["judges"]["perceptual"]
    if judge is None:
        return label
    network = judge["name"].removesuffix(" features")
    return label.format(perceptual=network, features=f"{network} features")


def _interval(metric: dict[str, Any], digits: int) -> str:
    if metric["low"] is None:
        return ""
    return f" ({metric['low']:.{digits}f} to {metric['high']:.{digits}f})"


def _plural(word: str, number: int) -> str:
    return word if number == 1 else f"{word}s"
