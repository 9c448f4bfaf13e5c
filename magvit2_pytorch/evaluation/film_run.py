"""From one film to new scenes by stages, and a results page.

Each stage has a folder of its own. Its `stage.json` holds the settings that it was begun with, and
its figures once it is complete: then it is skipped.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from magvit2_pytorch.atomic import remove_abandoned, replace_text
from magvit2_pytorch.codes.code_header import file_state
from magvit2_pytorch.evaluation import film_stages
from magvit2_pytorch.evaluation.film_work import SHARES, FilmWork, read_record, write_record
from magvit2_pytorch.evaluation.generator_report import PICTURE_FILMS, prediction_table

PAGE = "film.md"
SOUND = (
    "Sound is not part of the scenes: it would need a tokenizer of sound with codes at a rate that "
    "divides the latent frames, a generator that reads and draws both kinds of codes in turn, and "
    "the sound of each shot beside its frames."
)


def run_film(work: FilmWork) -> Path:
    """Does the stages that are not done, and returns the page."""
    figures = {name: _do_stage(work, name) for name in STAGES}
    return write_page(work.folder, work.film.name, figures)


def _do_stage(work: FilmWork, name: str) -> dict[str, Any]:
    """The figures of a stage; does it unless that was done before."""
    folder = work.folder / name
    # All that the results depend on, but for time.
    settings = {"film": work.film.name, "state": file_state(work.film)} | asdict(work.rules)
    for stage in list(STAGES)[: list(STAGES).index(name) + 1]:
        settings |= {option: getattr(work.options, option) for option in STAGES[stage].options}
    settings = json.loads(json.dumps(settings))
    folder.mkdir(parents=True, exist_ok=True)
    remove_abandoned(folder)
    before = read_record(folder)
    if before is not None:
        differ = [
            f"{option} {before['settings'].get(option)}, not {value}"
            for option, value in settings.items()
            if before["settings"].get(option) != value
        ]
        if differ:
            raise ValueError(
                f"{folder} was begun with {'; '.join(differ)}: give the same settings or another "
                "--output, or remove this folder and those of the stages after it"
            )
        if before["figures"] is not None:
            work.say(f"{name}: done before: {before['figures']['sentence']}")
            return before["figures"]
    write_record(folder, settings, None)
    minutes = f", {work.options.minutes_of(name):.3g} minutes" if name in SHARES else ""
    work.say(f"{name}: started{minutes}")
    started = time.monotonic()
    figures = STAGES[name].do(work, folder)
    # A training that was interrupted knows its time before that.
    elapsed_s = max(time.monotonic() - started, figures.get("trained_s", 0.0))
    figures["elapsed_s"] = round(elapsed_s, 1)
    write_record(folder, settings, figures)
    work.say(f"{name}: {figures['sentence']}")
    return figures


def write_page(folder: Path, film: str, figures: Mapping[str, Mapping[str, Any]]) -> Path:
    """Writes the page of all stages, with links to their files."""
    path = folder / PAGE
    replace_text(path, "\n".join(_lines(folder, film, figures)) + "\n")
    return path


def _lines(folder: Path, film: str, figures: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    yield from (f"# {film}: from file to new scenes", "")
    yield from ("| stage | result | minutes |", "| --- | --- | ---: |")
    for name, stage in STAGES.items():
        values = figures[name]
        yield f"| {stage.title} | {values['sentence']} | {values['elapsed_s'] / 60:.1f} |"
    for name, stage in STAGES.items():
        sentence = figures[name]["sentence"]
        yield from ("", f"## {stage.title}", "", f"{sentence[0].upper()}{sentence[1:]}.", "")
        yield from stage.section(figures[name])
        if (folder / name / "curves.png").exists():
            yield from ("", f"![Curves of training]({name}/curves.png)")
    yield from ("", "## Sound", "", SOUND)


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
        yield f"![Original, bicubic interpolation, decoded at this size](super_resolution/{name})"


def _scenes(values: Mapping[str, Any]) -> Iterator[str]:
    yield f"Names with `after` begin with the last {values['prompt_frames']} frames of a shot,"
    yield "decoded. The .json beside a scene has the seed that makes it again."
    yield from ("", "![One scene a row, frames evenly spaced](scenes/scenes.png)", "")
    for name in values["scenes"]:
        yield f"- [{name}](scenes/{name})"


class Stage(NamedTuple):
    """A stage, and its part of the page."""

    do: Callable[[FilmWork, Path], dict[str, Any]]
    options: tuple[str, ...]
    """Options that it depends on besides those of earlier stages."""
    title: str
    section: Callable[[Mapping[str, Any]], Iterator[str]]


STAGES = {
    "cut": Stage(film_stages.cut, ("size", "scale", "grey", "min_frames", "preset"), "Shots", _cut),
    "tokenizer": Stage(film_stages.train_tokenizer, ("preset", "seed"), "Tokenizer", _tokenizer),
    "codes": Stage(film_stages.tokenize, ("views",), "Codes", _codes),
    "generator": Stage(
        film_stages.train_generator_of_film, ("generator_preset",), "Generator", _generator
    ),
    "super_resolution": Stage(
        film_stages.train_super_resolution,
        (),
        "Super-resolution",
        _super_resolution,
    ),
    "scenes": Stage(film_stages.make_scenes, ("scenes", "seconds"), "New scenes", _scenes),
}
"""Stages in their order."""
