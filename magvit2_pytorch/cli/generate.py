"""`magvit2 generate`: samples films from a generator."""

import warnings
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from magvit2_pytorch.atomic import as_path
from magvit2_pytorch.cli.jobs import frame_count
from magvit2_pytorch.cli.options import (
    UPSCALER_HELP,
    GeneratorModel,
    Model,
    Size,
    StreamOptions,
    UsageError,
    UserError,
    check_counts,
    find_model,
    output_folder,
    user_errors,
)
from magvit2_pytorch.cli.progress_bar import ProgressBar

if TYPE_CHECKING:
    from magvit2_pytorch.generators.generator import Generator
    from magvit2_pytorch.generators.sampling import Sampling
    from magvit2_pytorch.pipelines.generation import Prompt
    from magvit2_pytorch.tokenizer.model import VideoTokenizer

CELLS = 16
"""Rows and columns of a film's codes without prompt, size, or a size in training."""


@dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """Options of the films to generate."""

    num: int = 1
    """Number of films, of each prompt if there are several."""
    frames: int | None = None
    """Frames of a film, its prompt included; by default those of `seconds`."""
    seconds: float = 4.0
    """Length of a film, its prompt included."""
    prompt: tuple[str, ...] = ()
    """Videos or images to continue, or to complete by `task`."""
    task: str | None = None
    """Let a masked generator complete the first `prompt_frames` frames of the prompts, of which
    the task shows a part: the first `given` frames (frame_prediction), the first and the last
    (interpolation), the middle half (outpainting_horizontal, outpainting_vertical,
    outpainting_central, or outpainting_dynamic, which moves right), all around it
    (inpainting_central, inpainting_dynamic), or nothing (unconditional)."""
    given: int | None = None
    """Frames that frame prediction shows; by default 1."""
    side_by_side: bool = False
    """Put what the task shows to the left of each film."""
    prompt_frames: int | None = 17
    """Frames of a prompt to give: 1 + k times the tokenizer's time factor, or fewer are used; of a
    1-D tokenizer whole parts."""
    height: int | None = None
    """Height of films without a prompt."""
    width: int | None = None
    """Width of films without a prompt."""
    fps: float | None = None
    """Frames per second; by default the prompt's, or 24."""
    class_name: str | None = None
    """Class of the films, one of those that the generator was trained with."""
    first_sample: int = 0
    """Number of the first film: with the same seed other numbers give other films."""

    def __post_init__(self):
        names = ("num", "frames", "prompt_frames", "height", "width", "given")
        check_counts(**{name: getattr(self, name) for name in names})
        if self.seconds <= 0 or (self.fps is not None and self.fps <= 0):
            raise UsageError("--seconds and --fps must be above 0")
        if self.first_sample < 0:
            raise UsageError(f"--first_sample {self.first_sample}: must be at least 0")
        if self.task is not None and (not self.prompt or not self.prompt_frames or self.frames):
            raise UsageError(
                "--task completes the first --prompt_frames frames of videos: give --prompt, and "
                "no --frames"
            )
        if self.given is not None and self.task != "frame_prediction":
            raise UsageError("--given goes with --task frame_prediction")
        if self.side_by_side and self.task is None:
            raise UsageError("--side_by_side goes with --task")
        if self.prompt and (self.height or self.width):
            raise UsageError(
                "--height and --width are of films without --prompt: --size is that of a prompt"
            )


def generate(
    *,
    generator: GeneratorModel,
    model: Model,
    output: str,
    size: Size = None,
    force: bool = False,
    upscale: Annotated[str | None, UPSCALER_HELP] = None,
    films: GenerationOptions,
    sampling: "Sampling",
    computing: StreamOptions,
) -> int:
    """Samples films from a generator, from nothing or as continuations of videos.

    Codes are drawn frame by frame and decoded at once, so a film may have any length. With --task,
    a masked generator completes videos instead. The output folder gets film-N.mp4, or NAME-N.mp4
    for the prompt NAME, and beside each film a JSON file with the options and the seed that make
    the same film again. With --upscale, films are enlarged while they are written.

    Args:
        output: Folder for the films.
        force: Use a generator that was trained on codes of another tokenizer.
    """
    folder = output_folder(output)
    if size is not None and not films.prompt:
        raise UsageError("--size is that of a prompt: films without have --height and --width")
    name = find_model(generator, "generator", "--generator")
    if upscale is not None:
        find_model(upscale, "upscaler", "--upscale")
    for path in films.prompt:
        if not as_path(path).is_file():
            raise UserError(f"there is no file {path}: --prompt takes videos and images")
    tokenizer, tokenizer_id, inference = computing.load(model, needs_codes=True)
    from magvit2_pytorch.generators.generator import load_generator
    from magvit2_pytorch.pipelines.generation import check_generator

    with user_errors(prefix=f"cannot use {generator}"):
        sampler = load_generator(name).to(tokenizer.device)
        check_generator(sampler, tokenizer, tokenizer_id, force)
        check_films(sampler, films)
    with user_errors():
        for path in films.prompt:
            check_prompt(tokenizer, as_path(path), films, size)
    upscaler = None if upscale is None else computing.load_upscaler(upscale, "--upscale")
    common = dict(
        sampling=sampling,
        first_sample=films.first_sample,
        class_name=films.class_name,
        inference=inference,
        fps=films.fps,
        upscaler=upscaler,
        record={"generator": str(name), "tokenizer": str(tokenizer_id), "upscaler": upscale},
    )
    folder.mkdir(parents=True, exist_ok=True)
    _write_all(sampler, tokenizer, folder, films, size, common)
    return 0


def check_films(generator: "Generator", films: GenerationOptions) -> None:
    """Raises `ValueError` unless the generator knows class and task."""
    from magvit2_pytorch.generators.masked import MaskedGenerator
    from magvit2_pytorch.generators.tasks import TASKS
    from magvit2_pytorch.pipelines.generation import class_condition

    class_condition(generator, films.class_name, 1)
    task = films.task
    if task is None:
        return
    if task not in TASKS:
        raise ValueError(f"there is no task {task!r}: use one of {', '.join(TASKS)}")
    if not isinstance(generator, MaskedGenerator):
        raise ValueError("--task needs a masked generator (train-generator --preset masked-tiny)")
    trained = [name for name, weight in generator.config.task_weights.items() if weight]
    if task not in trained:
        warnings.warn(
            f"the generator was trained for {', '.join(trained)}, not for {task}: expect little",
            stacklevel=2,
        )


def check_prompt(
    tokenizer: "VideoTokenizer", path: Path, films: GenerationOptions, size: int | None
) -> None:
    """Raises `ValueError` if a prompt cannot be read or completed."""
    from magvit2_pytorch.pipelines.completion import read_clip, visible_codes, visible_pixels
    from magvit2_pytorch.pipelines.media_file import open_media

    if films.task is None:
        open_media(path, tokenizer.config.channels, size).frames.close()
        return
    with user_errors(prefix=f"--task {films.task} of {path}"):
        video, _ = read_clip(tokenizer, path, films.prompt_frames, size)
        visible_codes(tokenizer, visible_pixels(films.task, video, films.given or 1))


def _write_all(
    generator: "Generator",
    tokenizer: "VideoTokenizer",
    folder: Path,
    films: GenerationOptions,
    size: int | None,
    common: dict[str, Any],
) -> None:
    """Writes the films of each prompt, or those without, and says so."""
    scale = 1 if common["upscaler"] is None else common["upscaler"].scale
    numbers = range(films.first_sample, films.first_sample + films.num)
    for source in films.prompt or ("film",):
        file = as_path(source)
        paths = [folder / f"{file.stem}-{number}.mp4" for number in numbers]
        with ProgressBar(" frames", file.name) as bar, user_errors():
            common["on_frames"] = partial(bar.frames, file.name)
            film, num_frames = _write_films(generator, tokenizer, paths, file, films, size, common)
        for path in paths:
            pixels = f"{film.width * scale} x {film.height * scale}"
            print(f"{path}: {frame_count(num_frames)}, {pixels}")


def _write_films(
    generator: "Generator",
    tokenizer: "VideoTokenizer",
    paths: list[Path],
    source: Path,
    films: GenerationOptions,
    size: int | None,
    common: dict[str, Any],
) -> tuple["Prompt", int]:
    """Completes or continues a video; returns the prompt and number of frames."""
    from magvit2_pytorch.pipelines.completion import complete_films
    from magvit2_pytorch.pipelines.generation import generate_films, read_prompt

    if films.task is not None:
        prompt = complete_films(
            generator, tokenizer, paths, source, films.task, given=films.given or 1,
            num_frames=films.prompt_frames, size=size, side_by_side=films.side_by_side, **common,
        )  # fmt: skip
        return prompt, prompt.num_frames
    if films.prompt:
        encoding = replace(common["inference"], num_tokens=generator.config.num_tokens)
        prompt = read_prompt(tokenizer, source, films.prompt_frames, size, encoding)
    else:
        prompt = _no_prompt(generator, tokenizer, films)
    num_frames = films.frames or max(1, round(films.seconds * (films.fps or prompt.fps)))
    generate_films(generator, tokenizer, paths, prompt, num_frames, **common)
    return prompt, num_frames


def _no_prompt(
    generator: "Generator", tokenizer: "VideoTokenizer", films: GenerationOptions
) -> "Prompt":
    """An empty prompt of the requested size, or the size in training.

    Tokens of a 1-D tokenizer have no size: then it is the tokenizer's.
    """
    from magvit2_pytorch.pipelines.generation import empty_prompt

    count, factor = generator.config.num_tokens, tokenizer.space_factor
    if count is None:
        height, width = (side * factor for side in generator.config.grid or (CELLS, CELLS))
    else:
        height, width = tokenizer.config.height_and_width
    return empty_prompt(tokenizer, films.height or height, films.width or width, count)
