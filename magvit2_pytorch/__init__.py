"""MAGVIT-v2 in PyTorch: a video tokenizer to train, stream and build on.

Public names are imported on first use, so importing the package is cheap and needs neither a
GPU nor a network.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from magvit2_pytorch.version import __version__

if TYPE_CHECKING:
    from magvit2_pytorch.generators.generator import load_generator
    from magvit2_pytorch.super_resolution.upscaler import SuperResolution
    from magvit2_pytorch.tokenizer.model import VideoTokenizer
    from magvit2_pytorch.tokenizer.presets import PRESETS, recipe
    from magvit2_pytorch.tokenizer.tokenizer_config import TokenizerConfig
    from magvit2_pytorch.tokenizer_1d.model_1d import PRESETS_1D, Tokenizer1d
    from magvit2_pytorch.tokenizer_1d.sequence_config import Tokenizer1dConfig
    from magvit2_pytorch.training.generator_task import GeneratorTrainer
    from magvit2_pytorch.training.loop_config import LoopConfig
    from magvit2_pytorch.training.super_resolution_task import SuperResolutionTrainer
    from magvit2_pytorch.training.task import Task
    from magvit2_pytorch.training.tokenizer_task import VideoTokenizerTrainer
    from magvit2_pytorch.training.trainer import Trainer
    from magvit2_pytorch.training.training_config import TrainingConfig

_MODULES = {
    "GeneratorTrainer": "training.generator_task",
    "LoopConfig": "training.loop_config",
    "PRESETS": "tokenizer.presets",
    "PRESETS_1D": "tokenizer_1d.model_1d",
    "SuperResolution": "super_resolution.upscaler",
    "SuperResolutionTrainer": "training.super_resolution_task",
    "Task": "training.task",
    "Tokenizer1d": "tokenizer_1d.model_1d",
    "Tokenizer1dConfig": "tokenizer_1d.sequence_config",
    "TokenizerConfig": "tokenizer.tokenizer_config",
    "Trainer": "training.trainer",
    "TrainingConfig": "training.training_config",
    "VideoTokenizer": "tokenizer.model",
    "VideoTokenizerTrainer": "training.tokenizer_task",
    "load_generator": "generators.generator",
    "recipe": "tokenizer.presets",
}

__all__ = [
    "PRESETS",
    "PRESETS_1D",
    "GeneratorTrainer",
    "LoopConfig",
    "SuperResolution",
    "SuperResolutionTrainer",
    "Task",
    "Tokenizer1d",
    "Tokenizer1dConfig",
    "TokenizerConfig",
    "Trainer",
    "TrainingConfig",
    "VideoTokenizer",
    "VideoTokenizerTrainer",
    "__version__",
    "load_generator",
    "recipe",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
