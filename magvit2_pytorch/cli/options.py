"""Options that several commands have."""

import sys
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Literal

from magvit2_pytorch.cli.model_folder import (
    Device,
    check_counts,
    find_device,
    find_model,
    load_tokenizer,
    user_errors,
)

if TYPE_CHECKING:
    from magvit2_pytorch.pipelines.fingerprint import TokenizerId
    from magvit2_pytorch.pipelines.inference import Inference
    from magvit2_pytorch.super_resolution import SuperResolution
    from magvit2_pytorch.tokenizer_1d import AnyTokenizer

Model = Annotated[str, "Folder of the tokenizer or of the run that trained it, or hf://OWNER/NAME."]
UPSCALER_HELP = "Folder of the super-resolution or of the run that trained it, or hf://OWNER/NAME."
UpscalerModel = Annotated[str, UPSCALER_HELP]
GeneratorModel = Annotated[str, "Folder of the generator, or of the run that trained it."]
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
        """The tokenizer, its ID, and these options for the library.

        Raises `UserError` if the tokenizer does not support files or these options.
        """
        tokenizer, tokenizer_id = load_tokenizer(model, self.device)
        from magvit2_pytorch.pipelines.fingerprint import check_supports_files
        from magvit2_pytorch.pipelines.inference import Inference, choose_precision

        values = {field.name: getattr(self, field.name) for field in fields(self)}
        del values["device"]
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

        names = (field.name for field in fields(self) if field.name != "device")
        inference = Inference(**{name: getattr(self, name) for name in names})
        with user_errors():
            inference.check(upscaler)
        return upscaler, inference
