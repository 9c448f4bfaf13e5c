"""Training of a generator on stored codes."""

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from magvit2_pytorch.atomic import as_path
from magvit2_pytorch.codes.code_windows import (
    CodeWindow,
    CodeWindows,
    Stretch,
    class_folders,
    read_grid,
    split_in_time,
    tokens_of_part,
)
from magvit2_pytorch.codes.codes_dataset import CodesDataset
from magvit2_pytorch.data.loader import InfiniteBatches
from magvit2_pytorch.data.split import CODES, read_held_out
from magvit2_pytorch.functional import autocast
from magvit2_pytorch.generators.generator import (
    GENERATORS,
    Generator,
    GeneratorCondition,
    build_generator,
)
from magvit2_pytorch.training.dry_run import TaskTrainer
from magvit2_pytorch.training.loop_config import LoopConfig
from magvit2_pytorch.training.task import (
    Best,
    Measured,
    MicroStep,
    PretrainedTask,
    TaskPlan,
    Trainable,
    Validation,
    size_text,
)

CONTEXT_LATENTS = 8
"""Latent frames before the held-out ones that a validation gives as context."""

MANY_EPOCHS = 50
"""Above so many epochs a plan warns of overfitting."""


@dataclass(frozen=True, kw_only=True)
class GeneratorTrainingConfig(LoopConfig):
    """Options of training a generator, and those of the loop."""

    num_latent_frames: int = 3
    """Latent frames of a training window; of a 1-D tokenizer, parts of a video."""
    crop: tuple[int, int] | None = (16, 16)
    """Rows and columns of a training window, cut at random; None for whole frames of one size.
    Tokens of a 1-D tokenizer are taken whole."""
    condition_dropout: float = 0.1
    """Share of the examples that are trained without their condition, for guidance."""
    corruption: float = 0.0
    """Share of the digits that a generator sees off by one level, up to 0.1: it then goes on from
    its own small errors."""
    valid_frac: float = 0.1
    """Share of the latent frames at the end of each video that is held out."""
    num_valid_latents: int | None = None
    """Number of latent frames to hold out instead of a share."""
    num_valid_clips: int = 16
    """Maximum number of held-out ends of videos in a validation."""

    positive = (*LoopConfig.positive, "num_latent_frames", "num_valid_clips")

    def __post_init__(self):
        super().__post_init__()
        for name, top in (("condition_dropout", 1.0), ("corruption", 1.0), ("valid_frac", 0.9)):
            if not 0 <= getattr(self, name) <= top:
                raise ValueError(f"{name} is {getattr(self, name)}: give a number from 0 to {top}")
        if self.num_valid_latents is not None and self.num_valid_latents < 1:
            raise ValueError(f"num_valid_latents is {self.num_valid_latents}: give 1 or more")
        if self.crop is not None and min(self.crop) < 1:
            raise ValueError(f"crop is {self.crop}: give rows and columns, 1 or more each")


class GeneratorTask(PretrainedTask):
    """Negative log likelihood of codes; each video's end is held out."""

    saved_as = "generator"
    best = Best("valid/bits", "min")
    # One film is soon known by heart.
    finishes_with_best = True
    curves = ("bits", "valid/bits", "learning_rate")
    shown = ("bits",)

    def __init__(
        self,
        generator: Generator,
        config: GeneratorTrainingConfig,
        windows: CodeWindows,
        held_out: tuple[CodesDataset, Sequence[Stretch]],
    ):
        self.model, self.config = generator, config
        self.windows, (self.codes, self.stretches) = windows, held_out
        self.held_out = {
            CODES: {self.codes.paths[v]: stop - start for v, start, stop in held_out[1]}
        }
        self.trainables = {
            "generator": Trainable(
                module=generator,
                options=config.optimizer_options(),
                # Muon is for the blocks' matrices: its steps do not fit tables of codes.
                not_for_muon=tuple(
                    part for name, part in generator.named_children() if name != "transformer"
                ),
                fixed_options=("optimizer",),
            )
        }

    # Training

    def batches(self, start: int, kind: str | None = None) -> Iterator[CodeWindow]:
        device = self.accelerator.device
        batches = InfiniteBatches(
            self.windows,
            self.config.batch_size,
            position=start,
            num_workers=self.config.num_workers,
            seed=self.config.seed,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
        )
        for batch in batches:
            yield CodeWindow(*(value.to(device, non_blocking=True) for value in batch))

    def step(self, batch: CodeWindow, micro: MicroStep) -> Measured:
        draws = micro.generator
        kept = torch.rand(len(batch.codes), generator=draws) < 1 - self.config.condition_dropout
        context = None
        if self.config.corruption:
            # A generator learns to go on from small errors, as its own are. Source: bitwise
            # self-correction of Infinity (arXiv 2412.04431).
            context = self.model.code_space.corrupted(batch.codes, self.config.corruption, draws)
        with autocast(batch.codes.device, self.config.precision):
            loss, terms = micro.modules["generator"](
                batch.codes,
                self._condition(batch.label),
                kept=kept.to(batch.codes.device),
                starts=batch.start,
                context=context,
                draws=draws,
            )
        micro.backward(loss)
        measured = {f"bits_{number}": term / math.log(2) for number, term in enumerate(terms)}
        return {"loss": loss, "bits": loss.detach() / math.log(2)} | measured

    def _condition(self, labels: Int[Tensor, " b"]) -> GeneratorCondition:
        return GeneratorCondition(classes=labels if self.model.config.classes else None)

    # Measuring

    def sizes(self, batch: CodeWindow) -> dict[str, int]:
        return {"codes": batch.codes.shape[:4].numel()}

    @torch.no_grad()
    def validate(self, model: nn.Module, path: Path, quick: bool = False) -> Validation:
        """Mean bits of held-out codes, given at most `CONTEXT_LATENTS` latent frames."""
        codes, stretches = self.codes, self.stretches
        accelerator = self.accelerator
        limit = accelerator.num_processes if quick else self.config.num_valid_clips
        stretches = stretches[:limit][accelerator.process_index :: accelerator.num_processes]
        sums = {name: torch.zeros(2, dtype=torch.float64) for name in model.measures}
        for stretch in stretches:
            first = max(0, stretch.start - CONTEXT_LATENTS)
            grid = read_grid(codes, stretch.video, first, stretch.stop)[None]
            label = torch.tensor([self.windows.labels[stretch.video]])
            num_context = len(grid[0]) - (stretch.stop - stretch.start)
            measured = model.measure(
                grid.to(accelerator.device),
                num_context,
                self._condition(label.to(accelerator.device)),
            )
            count = grid[:, num_context:].shape[:4].numel()
            for name, value in measured.items():
                sums[name] += torch.tensor([value * count, count], dtype=torch.float64)
        values = {}
        for name, total in sums.items():
            total = accelerator.reduce(total.float().to(accelerator.device), reduction="sum")
            values[f"valid/{name}"] = float(total[0] / total[1])
        return Validation(values, {})

    # Dry run

    def validation_rounds(self) -> int:
        count = min(len(self.stretches), self.config.num_valid_clips)
        return -(-count // self.accelerator.num_processes)

    def plan(self, batch: CodeWindow, num_steps: int, examples_per_step: int) -> TaskPlan:
        held_out = sum(stretch.stop - stretch.start for stretch in self.stretches)
        epochs = num_steps * examples_per_step / len(self.windows)
        size, bits = size_text(batch.codes.shape[1:4]), self.model.code_space.bits
        rows = [
            ("window", f"{size} codes of {bits:.2f} bits"),
            ("data", f"{len(self.windows):,} windows, {held_out:,} latent frames held out"),
            ("step", f"{examples_per_step:,} windows; {epochs:.2f} epochs in total"),
        ]
        many = (
            f"{epochs:.0f} epochs of the same codes: the generator may learn them by heart; "
            "tokenize with --views flip,shift:4, use dropout, or train less"
        )
        return TaskPlan(rows, [many] if epochs > MANY_EPOCHS else [])


STRIDES = ("time_factor", "space_factor")
"""Options of masked generators that are those of the tokenizer."""


def generator_for(
    codes: CodesDataset, class_conditional: bool = False, crop: Any = None, **options: Any
) -> Generator:
    """A new generator of stored codes, configured for them.

    Their levels, classes and tokenizer go into its config; of a 1-D tokenizer, also the tokens of a
    part, of which all videos need the same number.

    `options` are those of the generator, with its `kind`; `class_conditional` makes the top folders
    of the videos' paths its classes.
    """
    classes = class_folders(codes) if class_conditional else None
    known = GENERATORS[options["kind"]].config_class.__dataclass_fields__
    header = codes.header(0).header
    num_tokens = tokens_of_part(codes)
    strides = {name: getattr(header, name) for name in STRIDES if name in known}
    return build_generator(
        **(strides | options),
        levels=(codes.digit_levels,) * codes.num_codebooks,
        classes=classes,
        grid=crop if num_tokens is None else (1, num_tokens),
        num_tokens=num_tokens,
        tokenizer_fingerprint=codes.fingerprint,
    )


class GeneratorTrainer(TaskTrainer):
    """Trains a generator on the codes that `magvit2 tokenize` wrote to `dataset_folder`.

    Options are the fields of `GeneratorTrainingConfig`, as keyword arguments. The end of each video
    is held out; see `split_in_time`. With classes, videos lie in folders named like them. Raises
    `ValueError` if the codes are not those that the generator was built for.
    """

    config_class = GeneratorTrainingConfig
    task: GeneratorTask

    def __init__(
        self,
        generator: Generator,
        *,
        dataset_folder: str | Path,
        accelerate_kwargs: dict[str, Any] | None = None,
        **options: Any,
    ):
        config = GeneratorTrainingConfig.from_dict(options)
        codes = CodesDataset(dataset_folder)
        check_codes(generator, codes)
        train, held_out = _split(codes, config)
        size = config.num_latent_frames, config.crop
        windows = CodeWindows(codes, train, *size, config.seed, generator.config.classes)
        task = GeneratorTask(generator, config, windows, (codes, held_out))
        super().__init__(task, config, accelerate_kwargs)

    generator = property(attrgetter("task.model"), doc="The generator in training.")

    @property
    def ema_generator(self) -> Generator:
        """The averaged generator of the last step, in eval mode.

        That of the best validation is saved in `results_folder`, below `generator`.
        """
        return self.averaged_model


def _split(
    codes: CodesDataset, config: GeneratorTrainingConfig
) -> tuple[list[Stretch], list[Stretch]]:
    """Training and held-out codes; a continued run uses its record."""
    options = config.num_latent_frames, config.valid_frac, config.num_valid_latents
    recorded = read_held_out(as_path(config.results_folder)).get(CODES, {})
    parts = split_in_time(codes, *options, recorded)
    if gone := set(recorded) - set(codes.paths):
        warnings.warn(
            f"{len(gone)} of the {len(recorded)} videos of which this run holds out codes are not "
            f"in {codes.folder}, such as {min(gone)}",
            stacklevel=3,
        )
    elif recorded and {*parts[1]} != {*split_in_time(codes, *options)[1]}:
        warnings.warn(
            f"held out are the codes that this run held out before; with the videos in "
            f"{codes.folder} and the options of now it would be others",
            stacklevel=3,
        )
    return parts


def check_codes(generator: Generator, codes: CodesDataset) -> None:
    """Raises `ValueError` unless the generator was built for these codes."""
    levels = (codes.digit_levels,) * codes.num_codebooks
    if generator.config.levels != levels:
        raise ValueError(
            f"the codes in {codes.folder} have digits of {levels} values, the generator was built "
            f"for {generator.config.levels}: use codes of its tokenizer"
        )
    own, count = generator.config.num_tokens, tokens_of_part(codes)
    if own != count:
        kinds = ["a grid" if n is None else f"{n} tokens in a part" for n in (count, own)]
        raise ValueError(
            f"the codes in {codes.folder} are {kinds[0]}, the generator was built for {kinds[1]}: "
            "`generator_for` builds one for codes, with their num_tokens"
        )
    for grid in sorted({codes.grid(number)[1:3] for number in range(len(codes.paths))}):
        generator.check_grid(grid)
    wanted = generator.config.tokenizer_fingerprint
    if wanted is not None and wanted != codes.fingerprint:
        raise ValueError(
            f"the codes in {codes.folder} are from the tokenizer {codes.fingerprint[:12]}, the "
            f"generator was built for {wanted[:12]}: use codes of that one"
        )
