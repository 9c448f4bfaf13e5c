"""Loads the tokenizer of a command; errors that users can correct."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from magvit2_pytorch.atomic import as_path


class UserError(Exception):
    """An error that the user can fix; the message says how."""

    exit_code = 1


class UsageError(UserError):
    """Invalid command line."""

    exit_code = 2


@contextmanager
def user_errors(
    kind: type[Exception] | tuple[type[Exception], ...] = ValueError,
    to: type[UserError] = UserError,
    prefix: str = "",
) -> Iterator[None]:
    """Converts exceptions of `kind` into `UserError` or `UsageError`.

    The library raises `ValueError` for mistakes of the user; put this around the calls where
    `ValueError` can mean nothing else, and never around a whole command.
    """
    try:
        yield
    except kind as error:
        raise to(f"{prefix}: {error}" if prefix else str(error)) from error


def output_folder(output: str) -> Path:
    """The folder for results; `UserError` if a file has its name."""
    folder = as_path(output)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: name a folder")
    return folder


def check_counts(**counts: int | None) -> None:
    """Raises `UsageError` on a number below 1; None passes."""
    for name, count in counts.items():
        if count is not None and count < 1:
            raise UsageError(f"--{name} {count}: must be at least 1")


if TYPE_CHECKING:
    from magvit2_pytorch.data.split import HeldOut
    from magvit2_pytorch.pipelines.fingerprint import TokenizerId
    from magvit2_pytorch.tokenizer_1d import AnyTokenizer

Device = Literal["auto", "cpu", "cuda"]
HUB = "hf://"
"""Prefix of names on the Hugging Face Hub. Nothing is downloaded without it."""


def find_tokenizer(model: str, option: str = "--model") -> str:
    """Folder or hub name of a tokenizer, or of a run's tokenizer."""
    return find_model(model, "tokenizer", option)


def find_model(name: str, kind: str, option: str) -> str:
    """Folder or hub name of a model, or of a run's folder `kind`."""
    if name.startswith(HUB):
        return name.removeprefix(HUB)
    folder = as_path(name)
    if not folder.exists():
        article = "an" if kind[0] in "aeiou" else "a"
        raise UserError(
            f"there is no {name}: {option} is the folder of {article} {kind}, such as RUN/{kind}, "
            f"or {HUB}OWNER/NAME"
        )
    for candidate in (folder, folder / kind):
        if (candidate / "config.json").is_file():
            return str(candidate)
    raise UserError(
        f"{name} holds no {kind}: give a folder with config.json, or the folder of a run"
    )


def held_out_of(model: str) -> "HeldOut":
    """The record of the run that trained a model; no names if there is none."""
    from magvit2_pytorch.data.split import read_held_out

    folder = as_path(model)
    return read_held_out(folder) or read_held_out(folder.parent)


def load_tokenizer(model: str, device: Device) -> "tuple[AnyTokenizer, TokenizerId]":
    """The tokenizer in eval mode, and its ID."""
    name = find_tokenizer(model)
    from magvit2_pytorch.pipelines.fingerprint import TokenizerId
    from magvit2_pytorch.pipelines.inference import load_tokenizer

    device = find_device(device)
    with user_errors(prefix=f"cannot use {model}"):
        tokenizer = load_tokenizer(name)
    return tokenizer.to(device), TokenizerId.of(tokenizer, model)


class ModelKind(NamedTuple):
    """Presets and classes of one kind of tokenizer."""

    presets: Any
    model: Any
    config: type
    trainer: type
    training: type

    @classmethod
    def all(cls) -> "tuple[ModelKind, ...]":
        """All kinds that `magvit2 train` trains."""
        from magvit2_pytorch.tokenizer.model import VideoTokenizer
        from magvit2_pytorch.tokenizer.presets import PRESETS
        from magvit2_pytorch.tokenizer.tokenizer_config import TokenizerConfig
        from magvit2_pytorch.tokenizer_1d import PRESETS_1D, Tokenizer1d, Tokenizer1dConfig
        from magvit2_pytorch.training.sequence_task import (
            SequenceTrainingConfig,
            Tokenizer1dTrainer,
        )
        from magvit2_pytorch.training.tokenizer_task import VideoTokenizerTrainer
        from magvit2_pytorch.training.training_config import TrainingConfig

        sequence = (Tokenizer1d, Tokenizer1dConfig, Tokenizer1dTrainer, SequenceTrainingConfig)
        return (
            cls(PRESETS, VideoTokenizer, TokenizerConfig, VideoTokenizerTrainer, TrainingConfig),
            cls(PRESETS_1D, *sequence),
        )

    @classmethod
    def of_preset(cls, name: str) -> "ModelKind":
        """The kind of a preset; of an unknown one the first, whose registry names others."""
        return next((kind for kind in cls.all() if name in kind.presets), cls.all()[0])


def find_device(device: Device) -> str:
    """The device; `auto` is a GPU if there is one."""
    import torch

    has_gpu = torch.cuda.is_available()
    if device == "cuda" and not has_gpu:
        raise UserError("--device cuda: torch finds no CUDA device; use auto or cpu")
    return ("cuda" if has_gpu else "cpu") if device == "auto" else device
