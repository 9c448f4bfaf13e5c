"""`magvit2 train-sr`: trains super-resolution for the frames of a tokenizer."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

from jsonargparse import ArgumentParser

from magvit2_pytorch.atomic import as_path
from magvit2_pytorch.cli.arguments import add_fields, add_function, call_function
from magvit2_pytorch.cli.model_folder import UsageError, UserError, load_tokenizer, user_errors
from magvit2_pytorch.cli.options import Model
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
    from magvit2_pytorch.super_resolution import SuperResolutionConfig
    from magvit2_pytorch.training.super_resolution_task import SuperResolutionTrainingConfig

DEFAULT_PRESET = "x2-small"


@dataclass(frozen=True, kw_only=True)
class UpscalerRunOptions(TrainOptions):
    """Options of a run other than those of model and training."""

    type: Literal["videos", "images"] = "videos"
    """Files of DATA to train on: videos, of which clips are taken, or images."""
    minutes: float | None = None
    """Training time; the same as --max_duration_s in minutes."""

    def __post_init__(self):
        if self.minutes is not None and self.minutes <= 0:
            raise UsageError(f"--minutes {self.minutes:g}: must be above 0")


def train_sr(
    data: str,
    /,
    *,
    tokenizer: Model,
    preset: str = DEFAULT_PRESET,
    options: UpscalerRunOptions,
    model: "SuperResolutionConfig",
    training: "SuperResolutionTrainingConfig",
) -> int:
    """Trains super-resolution to enlarge what a tokenizer decodes.

    Training frames are resized, encoded and decoded by the frozen tokenizer, half of them from
    codes with errors like a generator's, and compared with the frames before. Defaults come from
    the preset and its recipe. A --config file overrides them, and typed options override both. The
    output folder gets:

      upscaler/       the trained network, for --model of `upscale` and --upscale of `generate`
      config.yaml     all options of this run, for --config
      checkpoints/    for --resume: a folder for each of the last saved steps, and the best
      log.jsonl, run.json, curves.png, step-*.mp4 and .png: logs and samples

    Ctrl-C saves a checkpoint and prints how to resume. For several GPUs or processes:
    accelerate launch -m magvit2_pytorch train-sr ...

    Args:
        data: Folder of media files, searched recursively; or a .txt list, a .csv table with a
            column `path`, or one video.
        tokenizer: Folder of the tokenizer or of the run that trained it, or hf://OWNER/NAME;
            --model means the same.
    """
    if not as_path(data).exists():
        raise UserError(f"there is no {data}: DATA is a folder of {options.type}")
    checkpoint = find_checkpoint(options.folder / "checkpoints", options.resume)
    frozen, _ = load_tokenizer(tokenizer, "cpu")
    import torch

    from magvit2_pytorch.super_resolution import SuperResolution
    from magvit2_pytorch.training.super_resolution_task import (
        WITHOUT_EFFECT,
        SuperResolutionTrainer,
    )

    torch.manual_seed(training.seed)
    with user_errors():
        trainer = SuperResolutionTrainer(
            frozen,
            SuperResolution.from_config(model),
            dataset_folder=data,
            dataset_type=options.type,
            accelerate_kwargs=options.accelerate_kwargs,
            **{field.name: getattr(training, field.name) for field in fields(training)},
        )
        if checkpoint is not None:
            trainer.resume(options.resume)
    run = {"data": data, "tokenizer": tokenizer, "preset": preset}
    run |= {name: getattr(options, name) for name in ("output", "type", "device")}
    run["skip"] = FROM_OUTPUT + WITHOUT_EFFECT
    return run_training(
        trainer, options, lambda path: write_config(path, model.to_dict(), training, **run),
        "upscaler",
    )  # fmt: skip


def add_arguments(parser: ArgumentParser, args: Sequence[str]) -> None:
    """Adds all options, with the defaults of the preset in `args`, sorted by `files_first`."""
    from magvit2_pytorch.super_resolution import SR_PRESETS, SuperResolutionConfig
    from magvit2_pytorch.training.super_resolution_task import (
        WITHOUT_EFFECT,
        SuperResolutionTrainingConfig,
    )

    parser.usage = (
        "magvit2 train-sr DATA --model RUN -o OUTPUT [--preset NAME] [--config FILE] [options]"
    )
    name = args[args.index("--preset") + 1] if "--preset" in args else DEFAULT_PRESET
    with user_errors(to=UsageError):
        model, training = SR_PRESETS.model(name), SR_PRESETS.training(name)
    add_function(parser, train_sr, skip=("preset", "model", "training"))
    add_files(parser, tuple(SR_PRESETS), name)
    group = parser.add_argument_group(f"training, recommended values for {name}")
    skip = FROM_OUTPUT + WITHOUT_EFFECT
    add_fields(group, SuperResolutionTrainingConfig, training, section="training", skip=skip)
    group = parser.add_argument_group(f"model, values of the preset {name}")
    add_fields(group, SuperResolutionConfig, model, section="model", prefix="model.")


def run(values: Any) -> int:
    """Trains with the parsed values of the arguments that `add_arguments` added."""
    from magvit2_pytorch.super_resolution import SuperResolutionConfig
    from magvit2_pytorch.training.super_resolution_task import SuperResolutionTrainingConfig

    options = training_options(values)
    if values.minutes is not None:
        options["max_duration_s"] = values.minutes * 60
    with user_errors(to=UsageError):
        model = SuperResolutionConfig.from_dict(vars(values.model))
        training = SuperResolutionTrainingConfig(**options)
    return call_function(train_sr, vars(values) | dict(model=model, training=training))
