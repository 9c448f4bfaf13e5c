"""Errors, models and options that several commands share."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from magvit2_pytorch.atomic import as_path

if TYPE_CHECKING:
    from magvit2_pytorch.data.split import HeldOut
    from magvit2_pytorch.pipelines.fingerprint import TokenizerId
    from magvit2_pytorch.pipelines.inference import Inference
    from magvit2_pytorch.super_resolution import SuperResolution
    from magvit2_pytorch.tokenizer_1d import AnyTokenizer


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
    """Converts exceptions of `kind`, the user's mistakes, into `UserError` or `UsageError`."""
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


Device = Literal["auto", "cpu", "cuda"]
HUB = "hf://"
"""Prefix of names on the Hugging Face Hub. Nothing is downloaded without it."""


def find_tokenizer(model: str, option: str = "--model") -> str:
    """Folder or hub name of a tokenizer, or of a run's tokenizer."""
    return find_model(model, "tokenizer", option)


def find_model(name: str, kind: str, option: str) -> str:
    """Folder or hub name of a model, or of a run's model."""
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
    """Names held out by the run of a model; empty without record."""
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


def find_device(device: Device) -> str:
    """The device; `auto` is a GPU if there is one."""
    import torch

    has_gpu = torch.cuda.is_available()
    if device == "cuda" and not has_gpu:
        raise UserError("--device cuda: torch finds no CUDA device; use auto or cpu")
    return ("cuda" if has_gpu else "cpu") if device == "auto" else device


Model = Annotated[str, "Folder of the tokenizer or of the run that trained it, or hf://OWNER/NAME."]
UPSCALER_HELP = "Folder of the super-resolution or of the run that trained it, or hf://OWNER/NAME."
UpscalerModel = Annotated[str, UPSCALER_HELP]
GeneratorModel = Annotated[str, "Folder of the generator, or of the run that trained it."]
TrainingData = Annotated[
    str,
    "Folder of media files, searched recursively; or a .txt list, a .csv table with a column "
    "`path`, or one video.",
]
ReportFolder = Annotated[str, "Folder for the report."]
Inputs = Annotated[list[str], "Video and image files, and folders of them."]
MediaOutput = Annotated[
    str,
    "For one input, a file name ending in .mp4, .mov, .m4v, .mkv or .gif (for an image, .png, "
    ".jpg, .jpeg, .webp or .bmp); otherwise a folder, which gets .mp4 and .png files with the "
    "names and sub-folders of the inputs.",
]
Size = Annotated[
    int | None, "Resize the short side to this many pixels; by default the file's own size."
]


@dataclass(frozen=True, kw_only=True)
class DeviceOptions:
    """Options of computing with a model of frames."""

    tile_size: int | Literal["auto"] | None = None
    """Compute frames in tiles of this many pixels to a side, or `auto` for the largest tiles that
    fit into memory. For frames that do not fit; results are equal up to rounding."""
    device: Device = "auto"
    """Device to compute on; auto uses a GPU if there is one."""
    precision: Literal["fp32", "bf16", "auto"] = "fp32"
    """Precision of the tokenizer's convolutions. bf16 is faster on hardware that supports it;
    about one code in 50 changes, and the codes decode as well. `auto` tries both on a few frames,
    takes bf16 if it is faster here and nearly all codes agree, and says which it took."""

    def load_upscaler(self, name: str, option: str = "--model") -> "SuperResolution":
        """A super-resolution on the device; raises `UserError` if it cannot be used."""
        name = find_model(name, "upscaler", option)
        from magvit2_pytorch.super_resolution import SuperResolution

        with user_errors(prefix=f"cannot use {name}"):
            return SuperResolution.from_pretrained(name).to(find_device(self.device))


@dataclass(frozen=True, kw_only=True)
class ComputeOptions(DeviceOptions):
    """Options of computing with a tokenizer."""

    num_tokens: str | None = None
    """Tokens of each part of a video, of a 1-D tokenizer: a number, or a share of the patches such
    as share:0.1; in decoding, at most so many of those that there are."""

    def load(
        self, model: str, needs_codes: bool = False
    ) -> "tuple[AnyTokenizer, TokenizerId, Inference]":
        """The tokenizer, its ID, and these options; raises `UserError`."""
        tokenizer, tokenizer_id = load_tokenizer(model, self.device)
        from magvit2_pytorch.pipelines.fingerprint import check_supports_files
        from magvit2_pytorch.pipelines.inference import Inference, choose_precision

        values = {name: value for name, value in vars(self).items() if name != "device"}
        asked = self.num_tokens
        values["num_tokens"] = int(asked) if asked is not None and asked.isdecimal() else asked
        with user_errors():
            check_supports_files(tokenizer, needs_codes)
            if self.precision == "auto":
                values["precision"], reason = choose_precision(tokenizer)
                print(f"magvit2: {reason}", file=sys.stderr)
            inference = Inference(**values)
            inference.check(tokenizer)
        return tokenizer, tokenizer_id, inference


@dataclass(frozen=True, kw_only=True)
class ChunkOptions:
    """Options of videos of any length."""

    chunk_frames: int = 16
    """Frames to compute at a time: fewer need less memory, more may be faster."""

    def __post_init__(self):
        check_counts(chunk_frames=self.chunk_frames)


@dataclass(frozen=True, kw_only=True)
class StreamOptions(ChunkOptions, ComputeOptions):
    """Options of computing videos of any length with a tokenizer."""


@dataclass(frozen=True, kw_only=True)
class UpscaleOptions(ChunkOptions, DeviceOptions):
    """Options of enlarging videos of any length."""

    def load(self, model: str) -> "tuple[SuperResolution, Inference]":
        """The super-resolution, and these options for the library; raises `UserError`."""
        upscaler = self.load_upscaler(model)
        from magvit2_pytorch.pipelines.inference import Inference

        values = {name: value for name, value in vars(self).items() if name != "device"}
        inference = Inference(**values)
        with user_errors():
            inference.check(upscaler)
        return upscaler, inference
