"""`magvit2 train-generator`: trains a generator on stored codes."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser

from magvit2_pytorch.atomic import as_path
from magvit2_pytorch.cli.arguments import add_fields, add_function, call_function
from magvit2_pytorch.cli.model_folder import UsageError, UserError, user_errors
from magvit2_pytorch.cli.train import (
    FROM_OUTPUT,
    TrainOptions,
    add_files,
    find_checkpoint,
    run_training,
    training_options,
    write_config,
)

if TYPE_CHECKING:
    from magvit2_pytorch.training.generator_task import GeneratorTrainingConfig

DEFAULT_PRESET = "ar-tiny"
FROM_CODES = (
    "kind", "levels", "classes", "grid", "tokenizer_fingerprint", "time_factor", "space_factor",
)  # fmt: skip
"""Options of a generator that its preset and the codes determine."""


@dataclass(frozen=True, kw_only=True)
class GeneratorRunOptions(TrainOptions):
    """Options of a run other than those of model and training."""

    class_conditional: bool = False
    """Condition on classes: the top folders of the videos that were tokenized."""


def train_generator(
    codes: str,
    /,
    *,
    preset: str = DEFAULT_PRESET,
    options: GeneratorRunOptions,
    model: dict[str, Any],
    training: "GeneratorTrainingConfig",
) -> int:
    """Trains a generator on the codes of videos.

    Defaults come from the preset and its recipe. A --config file overrides them, and typed options
    override both. The end of each video is held out. The output folder gets:

      generator/      the trained generator, for --generator of the other commands
      config.yaml     all options of this run, for --config
      checkpoints/    for --resume: a folder for each of the last saved steps, and the best
      log.jsonl, run.json, curves.png: logs

    Ctrl-C saves a checkpoint and prints how to resume. For several GPUs or processes:
    accelerate launch -m magvit2_pytorch train-generator ...

    Args:
        codes: Folder of code files or shards that `magvit2 tokenize` wrote.
    """
    checkpoint = find_checkpoint(options.folder / "checkpoints", options.resume)
    import torch

    from magvit2_pytorch.codes.codes_dataset import CodesDataset
    from magvit2_pytorch.training.generator_task import GeneratorTrainer, generator_for

    if not as_path(codes).is_dir():
        raise UserError(f"there is no folder {codes}: give one that `magvit2 tokenize` wrote")
    torch.manual_seed(training.seed)
    with user_errors():
        generator = generator_for(
            CodesDataset(codes), options.class_conditional, training.crop, **model
        )
        trainer = GeneratorTrainer(
            generator,
            dataset_folder=codes,
            accelerate_kwargs=options.accelerate_kwargs,
            **{field.name: getattr(training, field.name) for field in fields(training)},
        )
        if checkpoint is not None:
            trainer.resume(options.resume)
    names = ("output", "device", "class_conditional")
    run = {"codes": codes, "preset": preset} | {name: getattr(options, name) for name in names}
    shown = {name: value for name, value in model.items() if name != "kind"}
    return run_training(
        trainer, options, lambda path: write_config(path, shown, training, **run), "generator"
    )


def add_arguments(parser: ArgumentParser, args: Sequence[str]) -> None:
    """Adds all options, with the defaults of the preset in `args`, sorted by `files_first`."""
    from magvit2_pytorch.generators.generator import GENERATOR_PRESETS, GENERATORS
    from magvit2_pytorch.training.generator_task import GeneratorTrainingConfig

    parser.usage = (
        "magvit2 train-generator CODES -o OUTPUT [--preset NAME] [--config FILE] [options]"
    )
    name = args[args.index("--preset") + 1] if "--preset" in args else DEFAULT_PRESET
    with user_errors(to=UsageError):
        model, training = GENERATOR_PRESETS.model(name), GENERATOR_PRESETS.training(name)
    add_function(parser, train_generator, skip=("preset", "model", "training"))
    add_files(parser, tuple(GENERATOR_PRESETS), name)
    group = parser.add_argument_group(f"training, recommended values for {name}")
    add_fields(group, GeneratorTrainingConfig, training, section="training", skip=FROM_OUTPUT)
    group = parser.add_argument_group(f"model, values of the preset {name}")
    config = GENERATORS[model["kind"]].config_class
    add_fields(group, config, model, section="model", prefix="model.", skip=FROM_CODES)


def run(values: Any) -> int:
    """Trains with the parsed values of the arguments that `add_arguments` added."""
    from magvit2_pytorch.generators.generator import GENERATOR_PRESETS
    from magvit2_pytorch.training.generator_task import GeneratorTrainingConfig

    model = {"kind": GENERATOR_PRESETS.model(values.preset)["kind"]} | vars(values.model)
    with user_errors(to=UsageError):
        training = GeneratorTrainingConfig(**training_options(values))
    return call_function(train_generator, vars(values) | dict(model=model, training=training))
