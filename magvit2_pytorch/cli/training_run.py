"""Training commands: presets, configuration files, and the run.

Model options are the fields of a model's configuration, as --model.NAME; training options those of
its training configuration, as --NAME. In a file they stand under `model:` and `training:`.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from jsonargparse import ActionConfigFile, ArgumentParser

from magvit2_pytorch.atomic import as_path
from magvit2_pytorch.cli.arguments import add_fields, add_function, call_function
from magvit2_pytorch.cli.options import Device, UsageError, UserError, find_device, user_errors

if TYPE_CHECKING:
    from magvit2_pytorch.config import Presets
    from magvit2_pytorch.training.loop_config import LoopConfig
    from magvit2_pytorch.training.trainer import Trainer

CONFIG_FILE = "config.yaml"
FROM_OUTPUT = ("results_folder", "checkpoints_folder")
"""Training options that --output determines."""
OF_ONE_START = ("resume", "dry_run", "wandb", "minutes")
"""Options of a command that config.yaml leaves out: of one start, or of training too."""

DESCRIPTION = """

Defaults come from the preset and its recipe. A --config file overrides them, and typed options
override both. The output folder also gets:

  config.yaml     all options of this run, for --config
  checkpoints/    for --resume: a folder for each of the last saved steps, and the best
  log.jsonl, run.json, curves.png, and of frames step-*.mp4 and .png: logs and samples

Ctrl-C saves a checkpoint and prints how to resume. For several GPUs or processes:
accelerate launch -m magvit2_pytorch {command} ..."""
"""End of each command's description."""


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

    def find_checkpoint(self) -> Path | None:
        """The checkpoint given by --resume; None for a new run.

        Raises `UserError` if it does not exist, or if a new run would mix its checkpoints with
        those of an older run.
        """
        from magvit2_pytorch.training.checkpoints import Checkpoints

        checkpoints = Checkpoints(self.folder / "checkpoints")
        if self.resume is not None:
            with user_errors(FileNotFoundError):
                return checkpoints.find(self.resume)
        if steps := checkpoints.steps():
            raise UserError(
                f"{checkpoints.folder} holds checkpoints up to step {max(steps)}: continue with "
                "--resume latest, or choose another --output"
            )
        return None

    def make_trainer(
        self, cls: Callable[..., "Trainer"], *models: Any, training: "LoopConfig", **data: Any
    ) -> "Trainer":
        """The trainer of a new or resumed run; raises `UserError`."""
        on_cpu = self.device != "auto" and find_device(self.device) == "cpu"
        data["accelerate_kwargs"] = {"cpu": True} if on_cpu else None
        with user_errors():
            trainer = cls(*models, **data, **vars(training))
            if self.resume is not None:
                trainer.resume(self.resume)
        return trainer


class ModelKind(NamedTuple):
    """Presets of one kind of model, and the classes of its options."""

    presets: "Presets"
    config: type
    """Fields are options of the model."""
    training: type
    """Fields are options of training."""
    skip: tuple[str, ...] = FROM_OUTPUT
    """Fields that are not options."""
    read: Callable[[dict[str, Any]], Any] | None = None
    """Makes the model's configuration from its options; by default `config.from_dict`."""
    names: tuple[str, ...] = ()
    """Presets to choose from, if more than `presets`."""


@dataclass(frozen=True)
class TrainingCommand:
    """A command whose options and defaults depend on a preset."""

    function: Callable[..., int]
    usage: str
    """Arguments that are required."""
    kind: Callable[[str], ModelKind]
    """The kind of a preset, or one of the kinds if the name is unknown."""
    options_of: Callable[[str], tuple[dict[str, Any], dict[str, Any]]] | None = None
    """Options of model and training of the source that --init_from names."""

    @property
    def name(self) -> str:
        return self.function.__name__.replace("_", "-")

    @property
    def preset(self) -> str:
        """Name of the default preset."""
        return signature(self.function).parameters["preset"].default

    def add_arguments(self, parser: ArgumentParser, args: Sequence[str]) -> None:
        """Adds all options, with defaults of the preset in sorted `args`."""
        parser.description += DESCRIPTION.format(command=self.name)
        # A usage line with a hundred options would not be readable.
        parser.usage = (
            f"magvit2 {self.name} {self.usage} -o OUTPUT [--preset NAME] [--config FILE] [options]"
        )
        name = args[args.index("--preset") + 1] if "--preset" in args else self.preset
        kind = self.kind(name)
        with user_errors(to=UsageError):
            model, training = kind.presets.model(name), kind.presets.training(name)
        if self.options_of is not None and "--preset" not in args and "--init_from" in args:
            model, training = self.options_of(args[args.index("--init_from") + 1])
        add_function(parser, self.function, skip=("preset", "model", "training"))
        presets = kind.names or tuple(kind.presets)
        parser.add_argument(
            "--preset",
            type=Literal[presets],
            default=name,
            metavar="NAME",
            help=f"Preset that sets the defaults of model and training: {', '.join(presets)}.",
        )
        parser.add_argument(
            "--config",
            action=ActionConfigFile,
            help="YAML file of options in the form of OUT/config.yaml.",
        )
        group = parser.add_argument_group(f"training, recommended values for {name}")
        add_fields(group, kind.training, training, section="training", skip=kind.skip)
        group = parser.add_argument_group(f"model, values of the preset {name}")
        add_fields(group, kind.config, model, section="model", prefix="model.", skip=kind.skip)

    def run(self, values: Any) -> int:
        """Trains with the parsed values of the arguments that `add_arguments` added."""
        kind, folder = self.kind(values.preset), as_path(values.output)
        options = vars(values.training)
        options |= dict(results_folder=str(folder), checkpoints_folder=str(folder / "checkpoints"))
        if values.wandb:
            options["use_wandb_tracking"] = True
        if getattr(values, "minutes", None) is not None:
            options["max_duration_s"] = values.minutes * 60
        with user_errors(to=UsageError):
            model = (kind.read or kind.config.from_dict)(vars(values.model))
            training = kind.training(**options)
        return call_function(self.function, vars(values) | dict(model=model, training=training))

    def files_first(self, args: Sequence[str]) -> list[str]:
        """Moves --config and --preset to the front of the command line.

        The last of several values wins, so that typed options override those in files wherever
        --config stands. The preset is the one that is typed, or that of the last file that names
        one. There is none if only --init_from says which model it is. A --model becomes
        --tokenizer: to the parser, `model` is the section of the options --model.NAME.
        """
        parser = argparse.ArgumentParser(
            prog=f"magvit2 {self.name}", add_help=False, allow_abbrev=False
        )
        parser.add_argument("--config", action="append", default=[])
        parser.add_argument("--preset")
        parser.add_argument("--init_from")
        parser.add_argument("--model", "--tokenizer", dest="tokenizer")
        known, rest = parser.parse_known_args(args)
        default = None if known.init_from and not known.config else self.preset
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


def run_training(
    trainer: "Trainer",
    options: TrainOptions,
    skip: Sequence[str] = FROM_OUTPUT,
    model: dict[str, Any] | None = None,
    **others: Any,
) -> int:
    """Trains, or does a dry run.

    Writes the options of model (by default all), training (but for `skip`) and command (`others`
    and those that do not say how to run it) in the form of a preset, for --config. Raises
    `UserError` where training cannot go on.
    """
    import yaml

    from magvit2_pytorch.atomic import replace_text
    from magvit2_pytorch.training.dry_run import dry_run
    from magvit2_pytorch.training.optimization import NonFiniteTraining
    from magvit2_pytorch.training.processes import LostProcess

    echo, folder = trainer.accelerator.print, options.folder
    if options.dry_run:
        with user_errors((ValueError, OSError, MemoryError, LostProcess)):
            echo(dry_run(trainer))
        return 0
    if trainer.accelerator.is_main_process:
        model = trainer.task.describe() if model is None else model
        values = {n: v for n, v in trainer.config.to_dict().items() if n not in skip}
        command = {n: v for n, v in vars(options).items() if n not in OF_ONE_START}
        sections = others | command | {"model": model, "training": values}
        text = yaml.safe_dump(sections, sort_keys=False, allow_unicode=True)
        replace_text(folder / CONFIG_FILE, text)
    parameters = sum(p.numel() for p in trainer.task.model.parameters())
    echo(f"Training {parameters:,} parameters on {trainer.accelerator.device}, into {folder}/")
    errors = user_errors((NonFiniteTraining, LostProcess))
    with errors, trainer.trackers(run_name=folder.name):
        trainer.train()
    name, best = trainer.task.best.name, trainer.checkpoints.best_validation()
    shown = f", best {name} {best[name]:.2f} at step {best['step']}" if name in best else ""
    echo(f"Trained {trainer.step} steps{shown}. Wrote {folder / trainer.task.saved_as}/")
    return 0
