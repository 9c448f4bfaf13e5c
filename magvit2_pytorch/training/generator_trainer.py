"""The trainer of generators."""

import warnings
from dataclasses import fields
from pathlib import Path
from typing import Any

from magvit2_pytorch.atomic import as_path
from magvit2_pytorch.codes.code_windows import CodeWindows, Stretch, class_folders, split_in_time
from magvit2_pytorch.codes.codes_dataset import CodesDataset
from magvit2_pytorch.config import check_known, keyword_signature
from magvit2_pytorch.data.split import CODES, read_held_out
from magvit2_pytorch.generators.generator import GENERATORS, Generator, build_generator
from magvit2_pytorch.training.dry_run import TaskTrainer
from magvit2_pytorch.training.generator_task import GeneratorTask, GeneratorTrainingConfig

STRIDES = ("time_factor", "space_factor")
"""Options of masked generators that are those of the tokenizer."""


def generator_for(
    codes: CodesDataset, class_conditional: bool = False, crop: Any = None, **options: Any
) -> Generator:
    """A new generator of stored codes, configured for them.

    Their levels, classes and tokenizer go into its config.

    `options` are those of the generator, with its `kind`; `class_conditional` makes the top folders
    of the videos' paths its classes.
    """
    classes = class_folders(codes) if class_conditional else None
    known = GENERATORS[options["kind"]].config_class.__dataclass_fields__
    header = codes.header(0).header
    strides = {name: getattr(header, name) for name in STRIDES if name in known}
    return build_generator(
        **(strides | options),
        levels=(codes.digit_levels,) * codes.num_codebooks,
        classes=classes,
        grid=crop,
        tokenizer_fingerprint=codes.fingerprint,
    )


class GeneratorTrainer(TaskTrainer):
    """Trains a generator on the codes that `magvit2 tokenize` wrote to `dataset_folder`.

    Options are the fields of `GeneratorTrainingConfig`, as keyword arguments. The end of each video
    is held out; see `split_in_time`. With classes, videos lie in folders named like them. Raises
    `ValueError` if the codes are not those that the generator was built for.
    """

    task: GeneratorTask

    def __init__(
        self,
        generator: Generator,
        *,
        dataset_folder: str | Path,
        accelerate_kwargs: dict[str, Any] | None = None,
        **options: Any,
    ):
        check_known(
            "the trainer", options, [field.name for field in fields(GeneratorTrainingConfig)]
        )
        config = GeneratorTrainingConfig(**options)
        codes = CodesDataset(dataset_folder)
        check_codes(generator, codes)
        train, held_out = _split(codes, config)
        windows = CodeWindows(
            codes,
            train,
            config.num_latent_frames,
            config.crop,
            config.seed,
            generator.config.classes,
        )
        task = GeneratorTask(generator, config, windows, (codes, held_out))
        super().__init__(task, config, accelerate_kwargs)

    @property
    def generator(self) -> Generator:
        """The generator in training."""
        return self.task.model

    @property
    def ema_generator(self) -> Generator:
        """The generator to use and save: averaged weights, in eval mode."""
        return self.averaged_model


def _split(
    codes: CodesDataset, config: GeneratorTrainingConfig
) -> tuple[list[Stretch], list[Stretch]]:
    """Codes to train on and held-out ones, which a continued run takes from its record."""
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
    wanted = generator.config.tokenizer_fingerprint
    if wanted is not None and wanted != codes.fingerprint:
        raise ValueError(
            f"the codes in {codes.folder} are from the tokenizer {codes.fingerprint[:12]}, the "
            f"generator was built for {wanted[:12]}: use codes of that one"
        )


GeneratorTrainer.__signature__ = keyword_signature(
    GeneratorTrainingConfig, "generator", dataset_folder=None, accelerate_kwargs=None
)
