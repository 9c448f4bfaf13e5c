"""Codes of videos and their views, and a generator, in given time."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from magvit2_pytorch.codes.code_file import CODE_SUFFIX, write_codes
from magvit2_pytorch.codes.codes_dataset import CodesDataset
from magvit2_pytorch.codes.views import View, parse_views
from magvit2_pytorch.evaluation.generator_report import evaluate_generator
from magvit2_pytorch.generators.generator import GENERATOR_PRESETS, load_generator
from magvit2_pytorch.pipelines.files import tokenize_file
from magvit2_pytorch.pipelines.fingerprint import TokenizerId
from magvit2_pytorch.tokenizer.model import VideoTokenizer
from magvit2_pytorch.training.generator_task import GeneratorTrainer, generator_for

VIEWS = "flip,shift:4"
"""Views of a film with little training data: eight times its codes."""
NEVER = 1_000_000
"""Steps that no run of minutes takes."""


def encode_views(
    tokenizer: VideoTokenizer,
    videos: Mapping[str, Path],
    folder: Path,
    views: Sequence[View] = (View(),),
    *,
    size: int | None = None,
    max_duration_s: float | None = None,
) -> int:
    """Writes code files of all views of videos; returns their number.

    Files that exist are kept, as they appear whole: the folder belongs to one tokenizer and size.
    Videos as they are come first, and all of them are encoded; views are left out once
    `max_duration_s` is over.
    """
    tokenizer_id, started = TokenizerId.of(tokenizer), time.monotonic()
    pairs = [(view, name) for view in views for name in videos]
    done = 0
    for view, name in pairs:
        target = folder / (view.path(name) + CODE_SUFFIX)
        over = max_duration_s is not None and time.monotonic() - started >= max_duration_s
        if not target.exists():
            if over and view.name:
                continue
            stored = tokenize_file(
                tokenizer, videos[name], size=size, tokenizer_id=tokenizer_id, view=view
            )
            write_codes(target, *stored)
        done += 1
    return done


def timed_run(folder: Path, minutes: float) -> dict[str, Any]:
    """Options of a training in one folder that ends after a time.

    It saves its state every 50 steps, and when it is interrupted.
    """
    return dict(
        num_train_steps=NEVER,
        max_duration_s=60 * minutes,
        validate_every_step=NEVER,
        checkpoint_every_step=50,
        keep_checkpoints=1,
        results_folder=str(folder),
        checkpoints_folder=str(folder / "checkpoints"),
    )


def train_generator(
    codes: Path,
    folder: Path,
    minutes: float,
    preset: str = "ar-tiny",
    model: Mapping[str, Any] | None = None,
    resume: str | None = None,
    **options: Any,
) -> GeneratorTrainer:
    """Trains a generator of a preset on stored codes for `minutes`.

    `model` and `options` change options of the preset; `resume` as in `Trainer.train`. The folder
    `generator` below `folder` has the weights of the best validation.
    """
    training = GENERATOR_PRESETS.training(preset) | timed_run(folder, minutes)
    # A few clips are known by heart within minutes: the best weights are found on the way.
    training |= dict(validate_every_step=250) | options
    generator = generator_for(
        CodesDataset(codes),
        crop=training["crop"],
        **(GENERATOR_PRESETS.model(preset) | dict(model or {})),
    )
    trainer = GeneratorTrainer(generator, dataset_folder=codes, **training)
    trainer.train(resume=resume)
    return trainer


def continue_clips(
    tokenizer: VideoTokenizer,
    videos: Mapping[str, Path],
    folder: Path,
    minutes: float,
    *,
    size: int,
    num_valid_latents: int,
    seed: int = 42,
    **options: Any,
) -> dict[str, Any]:
    """Trains a generator on videos and continues their held-out ends.

    `folder` gets `codes/`, `generator/` with the run, and `continuations/` with a report and a
    picture of each video: the truth, continuations, and the last frame repeated. Returns the
    report. The last `num_valid_latents` latent frames of each video are held out.
    """
    codes = folder / "codes"
    encode_views(tokenizer, videos, codes, parse_views(VIEWS), size=size)
    held_out = dict(num_valid_latents=num_valid_latents)
    torch.manual_seed(seed)
    trainer = train_generator(
        codes, folder / "generator", minutes, seed=seed, **held_out, **options
    )
    device = trainer.accelerator.device
    return evaluate_generator(
        load_generator(folder / "generator" / "generator").to(device),
        tokenizer.to(device),
        CodesDataset(codes),
        folder / "continuations",
        data={name + CODE_SUFFIX: path for name, path in videos.items()},
        **held_out,
    )


def psnr_sentence(report: Mapping[str, Any]) -> str:
    """Sentence on the next latent frame of held-out ends.

    PSNR beside that of the last frame repeated, and bits of a code.
    """
    likely, repeated, ceiling = (
        report["prediction"][name][0] for name in ("most_likely", "repeated", "ceiling")
    )
    bits = f"; {report['bits']:.2f} bits a code" if "bits" in report else ""
    return (
        f"next latent frame of held-out ends: {likely:.2f} dB, last frame repeated "
        f"{repeated:.2f} dB, true codes {ceiling:.2f} dB{bits} (adaptive coder "
        f"{report['adaptive_coder_bits']:.2f})"
    )
