"""`magvit2 film`: from one film to new scenes."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser

from magvit2_pytorch.atomic import as_path
from magvit2_pytorch.cli.arguments import add_function, call_function
from magvit2_pytorch.cli.jobs import resumable
from magvit2_pytorch.cli.model_folder import UserError, output_folder, user_errors

if TYPE_CHECKING:
    from magvit2_pytorch.evaluation.film_work import FilmOptions
    from magvit2_pytorch.media.shots import ShotRules


def film(
    film: str,
    /,
    *,
    output: str,
    options: "FilmOptions",
    rules: "ShotRules",
) -> int:
    """Makes new scenes of one film: shots, tokenizer, codes, generator, scenes.

    Black frames, fades, still cards and short shots are left out. The end of each shot is held out
    and measured on. The output folder gets a folder for each stage:

      cut/               shots.csv, with the reasons why parts are left out, and the shots
      tokenizer/         a tokenizer of this film, its report and curves
      codes/             codes of the shots, and of mirrored and shifted views
      generator/         a generator of these codes, its report and curves
      super_resolution/  super-resolution of decoded frames
      scenes/            new scenes, from the ends of shots and from nothing
      film.md            a page with the pictures and figures of all stages

    Frames are streamed, so a film may have any length. Running the same command again skips the
    stages that are done and continues the others.

    Args:
        film: Video file.
        output: Folder for everything.
    """
    path, folder = as_path(film), output_folder(output)
    if not path.is_file():
        raise UserError(f"there is no file {film}: give one video file")
    from magvit2_pytorch.evaluation.film_run import run_film
    from magvit2_pytorch.evaluation.film_work import FilmWork

    with resumable(), user_errors(ValueError):
        page = run_film(FilmWork(path, folder, options, rules))
    print(f"Wrote {page}")
    return 0


def add_arguments(parser: ArgumentParser, args: Sequence[str]) -> None:
    """Adds all options."""
    from magvit2_pytorch.evaluation.film_work import FilmOptions
    from magvit2_pytorch.media.shots import ShotRules

    # Made known here, as they need torch: a second for every command.
    film.__annotations__ |= {"options": FilmOptions, "rules": ShotRules}
    add_function(parser, film)


def run(values: Any) -> int:
    """Makes scenes with the parsed values of the arguments that `add_arguments` added."""
    return call_function(film, vars(values))
