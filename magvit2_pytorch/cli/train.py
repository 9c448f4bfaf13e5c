"""`magvit2 train`, `train-generator` and `train-sr`: train a model of each kind."""

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from magvit2_pytorch.atomic import as_path
from magvit2_pytorch.cli.options import (
    Model,
    TrainingData,
    UsageError,
    UserError,
    find_tokenizer,
    load_tokenizer,
    user_errors,
)
from magvit2_pytorch.cli.training_run import (
    FROM_OUTPUT,
    ModelKind,
    TrainingCommand,
    TrainOptions,
    run_training,
)

if TYPE_CHECKING:
    from magvit2_pytorch.super_resolution import SuperResolutionConfig
    from magvit2_pytorch.tokenizer.model import VideoTokenizer
    from magvit2_pytorch.tokenizer.tokenizer_config import TokenizerConfig
    from magvit2_pytorch.tokenizer_1d import Tokenizer1d, Tokenizer1dConfig
    from magvit2_pytorch.training.generator_task import GeneratorTrainingConfig
    from magvit2_pytorch.training.super_resolution_task import SuperResolutionTrainingConfig
    from magvit2_pytorch.training.training_config import TrainingConfig


@dataclass(frozen=True, kw_only=True)
class RunOptions(TrainOptions):
    """Options of training a tokenizer."""

    type: Literal["videos", "images"] = "videos"
    """Kind of training examples: clips of videos, or images."""
    images: str | None = None
    """Folder of additional images to train on, in a fraction --image_frac of the passes."""
    init_from: str | None = None
    """Start from a trained or converted tokenizer or run, or hf://OWNER/NAME. Without --preset and
    --config it also gives the options of the model. An image tokenizer whose layers are the same
    apart from time is inflated, such as o2-image to o2, and so is one with smaller patches. With
    --freeze_encoder true, codes of that tokenizer decode with the new one."""


def train(
    data: TrainingData,
    /,
    *,
    preset: str = "small",
    options: RunOptions,
    model: "TokenizerConfig | Tokenizer1dConfig",
    training: "TrainingConfig",
) -> int:
    """Trains a tokenizer on a folder of videos or images.

    The trained tokenizer, for --model of the other commands, is in the folder tokenizer/ of the
    output.
    """
    if not as_path(data).exists():
        raise UserError(f"there is no {data}: DATA is a folder of {options.type}")
    images = options.images
    if images is not None and not as_path(images).exists():
        raise UserError(f"there is no {images}: --images is a folder of images")
    start = options.init_from and find_tokenizer(options.init_from, "--init_from")
    checkpoint = options.find_checkpoint()
    import torch

    from magvit2_pytorch.tokenizer.model import VideoTokenizer
    from magvit2_pytorch.tokenizer_1d import Tokenizer1d, Tokenizer1dConfig
    from magvit2_pytorch.training.sequence_task import Tokenizer1dTrainer
    from magvit2_pytorch.training.tokenizer_task import VideoTokenizerTrainer

    torch.manual_seed(training.seed)
    is_sequence = isinstance(model, Tokenizer1dConfig)
    if start is not None and training.freeze_encoder and not is_sequence:
        model = replace(model, codes_of=_codes_of(start))
    with user_errors(to=UsageError):
        tokenizer = (Tokenizer1d if is_sequence else VideoTokenizer).from_config(model)
    if start is not None and checkpoint is None:
        _start_from(tokenizer, start)
    trainer = options.make_trainer(
        Tokenizer1dTrainer if is_sequence else VideoTokenizerTrainer,
        tokenizer,
        training=training,
        dataset_folder=data,
        dataset_type=options.type,
        image_folder=images,
    )
    return run_training(trainer, options, data=data, preset=preset)


def _start_from(tokenizer: "VideoTokenizer | Tokenizer1d", source: str) -> None:
    """Loads the weights of a trained tokenizer, inflated if needed."""
    from magvit2_pytorch.convert.inflate import inflate_into
    from magvit2_pytorch.tokenizer.model import VideoTokenizer

    with user_errors((ValueError, OSError, RuntimeError), prefix=f"cannot start from {source}"):
        trained = type(tokenizer).from_pretrained(source)
        if isinstance(tokenizer, VideoTokenizer):
            inflate_into(tokenizer, trained)
        else:  # no weight depends on sizes or numbers of tokens
            tokenizer.load_state_dict(trained.state_dict())


def _codes_of(source: str) -> str:
    """Fingerprint of the tokenizer whose codes those of `source` are."""
    from magvit2_pytorch.pipelines.fingerprint import fingerprint
    from magvit2_pytorch.tokenizer.model import VideoTokenizer

    with user_errors(prefix=f"cannot start from {source}"):
        trained = VideoTokenizer.from_pretrained(source)
    return trained.config.codes_of or fingerprint(trained)


def _tokenizer_kind(name: str) -> ModelKind:
    from magvit2_pytorch.tokenizer.presets import PRESETS
    from magvit2_pytorch.tokenizer.tokenizer_config import TokenizerConfig
    from magvit2_pytorch.tokenizer_1d import PRESETS_1D, Tokenizer1dConfig
    from magvit2_pytorch.training.sequence_task import SequenceTrainingConfig
    from magvit2_pytorch.training.training_config import TrainingConfig

    kind = ModelKind(PRESETS, TokenizerConfig, TrainingConfig)
    if name in PRESETS_1D:
        kind = ModelKind(PRESETS_1D, Tokenizer1dConfig, SequenceTrainingConfig)
    return kind._replace(names=(*PRESETS, *PRESETS_1D))


def _options_of(source: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of a trained tokenizer, and the recipe of its preset."""
    from magvit2_pytorch.tokenizer.model import VideoTokenizer
    from magvit2_pytorch.tokenizer.presets import PRESETS, preset, recipe
    from magvit2_pytorch.tokenizer.tokenizer_config import TokenizerConfig

    with user_errors(prefix=f"cannot start from {source}"):
        config = VideoTokenizer.from_pretrained(find_tokenizer(source, "--init_from")).config
    equal = (name for name in PRESETS if TokenizerConfig(**preset(name)) == config)
    return dict(vars(config)), next(map(recipe, equal), {})


@dataclass(frozen=True, kw_only=True)
class GeneratorRunOptions(TrainOptions):
    """Options of training a generator."""

    class_conditional: bool = False
    """Condition on classes: the top folders of the videos that were tokenized."""


def train_generator(
    codes: str,
    /,
    *,
    preset: str = "ar-tiny",
    options: GeneratorRunOptions,
    model: dict[str, Any],
    training: "GeneratorTrainingConfig",
) -> int:
    """Trains a generator on the codes of videos.

    The end of each video is held out. The generator of the best validation, for --generator of the
    other commands, is in the folder generator/ of the output.

    Args:
        codes: Folder of code files or shards that `magvit2 tokenize` wrote.
    """
    options.find_checkpoint()
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
    trainer = options.make_trainer(
        GeneratorTrainer, generator, training=training, dataset_folder=codes
    )
    shown = {name: value for name, value in model.items() if name != "kind"}
    return run_training(trainer, options, model=shown, codes=codes, preset=preset)


FROM_CODES = (
    "kind", "levels", "classes", "grid", "tokenizer_fingerprint", "num_tokens", "time_factor",
    "space_factor",
)  # fmt: skip
"""Options of a generator that its preset and the codes determine."""


def _generator_kind(name: str) -> ModelKind:
    from magvit2_pytorch.generators.generator import GENERATOR_PRESETS, GENERATORS
    from magvit2_pytorch.training.generator_task import GeneratorTrainingConfig

    with user_errors(to=UsageError):
        kind = GENERATOR_PRESETS.model(name)["kind"]
    config, skip = GENERATORS[kind].config_class, FROM_OUTPUT + FROM_CODES
    # A configuration needs the codes: what is read are its options.
    return ModelKind(
        GENERATOR_PRESETS, config, GeneratorTrainingConfig, skip, partial(dict, kind=kind)
    )


@dataclass(frozen=True, kw_only=True)
class UpscalerRunOptions(TrainOptions):
    """Options of training super-resolution."""

    type: Literal["videos", "images"] = "videos"
    """Files of DATA to train on: videos, of which clips are taken, or images."""
    minutes: float | None = None
    """Training time; the same as --max_duration_s in minutes."""

    def __post_init__(self):
        if self.minutes is not None and self.minutes <= 0:
            raise UsageError(f"--minutes {self.minutes:g}: must be above 0")


def train_sr(
    data: TrainingData,
    /,
    *,
    tokenizer: Model,
    preset: str = "x2-small",
    options: UpscalerRunOptions,
    model: "SuperResolutionConfig",
    training: "SuperResolutionTrainingConfig",
) -> int:
    """Trains super-resolution to enlarge what a tokenizer decodes.

    Training frames are resized, encoded and decoded by the frozen tokenizer, half of them from
    codes with errors like a generator's, and compared with the frames before. The trained network,
    for --model of `upscale` and --upscale of `generate`, is in the folder upscaler/ of the output.

    Args:
        tokenizer: Folder of the tokenizer or of the run that trained it, or hf://OWNER/NAME;
            --model means the same.
    """
    if not as_path(data).exists():
        raise UserError(f"there is no {data}: DATA is a folder of {options.type}")
    options.find_checkpoint()
    frozen, _ = load_tokenizer(tokenizer, "cpu")
    import torch

    from magvit2_pytorch.super_resolution import SuperResolution
    from magvit2_pytorch.training.super_resolution_task import SuperResolutionTrainer

    torch.manual_seed(training.seed)
    with user_errors():
        upscaler = SuperResolution.from_config(model)
    trainer = options.make_trainer(
        SuperResolutionTrainer,
        frozen,
        upscaler,
        training=training,
        dataset_folder=data,
        dataset_type=options.type,
    )
    skip = _upscaler_kind(preset).skip
    return run_training(trainer, options, skip, data=data, tokenizer=tokenizer, preset=preset)


def _upscaler_kind(_name: str) -> ModelKind:
    from magvit2_pytorch.super_resolution import SR_PRESETS, SuperResolutionConfig
    from magvit2_pytorch.training.super_resolution_task import (
        WITHOUT_EFFECT,
        SuperResolutionTrainingConfig,
    )

    skip = FROM_OUTPUT + WITHOUT_EFFECT
    return ModelKind(SR_PRESETS, SuperResolutionConfig, SuperResolutionTrainingConfig, skip)


TRAINING = {
    command.name: command
    for command in (
        TrainingCommand(train, "DATA", _tokenizer_kind, _options_of),
        TrainingCommand(train_generator, "CODES", _generator_kind),
        TrainingCommand(train_sr, "DATA --model RUN", _upscaler_kind),
    )
}
"""Commands by their names."""
