"""Markdown text of an evaluation report."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from magvit2_pytorch.metrics.codebook import compression_ratio

NUM_SHOWN = 20
"""Maximum number of unusable files that are named; report.json names all."""


class Row(NamedTuple):
    """Label and format of a metric."""

    label: str
    digits: int
    better: str = ""
    """"higher", "lower" or neither."""


ROWS = {
    "psnr": Row("PSNR, dB", 2, "higher"),
    "ssim": Row("SSIM", 4, "higher"),
    "ms_ssim": Row("MS-SSIM", 4, "higher"),
    "perceptual": Row("{perceptual}", 4, "lower"),
    "temporal_error": Row("temporal error", 6, "lower"),
    "motion_energy": Row("motion energy of the originals", 6),
    "bits_per_pixel": Row("bits per pixel", 5, "lower"),
    "tokens": Row("tokens per clip", 0),
    "tokens_per_second": Row("tokens per second of video", 1),
}
"""Metrics of a clip, by their name in its line."""
DISTANCES = {
    "frechet_frames": "Fréchet distance of {features} of frames (not FVD)",
    "frechet_motion": "Fréchet distance of differences of {features} between frames (not FVD)",
    "fvd_stylegan_v": "rFVD, StyleGAN-V protocol",
    "fvd_logits": "rFVD, I3D logits",
}


def as_markdown(report: dict[str, Any], pictures: Sequence[str]) -> str:
    """The whole report; `pictures` are file names in its folder."""
    return "\n".join(_lines(report, pictures)) + "\n"


def headline(report: dict[str, Any], kind: str) -> str:
    """The most important metrics of "videos" or "images"."""
    metrics = report[kind]["metrics"]
    psnr, ssim, bits = (metrics[name] for name in ("psnr", "ssim", "bits_per_pixel"))
    texts = [
        f"PSNR {psnr['mean']:.2f} dB{_interval(psnr, 2)}" if psnr else "equal to the originals"
    ]
    if ssim:
        texts.append(f"SSIM {ssim['mean']:.3f}")
    if bits:
        smaller = compression_ratio(bits["mean"])
        texts.append(f"{bits['mean']:.4f} bits per pixel, {smaller:.0f} times smaller than raw")
    return " · ".join(texts)


def counted(report: dict[str, Any], kind: str) -> str:
    """Number of clips and files, of "videos" or "images"."""
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
            yield from _kind_lines(
                report, kind, [name for name in pictures if name.startswith(kind)]
            )
    yield from _notes(report)
    yield from _settings(report)
    if report["num_skipped"]:
        yield from ("", "## Skipped files", "")
        for skipped in report["skipped"][:NUM_SHOWN]:
            yield f"- {skipped['path']}: {skipped['reason']}"
        if report["num_skipped"] > NUM_SHOWN:
            yield f"- and {report['num_skipped'] - NUM_SHOWN} more, named in report.json"


def _kind_lines(report: dict[str, Any], kind: str, pictures: Sequence[str]) -> Iterator[str]:
    of_kind = report[kind]
    yield from ("", f"## {kind.capitalize()}", "", f"**{headline(report, kind)}**", "")
    yield f"{counted(report, kind)[0].upper()}{counted(report, kind)[1:]}."
    for name in pictures:
        shown = "PSNR over tokens" if "tokens" in name else ", ".join(of_kind["examples"])
        yield from ("", f"![{shown} of the {kind}]({name})")
    yield from ("", "| per clip | mean | 95 % interval | median | min | max | clips | better |")
    yield "| --- | ---: | :---: | ---: | ---: | ---: | ---: | --- |"
    for name, row in ROWS.items():
        if (metric := of_kind["metrics"][name]) is not None:
            mean, *others = (
                f"{metric[n]:.{row.digits}f}" for n in ("mean", "median", "min", "max")
            )
            interval = _interval(metric, row.digits).strip(" ()") or "one file"
            label = _fill_names(row.label, report)
            yield _row(label, mean, interval, *others, metric["num_clips"], row.better)
    if rows := of_kind.get("by_tokens"):
        yield from (
            "",
            "| tokens of each part | PSNR, dB | bits per pixel |",
            "| ---: | ---: | ---: |",
        )
        for row in rows:
            yield _row(row["num_tokens"], f"{row['psnr']:.2f}", f"{row['bits_per_pixel']:.5f}")
    yield from ("", "| over all clips | |", "| --- | ---: |")
    yield from (_row(*cells) for cells in _totals(report, of_kind))


def _row(*cells: Any) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _totals(report: dict[str, Any], of_kind: dict[str, Any]) -> Iterator[tuple[str, str]]:
    share = of_kind["temporal_error_of_motion"]
    if share is not None:
        yield "temporal error, as a fraction of the motion", f"{share:.3f}"
    for name, distance in of_kind["frechet"].items():
        value = "too few" if distance["distance"] is None else f"{distance['distance']:.4g}"
        vectors = f", {distance['num_vectors']} vectors of {distance['dim']}"
        vectors += ": **too few**" * distance["is_rank_deficient"]
        yield _fill_names(DISTANCES[name], report) + vectors, value
    codebook = of_kind["codebook"]
    if codebook is not None:
        yield "codebook usage", f"{100 * codebook['usage']:.2f} %"
        label = "codebook usage, relative to the most that this many tokens can use"
        yield label, f"{100 * codebook['usage_of_possible']:.2f} %"
        yield "codebook perplexity", f"{codebook['perplexity']:.1f}"
        if codebook["dead_bits"] is not None:
            yield "bits that never change", str(codebook["dead_bits"])


def _notes(report: dict[str, Any]) -> Iterator[str]:
    kinds = [report[kind] for kind in ("videos", "images") if report[kind] is not None]
    yield from ("", "## Notes", "")
    yield (
        "- Intervals are 95 % confidence intervals of the mean (percentile bootstrap over files); "
        "with few files they are too narrow."
    )
    yield (
        "- PSNR is computed per clip on values from -1 to 1; its mean leaves out clips that equal "
        "their originals. MS-SSIM needs at least 161 pixels on both sides."
    )
    if any(kind["temporal_error_of_motion"] is not None for kind in kinds):
        yield (
            "- Temporal error: mean squared error of the differences between frames. As a fraction "
            "of the motion it is 0 if everything moves as in the original, 1 if nothing moves, and "
            "above 1 if flicker outweighs the motion."
        )
    distances = [item for kind in kinds for item in kind["frechet"].items()]
    if distances:
        yield "- A Fréchet distance is one value over all clips, without interval; lower is better."
    if any(name.startswith("frechet") for name, _ in distances):
        yield (
            "- Fréchet distances of features of frames compare tokenizers on the same clips with "
            "the same weights; they are neither FID nor FVD."
        )
    if any(distance["is_rank_deficient"] for _, distance in distances):
        yield (
            "- **Too few**: with no more vectors than dimensions, covariances are rank deficient, "
            "and the distance decreases as clips are added. Compare it on the same clips only."
        )
    for name, reason in report["not_measured"].items():
        yield f"- Not measured: {name} ({reason})."


def _settings(report: dict[str, Any]) -> Iterator[str]:
    model, data, networks = report["model"], report["data"], report["judges"]
    codebook = "continuous latents"
    if model["codebook_size"] is not None:
        books = f" x {model['num_codebooks']}" if model["num_codebooks"] > 1 else ""
        codebook = f"{model['codebook_size']:,} codes{books}"
    yield from ("", "## Settings", "", "| | |", "| --- | --- |")
    facts = {
        "tokenizer": f"{model['name']}, {model['parameters'] / 1e6:.1f} M parameters",
        "latents": f"{model['time_factor']} x {model['space_factor']} x {model['space_factor']} "
        f"pixels per latent, {model['quantizer']}, {codebook}",
        "SHA-256 of weights and configuration": model["fingerprint"],
        "data": f"{data['source']}, {data['num_files']} files",
        "SHA-256 of file names and sizes": data["digest"],
        **{name.replace("_", " "): value for name, value in report["settings"].items()},
        "device": report["device"],
    }
    if networks["perceptual"]:
        perceptual = networks["perceptual"]
        facts["perceptual network, SHA-256"] = f"{perceptual['name']}, {perceptual['weights']}"
    if networks["i3d"]:
        facts["I3D, SHA-256"] = f"{networks['i3d']['protocol']}, {networks['i3d']['file']}"
    facts["version of magvit2_pytorch"] = report["magvit2_version"]
    facts["evaluation time"] = f"{report['elapsed_s']:.0f} s"
    yield from (_row(n, "not given" if value is None else value) for n, value in facts.items())
    yield from ("", f"Each clip is a line of {report['clips_file']}.")


def _fill_names(label: str, report: dict[str, Any]) -> str:
    perceptual = report["judges"]["perceptual"]
    if perceptual is None:
        return label
    network = perceptual["name"].removesuffix(" features")
    return label.format(perceptual=network, features=f"{network} features")


def _interval(metric: dict[str, Any], digits: int) -> str:
    if metric["low"] is None:
        return ""
    return f" ({metric['low']:.{digits}f} to {metric['high']:.{digits}f})"


def _plural(word: str, number: int) -> str:
    return word if number == 1 else f"{word}s"
