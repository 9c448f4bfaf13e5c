"""From one film to new scenes, stage by stage.

Each stage has a folder of its own. Its `stage.json` holds the settings that it was begun with, and
its figures once it is complete: then it is skipped.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from magvit2_pytorch.atomic import remove_abandoned
from magvit2_pytorch.codes.code_header import file_state
from magvit2_pytorch.evaluation import film_stages
from magvit2_pytorch.evaluation.film_page import write_page
from magvit2_pytorch.evaluation.film_work import SHARES, FilmWork, read_record, write_record

Stage = Callable[[FilmWork, Path], dict[str, Any]]

USED = {
    "cut": ("size", "upscaler_preset", "grey", "min_frames", "preset"),
    "tokenizer": ("preset", "seed"),
    "codes": ("views",),
    "generator": ("generator_preset",),
    "super_resolution": ("no_super_resolution",),
    "scenes": ("scenes", "seconds"),
}
"""Stages in their order, and the options that each depends on besides those of earlier ones."""


STAGES: dict[str, Stage] = {
    "cut": film_stages.cut,
    "tokenizer": film_stages.train_tokenizer,
    "codes": film_stages.tokenize,
    "generator": film_stages.train_generator_of_film,
    "super_resolution": film_stages.train_super_resolution,
    "scenes": film_stages.make_scenes,
}


def run_film(work: FilmWork) -> Path:
    """Does the stages that are not done, and returns the page.

    Raises `ValueError` if a stage was begun with other settings or nothing can be trained on, and
    `UnusableMedia` if the film cannot be read.
    """
    figures = {name: _do_stage(work, name) for name in USED}
    return write_page(work.folder, work.film.name, figures)


def _do_stage(work: FilmWork, name: str) -> dict[str, Any]:
    """The figures of a stage; does it unless that was done before."""
    folder, settings = work.folder / name, _settings(work, name)
    folder.mkdir(parents=True, exist_ok=True)
    remove_abandoned(folder)
    before = read_record(folder)
    if before is not None:
        _check_settings(folder, before["settings"], settings)
        if before["figures"] is not None:
            work.say(f"{name}: done before: {before['figures']['sentence']}")
            return before["figures"]
    write_record(folder, settings, None)
    minutes = f", {work.options.minutes_of(name):.3g} minutes" if name in SHARES else ""
    work.say(f"{name}: started{minutes}")
    started = time.monotonic()
    figures = STAGES[name](work, folder)
    figures["elapsed_s"] = round(time.monotonic() - started, 1)
    write_record(folder, settings, figures)
    work.say(f"{name}: {figures['sentence']}")
    return figures


def _settings(work: FilmWork, name: str) -> dict[str, Any]:
    """All that the results of a stage depend on, but for time."""
    stages = list(USED)[: list(USED).index(name) + 1]
    settings = {"film": work.film.name, "state": file_state(work.film)} | asdict(work.rules)
    for stage in stages:
        settings |= {option: getattr(work.options, option) for option in USED[stage]}
    return json.loads(json.dumps(settings))


def _check_settings(folder: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    differ = [
        f"{name} {before.get(name)}, not {now[name]}"
        for name in now
        if before.get(name) != now[name]
    ]
    if differ:
        raise ValueError(
            f"{folder} was begun with {'; '.join(differ)}: give the same settings or another "
            "--output, or remove this folder and those of the stages after it"
        )
