"""`magvit2 generate`: samples films from a generator."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from jsonargparse import ArgumentParser

from magvit2_pytorch.cli.arguments import add_function, call_function
from magvit2_pytorch.cli.jobs import frame_count
from magvit2_pytorch.cli.model_folder import (
    UsageError,
    UserError,
    check_counts,
    find_model,
    output_folder,
    user_errors,
)
from magvit2_pytorch.cli.options import UPSCALER_HELP, GeneratorModel, Model, Size, StreamOptions
from magvit2_pytorch.cli.progress_bar import ProgressBar

if TYPE_CHECKING:
    from magvit2_pytorch.generators.generator import Generator
    from magvit2_pytorch.generators.sampling import Sampling
    from magvit2_pytorch.pipelines.generation import Prompt
    from magvit2_pytorch.pipelines.inference import Inference
    from magvit2_pytorch.tokenizer.model import VideoTokenizer

CELLS = 16
"""Rows and columns of a film's codes without prompt, size, or a size in training."""


@dataclass(frozen=True, kw_only=True)
class FilmOptions:
    """Options of the films to generate."""

    num: int = 1
    """Number of films, of each prompt if there are several."""
    frames: int | None = None
    """Frames of a film, its prompt included; by default those of `seconds`."""
    seconds: float = 4.0
    """Length of a film, its prompt included."""
    prompt: tuple[str, ...] = ()
    """Videos or images to continue."""
    prompt_frames: int | None = 17
    """Frames of a prompt to give: 1 + k times the tokenizer's time factor, or fewer are used."""
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
        counts = (self.num, self.frames, self.prompt_frames, self.height, self.width)
        names = ("num", "frames", "prompt_frames", "height", "width")
        check_counts(**dict(zip(names, counts, strict=True)))
        if self.seconds <= 0 or (self.fps is not None and self.fps <= 0):
            raise UsageError("--seconds and --fps must be above 0")
        if self.first_sample < 0:
            raise UsageError(f"--first_sample {self.first_sample}: must be at least 0")


def generate(
    *,
    generator: GeneratorModel,
    model: Model,
    output: str,
    size: Size = None,
    force: bool = False,
    upscale: Annotated[str | None, UPSCALER_HELP] = None,
    films: FilmOptions,
    sampling: "Sampling",
    computing: StreamOptions,
) -> int:
    """Samples films from a generator, from nothing or as continuations of videos.

    Codes are drawn frame by frame and decoded at once, so a film may have any length. The output
    folder gets film-N.mp4, or NAME-N.mp4 for the prompt NAME, and beside each film a JSON file with
    the options and the seed that make the same film again. With --upscale, films are enlarged while
    they are written.

    Args:
        output: Folder for the films.
        force: Use a generator that was trained on codes of another tokenizer.
    """
    folder = output_folder(output)
    name = find_model(generator, "generator", "--generator")
    if upscale is not None:
        find_model(upscale, "upscaler", "--upscale")
    for path in films.prompt:
        if not Path(path).expanduser().is_file():
            raise UserError(f"there is no file {path}: --prompt takes videos and images")
    tokenizer, tokenizer_id, inference = computing.load(model, needs_codes=True)
    from magvit2_pytorch.generators.generator import load_generator
    from magvit2_pytorch.pipelines.generation import check_generator, generate_films

    with user_errors(prefix=f"cannot use {generator}"):
        sampler = load_generator(name).to(tokenizer.device)
        check_generator(sampler, tokenizer, tokenizer_id, force)
    upscaler = None if upscale is None else computing.load_upscaler(upscale, "--upscale")
    scale = 1 if upscaler is None else upscaler.scale
    prompts = _prompts(films, tokenizer, size, inference)
    if not prompts:
        prompts["film"] = _no_prompt(sampler, tokenizer, films)
    record = {"generator": str(name), "tokenizer": str(tokenizer_id), "upscaler": upscale}
    folder.mkdir(parents=True, exist_ok=True)
    numbers = range(films.first_sample, films.first_sample + films.num)
    for source, prompt in prompts.items():
        num_frames = films.frames or max(1, round(films.seconds * (films.fps or prompt.fps)))
        paths = [folder / f"{Path(source).stem}-{number}.mp4" for number in numbers]
        title = Path(source).name
        with ProgressBar(" frames", title) as bar, user_errors():
            generate_films(
                sampler, tokenizer, paths, prompt, num_frames, sampling=sampling,
                first_sample=films.first_sample, class_name=films.class_name, inference=inference,
                fps=films.fps, on_frames=partial(bar.frames, title), record=record,
                upscaler=upscaler,
            )  # fmt: skip
        for path in paths:
            pixels = f"{prompt.width * scale} x {prompt.height * scale}"
            print(f"{path}: {frame_count(num_frames)}, {pixels}")
    return 0


def _prompts(
    films: FilmOptions, tokenizer: "VideoTokenizer", size: int | None, inference: "Inference"
) -> "dict[str, Prompt]":
    """Encoded prompts by the paths of their files."""
    from magvit2_pytorch.media.unusable import UnusableMedia
    from magvit2_pytorch.pipelines.generation import read_prompt

    prompts = {}
    for path in films.prompt:
        with user_errors(UnusableMedia):
            file = Path(path).expanduser()
            prompts[path] = read_prompt(tokenizer, file, films.prompt_frames, size, inference)
    return prompts


def _no_prompt(generator: "Generator", tokenizer: "VideoTokenizer", films: FilmOptions) -> "Prompt":
    """An empty prompt of the size asked for, or of that in training."""
    from magvit2_pytorch.pipelines.generation import empty_prompt

    rows, columns = generator.config.grid or (CELLS, CELLS)
    factor = tokenizer.space_factor
    return empty_prompt(tokenizer, films.height or rows * factor, films.width or columns * factor)


def add_arguments(parser: ArgumentParser, args: Sequence[str]) -> None:
    """Adds all options."""
    _import_options()
    add_function(parser, generate)


def _import_options() -> None:
    """Makes the options of sampling known, which need torch: a second for every command."""
    from magvit2_pytorch.generators.sampling import Sampling

    generate.__annotations__["sampling"] = Sampling


def run(values: Any) -> int:
    """Generates with the parsed values of the arguments that `add_arguments` added."""
    return call_function(generate, vars(values))
