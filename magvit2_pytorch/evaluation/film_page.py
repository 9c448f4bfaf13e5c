"""The page of one film: pictures, curves and figures of all its stages in Markdown."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from magvit2_pytorch.atomic import replacing
from magvit2_pytorch.evaluation.generator_report import PICTURE_FILMS, prediction_table

PAGE = "film.md"
SOUND = (
    "Sound is not part of this road: it would need a tokenizer of sound with codes at a rate that "
    "divides the latent frames, a generator that reads and draws both kinds of codes in turn, and "
    "the sound of each shot beside its frames."
)
TITLES = {
    "cut": "Shots", "tokenizer": "Tokenizer", "codes": "Codes", "generator": "Generator",
    "super_resolution": "Super-resolution", "scenes": "New scenes",
}  # fmt: skip

Figures = Mapping[str, Mapping[str, Any]]


def write_page(folder: Path, film: str, figures: Figures) -> Path:
    """Writes the page of the stages in `folder`, with links to their files."""
    path = folder / PAGE
    with replacing(path) as part:
        # Names of files need not be valid text.
        text = "\n".join(_lines(folder, film, figures)) + "\n"
        part.write_text(text, encoding="utf-8", errors="backslashreplace")
    return path


def _lines(folder: Path, film: str, figures: Figures) -> Iterator[str]:
    yield from (f"# {film}: from file to new scenes", "")
    yield from ("| stage | result | minutes |", "| --- | --- | ---: |")
    for stage, title in TITLES.items():
        values = figures[stage]
        yield f"| {title} | {values['sentence']} | {values['elapsed_s'] / 60:.1f} |"
    for stage, title in TITLES.items():
        yield from ("", f"## {title}", "", _sentence(figures[stage]), "")
        yield from SECTIONS[stage](figures[stage])
        curves = folder / stage / "curves.png"
        if curves.exists():
            yield from ("", f"![Curves of training]({stage}/curves.png)")
    yield from ("", "## Sound", "", SOUND)


def _sentence(values: Mapping[str, Any]) -> str:
    sentence = values["sentence"]
    return f"{sentence[0].upper()}{sentence[1:]}."


def _cut(values: Mapping[str, Any]) -> Iterator[str]:
    yield "Parts of the film by kind: " + ", ".join(
        f"{number} {kind}" for kind, number in values["parts"].items()
    )
    yield f"(shots of fewer than {values['min_frames']} frames are short)."
    yield "[All parts of the film](cut/shots.csv)"
    yield from ("", "![The middle of shots](cut/shots.png)")


def _tokenizer(values: Mapping[str, Any]) -> Iterator[str]:
    bits = values["bits_per_pixel"]
    rate = "" if bits is None else f", {bits:.4f} bits per pixel"
    yield f"{values['parameters']:,} parameters{rate}. [Report](tokenizer/report/report.md)"
    yield from ("", "![Worst, median and best held-out tail](tokenizer/report/videos.png)")


def _codes(values: Mapping[str, Any]) -> Iterator[str]:
    yield f"On average {values['num_codes'] / values['num_files']:,.0f} codes a file."


def _generator(values: Mapping[str, Any]) -> Iterator[str]:
    yield from prediction_table(values["prediction"])
    yield from ("", "[Report](generator/report/report.md). Rows: " + ", ".join(PICTURE_FILMS) + ".")
    for name in values["pictures"]:
        yield from ("", f"![Continuations of a held-out tail](generator/report/{name})")


def _super_resolution(values: Mapping[str, Any]) -> Iterator[str]:
    for name in values.get("pictures", ()):
        yield f"![Original, bicubic, super-resolution](super_resolution/{name})"


def _scenes(values: Mapping[str, Any]) -> Iterator[str]:
    yield f"Names with `after` begin with the last {values['prompt_frames']} frames of a shot,"
    yield "decoded. The .json beside a scene has the seed that makes it again."
    yield from ("", "![One scene a row, frames evenly spaced](scenes/scenes.png)", "")
    for name in (*values["scenes"], *values.get("upscaled", ())):
        yield f"- [{name}](scenes/{name})"


SECTIONS = {
    "cut": _cut,
    "tokenizer": _tokenizer,
    "codes": _codes,
    "generator": _generator,
    "super_resolution": _super_resolution,
    "scenes": _scenes,
}
