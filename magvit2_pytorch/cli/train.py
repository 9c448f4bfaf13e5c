"""`magvit2 train`: a folder of videos or images to a tokenizer.

The options of the model are the fields of `TokenizerConfig`, as --model.NAME, and those of
training the fields of `TrainingConfig`, as --NAME.
"""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jsonargparse import ActionConfigFile, ArgumentParser

from magvit2_pytorch.cli.arguments import add_fields, add_function
from magvit2_pytorch.cli.config_files import selected_preset
from magvit2_pytorch.cli.errors import UsageError, UserError, user_errors
from magvit2_pytorch.cli.model_folder import Device, find_device, find_tokenizer

if TYPE_CHECKING:
    from magvit2_pytorch.tokenizer.config import TokenizerConfig
    from magvit2_pytorch.tokenizer.model import VideoTokenizer
    from magvit2_pytorch.training.config import TrainingConfig

CONFIG_FILE = "config.yaml"
FROM_OUTPUT = ("results_folder", "checkpoints_folder")
"""Options of training that --output decides."""


def train(
    data: str,
    /,
    *,
    output: str,
    preset: str = "small",
    type: Literal["videos", "images"] = "videos",
    images: str | None = None,
    init_from: str | None = None,
    resume: str | None = None,
    wandb: bool = False,
    dry_run: bool = False,
    device: Device = "auto",
    model: "TokenizerConfig",
    training: "TrainingConfig",
) -> int:
    """Trains a tokenizer on a folder of videos or images.

    Options start from the preset and its recipe. What a --config file says goes before these, and
    what you type before both. The output folder gets:

      tokenizer/      the trained tokenizer, for --model of the other commands
      config.yaml     every option of this run, to give to --config again
      checkpoints/    all that --resume needs: a folder for each of the last steps saved, and best
      log.jsonl, run.json, curves.png, step-*.mp4 and .png: how it went

    Ctrl-C saves a checkpoint and says how to go on. Several GPUs or processes:
    accelerate launch -m magvit2_pytorch train ...

    Args:
        data: Folder of media files, walked to the bottom; or a .txt list, a .csv table with a
            column `path`, or one video.
        output: Folder for everything that the run writes.
        preset: Where the options below start from, for model and training.
        type: What the training examples are: clips of videos, or images.
        images: Folder of images to train on besides, in a share --image_frac of the passes.
        init_from: Start from a trained tokenizer or run, or hf://OWNER/NAME. One of images, with
            the same layers but for time, is inflated: o2-image to o2.
        resume: Go on from a checkpoint: its folder, `latest` for the last of this output folder,
            or `auto` for the last that is not damaged, if there is one.
        wandb: The same as --use_wandb_tracking true.
        dry_run: Train two steps of everything, say what the whole run will take in memory, time
            and disk, and leave nothing behind.
        device: Where to train; auto takes GPUs if there are any.
        model: What the tokenizer is made of.
        training: How it is trained.
    """
    if not Path(data).expanduser().exists():
        raise UserError(f"there is no {data}: DATA is a folder of {type}")
    if images is not None and not Path(images).expanduser().exists():
        raise UserError(f"there is no {images}: --images is a folder of images")
    start = None if init_from is None else find_tokenizer(init_from, "--init_from")
    folder = Path(output).expanduser()
    checkpoint = find_checkpoint(folder / "checkpoints", resume)
    import torch

    from magvit2_pytorch.tokenizer.model import VideoTokenizer
    from magvit2_pytorch.training.not_finite import NonFiniteTraining
    from magvit2_pytorch.training.processes import LostProcess
    from magvit2_pytorch.training.trainer import VideoTokenizerTrainer

    on_cpu = device != "auto" and find_device(device) == "cpu"
    torch.manual_seed(training.seed)
    with user_errors(to=UsageError):
        tokenizer = VideoTokenizer.from_config(model)
    if start is not None and checkpoint is None:
        start_from(tokenizer, start)
    with user_errors():
        trainer = VideoTokenizerTrainer(
            tokenizer,
            dataset_folder=data,
            dataset_type=type,
            image_folder=images,
            accelerate_kwargs={"cpu": True} if on_cpu else None,
            **{field.name: getattr(training, field.name) for field in fields(training)},
        )
        if resume is not None:
            trainer.resume(resume)
    say = trainer.accelerator.print
    if dry_run:
        with (
            user_errors(),
            user_errors(OSError),
            user_errors(MemoryError),
            user_errors(LostProcess),
        ):
            say(trainer.dry_run())
        return 0
    if trainer.accelerator.is_main_process:
        run = dict(data=data, output=output, preset=preset, type=type, device=device)
        run |= dict(images=images, init_from=init_from)
        write_config(folder / CONFIG_FILE, model, training, **run)
    parameters = sum(p.numel() for p in trainer.tokenizer.parameters())
    say(f"Training {parameters:,} parameters on {trainer.accelerator.device}, into {folder}/")
    with (
        user_errors(NonFiniteTraining),
        user_errors(LostProcess),
        trainer.trackers(run_name=folder.name),
    ):
        trainer.train()
    say(f"Trained {trainer.step} steps. Wrote {folder / 'tokenizer'}/")
    return 0


def add_arguments(parser: ArgumentParser, args: Sequence[str]) -> None:
    """Adds all options; those of model and training start from the preset that `args` name."""
    from magvit2_pytorch.tokenizer.config import TokenizerConfig
    from magvit2_pytorch.tokenizer.presets import PRESETS, preset
    from magvit2_pytorch.training.config import TrainingConfig
    from magvit2_pytorch.training.recipes import RECIPES, recipe

    # A hundred options one after the other would say nothing.
    parser.usage = "magvit2 train DATA -o OUTPUT [--preset NAME] [--config FILE] [options]"
    with user_errors(to=UsageError):
        name = selected_preset(args, default="small")
        model = preset(name)
    add_function(parser, train, skip=("preset", "model", "training"))
    parser.add_argument(
        "--preset",
        type=Literal[tuple(PRESETS)],
        default=name,
        help="Where the options below start from, for model and training.",
    )
    parser.add_argument(
        "--config", action=ActionConfigFile, help="YAML file of options, such as OUT/config.yaml."
    )
    group = parser.add_argument_group(f"training, as recommended for {name}")
    training = recipe(name) if name in RECIPES else {}
    add_fields(group, TrainingConfig, training, skip=FROM_OUTPUT)
    group = parser.add_argument_group(f"model, of the preset {name}")
    add_fields(group, TokenizerConfig, model, prefix="model.")


def run(values: Any) -> int:
    """Trains by what was parsed with the arguments of `add_arguments`."""
    from magvit2_pytorch.tokenizer.config import TokenizerConfig
    from magvit2_pytorch.training.config import TrainingConfig

    options = {f.name: values[f.name] for f in fields(TrainingConfig) if f.name not in FROM_OUTPUT}
    if values.wandb:
        options["use_wandb_tracking"] = True
    folder = Path(values.output).expanduser()
    with user_errors(to=UsageError):
        model = TokenizerConfig.from_dict(vars(values.model))
        training = TrainingConfig(
            **options,
            results_folder=str(folder),
            checkpoints_folder=str(folder / "checkpoints"),
        )
    return train(
        values.data,
        output=values.output,
        preset=values.preset,
        type=values.type,
        images=values.images,
        init_from=values.init_from,
        resume=values.resume,
        dry_run=values.dry_run,
        device=values.device,
        model=model,
        training=training,
    )


def write_config(path: Path, model: "TokenizerConfig", training: "TrainingConfig", **more: Any):
    """All options of a run as YAML, for --config."""
    import yaml

    from magvit2_pytorch.data.replace_file import replacing

    options = {n: v for n, v in training.to_dict().items() if n not in FROM_OUTPUT}
    options = more | options | {"model": model.to_dict()}
    with replacing(path) as part:
        text = yaml.safe_dump(options, sort_keys=False, allow_unicode=True)
        part.write_text(text, encoding="utf-8")


def start_from(tokenizer: "VideoTokenizer", place: str) -> None:
    """Gives it the weights of a trained tokenizer, inflated where that one knows no time."""
    from magvit2_pytorch.tokenizer.inflate import inflate_into
    from magvit2_pytorch.tokenizer.model import VideoTokenizer

    with user_errors(about=f"cannot start from {place}"):
        inflate_into(tokenizer, VideoTokenizer.from_pretrained(place))


def find_checkpoint(folder: Path, resume: str | None) -> Path | None:
    """The checkpoint that --resume stands for, None to start at the first step.

    Raises `UserError` where there is none, and where a new run would mix its checkpoints with an
    older one's.
    """
    from magvit2_pytorch.training.checkpoints import Checkpoints

    checkpoints = Checkpoints(folder)
    if resume is not None:
        with user_errors(FileNotFoundError):
            return checkpoints.find(resume)
    if steps := checkpoints.steps():
        raise UserError(
            f"{folder} holds checkpoints up to step {max(steps)}: go on with --resume latest, "
            "or choose another --output"
        )
    return None
