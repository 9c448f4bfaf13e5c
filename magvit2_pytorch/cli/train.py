"""`magvit2 train`: trains a tokenizer.

Model options are the fields of `TokenizerConfig`, as --model.NAME; training options are the fields
of `TrainingConfig`, as --NAME. In a file they stand under `model:` and `training:`, as in a preset.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jsonargparse import ActionConfigFile, ArgumentParser

from magvit2_pytorch.atomic import as_path
from magvit2_pytorch.cli.arguments import add_fields, add_function, call_function
from magvit2_pytorch.cli.model_folder import (
    Device,
    ModelKind,
    UsageError,
    UserError,
    find_device,
    find_tokenizer,
    user_errors,
)

if TYPE_CHECKING:
    from magvit2_pytorch.tokenizer.model import VideoTokenizer
    from magvit2_pytorch.tokenizer.tokenizer_config import TokenizerConfig
    from magvit2_pytorch.tokenizer_1d import Tokenizer1d, Tokenizer1dConfig
    from magvit2_pytorch.training.loop_config import LoopConfig
    from magvit2_pytorch.training.sequence_task import Tokenizer1dTrainer
    from magvit2_pytorch.training.tokenizer_task import VideoTokenizerTrainer
    from magvit2_pytorch.training.trainer import Trainer
    from magvit2_pytorch.training.training_config import TrainingConfig

CONFIG_FILE = "config.yaml"
DEFAULT_PRESET = "small"
FROM_OUTPUT = ("results_folder", "checkpoints_folder")
"""Training options that --output determines."""


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Options of every training run."""

    output: str
    """Folder for everything that the run writes."""
    resume: str | None = None
    """Resume from a checkpoint: its folder, `latest` for the last one in the output folder, or
    `auto` for the last intact one, if there is any."""
    wandb: bool = False
    """The same as --use_wandb_tracking true."""
    dry_run: bool = False
    """Train two steps, print the memory, time and disk space that the whole run will take, and
    leave no files."""
    device: Device = "auto"
    """Device to train on; auto uses GPUs if there are any."""

    @property
    def folder(self) -> Path:
        return as_path(self.output)

    @property
    def accelerate_kwargs(self) -> dict[str, Any] | None:
        """Keyword arguments of accelerate that select the device."""
        on_cpu = self.device != "auto" and find_device(self.device) == "cpu"
        return {"cpu": True} if on_cpu else None


@dataclass(frozen=True, kw_only=True)
class RunOptions(TrainOptions):
    """Options of a run other than those of model and training."""

    type: Literal["videos", "images"] = "videos"
    """Kind of training examples: clips of videos, or images."""
    images: str | None = None
    """Folder of additional images to train on, in a fraction --image_frac of the passes."""
    init_from: str | None = None
    """Start from a trained or converted tokenizer or run, or hf://OWNER/NAME. Without --preset and
    --config it also gives the options of the model. An image tokenizer whose layers are the same
    apart from time is inflated, such as o2-image to o2."""


def train(
    data: str,
    /,
    *,
    preset: str = DEFAULT_PRESET,
    options: RunOptions,
    model: "TokenizerConfig | Tokenizer1dConfig",
    training: "TrainingConfig",
) -> int:
    """Trains a tokenizer on a folder of videos or images.

    Defaults come from the preset and its recipe. A --config file overrides them, and typed options
    override both. The output folder gets:

      tokenizer/      the trained tokenizer, for --model of the other commands
      config.yaml     all options of this run, for --config
      checkpoints/    for --resume: a folder for each of the last saved steps, and the best
      log.jsonl, run.json, curves.png, step-*.mp4 and .png: logs and samples

    Ctrl-C saves a checkpoint and prints how to resume. For several GPUs or processes:
    accelerate launch -m magvit2_pytorch train ...

    Args:
        data: Folder of media files, searched recursively; or a .txt list, a .csv table with a
            column `path`, or one video.
    """
    trainer = _build_trainer(data, options, ModelKind.of_preset(preset), model, training)
    names = ("output", "type", "device", "images", "init_from")
    run = {"data": data, "preset": preset} | {name: getattr(options, name) for name in names}
    return run_training(
        trainer,
        options,
        lambda path: write_config(path, model.to_dict(), training, **run),
        "tokenizer",
    )


def run_training(
    trainer: "Trainer", options: TrainOptions, write: Callable[[Path], None], result: str
) -> int:
    """Trains, or does a dry run; `write` writes the run's options, `result` is the model's folder.

    Raises `UserError` where training cannot go on.
    """
    from magvit2_pytorch.training.dry_run import dry_run
    from magvit2_pytorch.training.optimization import NonFiniteTraining
    from magvit2_pytorch.training.processes import LostProcess

    echo = trainer.accelerator.print
    if options.dry_run:
        with user_errors((ValueError, OSError, MemoryError, LostProcess)):
            echo(dry_run(trainer))
        return 0
    folder = options.folder
    if trainer.accelerator.is_main_process:
        write(folder / CONFIG_FILE)
    parameters = sum(p.numel() for p in trainer.task.model.parameters())
    echo(f"Training {parameters:,} parameters on {trainer.accelerator.device}, into {folder}/")
    errors = user_errors((NonFiniteTraining, LostProcess))
    with errors, trainer.trackers(run_name=folder.name):
        trainer.train()
    echo(f"Trained {trainer.step} steps. Wrote {folder / result}/")
    return 0


def _build_trainer(
    data: str,
    options: RunOptions,
    kind: ModelKind,
    model: "TokenizerConfig | Tokenizer1dConfig",
    training: "TrainingConfig",
) -> "VideoTokenizerTrainer | Tokenizer1dTrainer":
    """The trainer of a new run, or of one that is resumed."""
    if not as_path(data).exists():
        raise UserError(f"there is no {data}: DATA is a folder of {options.type}")
    images, init_from = options.images, options.init_from
    if images is not None and not as_path(images).exists():
        raise UserError(f"there is no {images}: --images is a folder of images")
    start = None if init_from is None else find_tokenizer(init_from, "--init_from")
    checkpoint = find_checkpoint(options.folder / "checkpoints", options.resume)
    import torch

    torch.manual_seed(training.seed)
    with user_errors(to=UsageError):
        tokenizer = kind.model.from_config(model)
    if start is not None and checkpoint is None:
        start_from(tokenizer, start)
    with user_errors():
        trainer = kind.trainer(
            tokenizer,
            dataset_folder=data,
            dataset_type=options.type,
            image_folder=images,
            accelerate_kwargs=options.accelerate_kwargs,
            **{field.name: getattr(training, field.name) for field in fields(training)},
        )
        if options.resume is not None:
            trainer.resume(options.resume)
    return trainer


def files_first(
    args: Sequence[str], name: str = "train", default: str = DEFAULT_PRESET
) -> list[str]:
    """Moves --config and --preset to the front of the command line.

    The last of several values wins, so that typed options override those in files wherever --config
    stands. The preset is the one that is typed, or that of the last file that names one. There is
    none if only --init_from says which model it is. A --model becomes --tokenizer: to the parser,
    `model` is the section of the options --model.NAME.
    """
    parser = argparse.ArgumentParser(prog=f"magvit2 {name}", add_help=False, allow_abbrev=False)
    parser.add_argument("--config", action="append", default=[])
    parser.add_argument("--preset")
    parser.add_argument("--init_from")
    parser.add_argument("--model", "--tokenizer", dest="tokenizer")
    known, rest = parser.parse_known_args(args)
    default = None if known.init_from and not known.config else default
    presets = [known.preset, *map(_preset_in, reversed(known.config)), default]
    first = next(filter(None, presets), None)
    files = (word for file in known.config for word in ("--config", str(as_path(file))))
    start = ["--init_from", known.init_from] if known.init_from else []
    model = ["--tokenizer", known.tokenizer] if known.tokenizer else []
    return [*files, *(["--preset", first] if first else []), *start, *model, *rest]


def _preset_in(file: str) -> str | None:
    import yaml

    try:
        text = as_path(file).read_bytes().decode("utf-8-sig")
    except OSError:  # the main parser reports the error, as it does the next one
        return None
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise UsageError(
            f"--config {file} is not text in UTF-8 but perhaps in UTF-16 or Latin-1: save it as "
            "UTF-8"
        )
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError:
        return None
    name = values.get("preset") if isinstance(values, dict) else None
    return name if isinstance(name, str) else None


def add_arguments(parser: ArgumentParser, args: Sequence[str]) -> None:
    """Adds all options, with the defaults of the preset in `args`, which `files_first` sorted."""
    # A usage line with a hundred options would not be readable.
    parser.usage = "magvit2 train DATA -o OUTPUT [--preset NAME] [--config FILE] [options]"
    name = args[args.index("--preset") + 1] if "--preset" in args else DEFAULT_PRESET
    kind = ModelKind.of_preset(name)
    with user_errors(to=UsageError):
        model, training = kind.presets.model(name), kind.presets.training(name)
    if "--preset" not in args and "--init_from" in args:
        model, training = _options_of(args[args.index("--init_from") + 1])
    add_function(parser, train, skip=("preset", "model", "training"))
    add_files(parser, [name for each in ModelKind.all() for name in each.presets], name)
    group = parser.add_argument_group(f"training, recommended values for {name}")
    add_fields(group, kind.training, training, section="training", skip=FROM_OUTPUT)
    group = parser.add_argument_group(f"model, values of the preset {name}")
    add_fields(group, kind.config, model, section="model", prefix="model.")


def add_files(parser: ArgumentParser, presets: Sequence[str], name: str) -> None:
    """Adds --preset, with the default `name`, and --config."""
    parser.add_argument(
        "--preset",
        type=Literal[tuple(presets)],
        default=name,
        metavar="NAME",
        help=f"Preset that sets the defaults of model and training: {', '.join(presets)}.",
    )
    parser.add_argument(
        "--config",
        action=ActionConfigFile,
        help="YAML file of options in the form of OUT/config.yaml.",
    )


def _options_of(source: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of a trained tokenizer, and the recipe of its preset."""
    from magvit2_pytorch.tokenizer.model import VideoTokenizer
    from magvit2_pytorch.tokenizer.presets import PRESETS, preset, recipe
    from magvit2_pytorch.tokenizer.tokenizer_config import TokenizerConfig

    with user_errors(prefix=f"cannot start from {source}"):
        config = VideoTokenizer.from_pretrained(find_tokenizer(source, "--init_from")).config
    equal = (name for name in PRESETS if TokenizerConfig(**preset(name)) == config)
    options = {field.name: getattr(config, field.name) for field in fields(config)}
    return options, next(map(recipe, equal), {})


def run(values: Any) -> int:
    """Trains with the parsed values of the arguments that `add_arguments` added."""
    kind = ModelKind.of_preset(values.preset)
    with user_errors(to=UsageError):
        model = kind.config.from_dict(vars(values.model))
        training = kind.training(**training_options(values))
    return call_function(train, vars(values) | dict(model=model, training=training))


def training_options(values: Any) -> dict[str, Any]:
    """Training options from parsed values, with those that other options determine."""
    folder = as_path(values.output)
    folders = dict(results_folder=str(folder), checkpoints_folder=str(folder / "checkpoints"))
    tracking = {"use_wandb_tracking": True} if values.wandb else {}
    return vars(values.training) | tracking | folders


def write_config(
    path: Path,
    model: dict[str, Any],
    training: "LoopConfig",
    skip: Sequence[str] = FROM_OUTPUT,
    **others: Any,
) -> None:
    """Writes all options of a run in the form of a preset, for --config, but for `skip`."""
    import yaml

    from magvit2_pytorch.atomic import replacing

    options = {n: v for n, v in training.to_dict().items() if n not in skip}
    sections = others | {"model": model, "training": options}
    with replacing(path) as part:
        text = yaml.safe_dump(sections, sort_keys=False, allow_unicode=True)
        part.write_text(text, encoding="utf-8")


def start_from(tokenizer: "VideoTokenizer | Tokenizer1d", source: str) -> None:
    """Loads the weights of a trained tokenizer, inflated if needed."""
    from magvit2_pytorch.convert.inflate import inflate_into
    from magvit2_pytorch.tokenizer.model import VideoTokenizer

    with user_errors((ValueError, OSError, RuntimeError), prefix=f"cannot start from {source}"):
        if not isinstance(tokenizer, VideoTokenizer):
            # No weight depends on sizes or numbers of tokens.
            tokenizer.load_state_dict(type(tokenizer).from_pretrained(source).state_dict())
            return
        inflate_into(tokenizer, VideoTokenizer.from_pretrained(source))


def find_checkpoint(folder: Path, resume: str | None) -> Path | None:
    """The checkpoint given by --resume; None for a new run.

    Raises `UserError` if it does not exist, or if a new run would mix its checkpoints with those
    of an older run.
    """
    from magvit2_pytorch.training.checkpoints import Checkpoints

    checkpoints = Checkpoints(folder)
    if resume is not None:
        with user_errors(FileNotFoundError):
            return checkpoints.find(resume)
    if steps := checkpoints.steps():
        raise UserError(
            f"{folder} holds checkpoints up to step {max(steps)}: continue with --resume latest, "
            "or choose another --output"
        )
    return None
