"""`magvit2 info`, `convert` and `export`: describe or convert a model."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

from magvit2_pytorch.atomic import as_path
from magvit2_pytorch.cli.options import (
    HUB,
    Model,
    UsageError,
    UserError,
    find_tokenizer,
    load_tokenizer,
    output_folder,
    user_errors,
)

if TYPE_CHECKING:
    from magvit2_pytorch.discriminators.models import FrameDiscriminator, VideoDiscriminator
    from magvit2_pytorch.tokenizer.model import VideoTokenizer
    from magvit2_pytorch.weights import Tensors

DISCRIMINATOR_FILE = "discriminator.safetensors"


def info(path: str | None = None, /, *, preset: str | None = None, json: bool = False) -> int:
    """Describes a tokenizer, code file, checkpoint, video or image.

    For a tokenizer: parameters, compression, codebook, bits per pixel or latent statistics, layers
    and configuration. For a code file: its header. For a checkpoint: the state of training.

    Args:
        path: Folder of a tokenizer, run or checkpoint, hf://OWNER/NAME, or a file.
        preset: Describe the tokenizer of this preset instead.
        json: Print JSON.
    """
    if (path is None) == (preset is None):
        raise UsageError("info needs a PATH or --preset NAME")
    description = _describe_preset(preset) if path is None else _describe_path(path)
    if json:
        from json import dumps

        print(dumps(description, indent=2))
    else:
        print("\n".join(format_lines(description)))
    return 0


def format_lines(description: dict[str, Any], indent: str = "") -> Iterator[str]:
    """Lines of names and values; a list of rows becomes a table."""
    width = max(map(len, description), default=0)
    for name, value in description.items():
        if isinstance(value, dict):
            yield f"{indent}{name}"
            yield from format_lines(value, indent + "  ")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            yield from (indent + line for line in format_table(value))
        else:
            yield f"{indent}{name:{width}}  {_text(value)}"


def format_table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """A header line and a line for each row; numbers are right-aligned."""
    cells = [list(rows[0]), *([_text(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    left_aligned = [isinstance(value, str) for value in rows[0].values()]
    for line in cells:
        padded = (
            cell.ljust(width) if left else cell.rjust(width)
            for cell, width, left in zip(line, widths, left_aligned, strict=True)
        )
        yield "  ".join(padded).rstrip()


def _text(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _describe_preset(name: str) -> dict[str, Any]:
    from magvit2_pytorch.pipelines.tokenizer_info import describe_preset
    from magvit2_pytorch.tokenizer.presets import PRESETS
    from magvit2_pytorch.tokenizer_1d import PRESETS_1D

    with user_errors(to=UsageError):
        options = (PRESETS_1D if name in PRESETS_1D else PRESETS).model(name)
    return describe_preset(options)


def _describe_path(path: str) -> dict[str, Any]:
    location = as_path(path)
    if not path.startswith(HUB) and not location.exists():
        raise UserError(f"there is no {path}")
    from magvit2_pytorch.media.unusable import UnusableMedia
    from magvit2_pytorch.pipelines.tokenizer_info import (
        describe_checkpoint,
        describe_file,
        is_checkpoint,
        tokenizer_info,
    )

    with user_errors(UnusableMedia):
        if location.is_file():
            return describe_file(location)
        if is_checkpoint(location):
            return describe_checkpoint(location)
    find_tokenizer(path)
    return tokenizer_info(load_tokenizer(path, "cpu")[0])


def convert(
    checkpoint: str,
    /,
    *,
    output: str,
    bit_order: Literal["msb", "lsb"] | None = None,
    levels: str | None = None,
    vidtok_version: Literal["1.0", "1.1"] | None = None,
    interpolation_mode: Literal["nearest", "trilinear"] | None = None,
) -> int:
    """Converts a checkpoint of O2-MAGVIT2 or VidTok into a tokenizer.

    The kind of model, its size and its layers are read from the weights. A pickle that would run
    code is refused. The output folder can be given to --model; if a checkpoint of O2-MAGVIT2
    contains a discriminator, it is saved there as discriminator.safetensors.

    Args:
        checkpoint: O2-MAGVIT2: pytorch_model.bin, model.safetensors, iter_N.ckpt, iter_N_ema.ckpt,
            or the folder of one. VidTok: vidtok_NAME.ckpt, or its tensors as .safetensors.
        output: Folder to create. It appears when everything is written, or not at all.
        bit_order: O2-MAGVIT2: order of the bits in a code: the first bit is the most (msb) or the
            least (lsb) significant one. By default the checkpoint's own order, which is msb.
        levels: VidTok: levels of the FSQ quantizer, such as 8,8,8,8,8,8. Published file names tell.
        vidtok_version: VidTok: the version of its code. Published file names tell.
        interpolation_mode: VidTok: how its decoder doubles frames; by default nearest in 1.0 and
            trilinear in 1.1.
    """
    folder = output_folder(output)
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty: name a new folder, or remove its contents")
    from magvit2_pytorch.atomic import replacing_folder
    from magvit2_pytorch.convert.conversion import read_checkpoint, tokenizer_from_state
    from magvit2_pytorch.discriminators.models import save_discriminator

    with user_errors():
        weights = read_checkpoint(as_path(checkpoint))
        tokenizer = tokenizer_from_state(
            weights.tokenizer,
            checkpoint,
            bit_order=bit_order,
            levels=levels,
            vidtok_version=vidtok_version,
            interpolation_mode=interpolation_mode,
        )
    discriminator = _discriminator(weights.discriminator)
    write_errors = user_errors(OSError, prefix=f"cannot write {output}")
    with write_errors, replacing_folder(folder.resolve()) as part:
        tokenizer.save_pretrained(part)
        if discriminator is not None:
            save_discriminator(discriminator, part / DISCRIMINATOR_FILE)
    summary = _summary(tokenizer, discriminator, "left out" if weights.discriminator else "none")
    if weights.left_out:
        summary["left_out"] = ", ".join(f"{name} ({n})" for name, n in weights.left_out.items())
    print("\n".join(format_lines(summary)))
    print(f"Wrote {folder}/")
    return 0


def _discriminator(state: "Tensors") -> "FrameDiscriminator | VideoDiscriminator | None":
    """The converted discriminator; if it cannot be converted, a warning and None."""
    if not state:
        return None
    from warnings import warn

    from magvit2_pytorch.convert.o2_magvit2 import convert_discriminator

    try:
        return convert_discriminator(state)
    except ValueError as error:
        warn(f"{error}: it is left out", stacklevel=2)
        return None


def _summary(
    tokenizer: "VideoTokenizer",
    discriminator: "FrameDiscriminator | VideoDiscriminator | None",
    no_discriminator: str,
) -> dict[str, Any]:
    from magvit2_pytorch.pipelines.tokenizer_info import count

    config, space = tokenizer.config, tokenizer.space_factor
    summary: dict[str, Any] = {
        "model": "video" if config.residual_conv_kernel_size == 3 else "images",
        "parameters": count(tokenizer),
        "compression": f"{tokenizer.time_factor} x {space} x {space}",
    }
    if config.continuous_dim is not None:
        summary["channels"] = f"{config.continuous_dim}, continuous"
    elif config.use_fsq:
        summary["levels"] = ", ".join(map(str, config.fsq_levels))
    else:
        summary["bits"] = f"{tokenizer.quantizer.num_bits} to a code, {config.lfq_bit_order}"
    if tokenizer.bits_per_pixel is not None:
        summary["bits_per_pixel"] = tokenizer.bits_per_pixel
    summary["discriminator"] = no_discriminator
    if discriminator is not None:
        size = " x ".join(map(str, discriminator.network.head.input_size))
        summary["discriminator"] = f"{count(discriminator):,} parameters, for {size}"
    return summary


def export(
    model: Model,
    /,
    *,
    output: str,
    format: Literal["onnx", "pt2", "both"] = "onnx",
    part: Literal["encode", "decode", "both"] = "both",
) -> int:
    """Exports a tokenizer as programs that run without this library.

    encode turns video in [-1, 1] into codes, and decode turns codes into video; a continuous
    tokenizer has latents instead of codes. Batch, frames, height and width may have any size that
    the strides divide; one frame is an image. Each program is loaded again and compared with the
    tokenizer; if one differs, no file is written. export.json describes inputs and outputs.

    Args:
        output: Folder for encode.onnx, decode.onnx and so on; older files are replaced.
        format: onnx for onnxruntime and others (requires magvit2-pytorch[export]), or pt2 for
            torch.export.load.
        part: The direction to export.
    """
    folder = output_folder(output)
    find_tokenizer(model, "MODEL")
    from magvit2_pytorch.pipelines.export_programs import FORMATS
    from magvit2_pytorch.pipelines.exporting import (
        ProgramMismatch,
        check_exportable,
        export_tokenizer,
    )

    formats = ("onnx", "pt2") if format == "both" else (format,)
    parts = ("encode", "decode") if part == "both" else (part,)
    with user_errors():
        for name in formats:
            FORMATS[name].check_installed()
    tokenizer, tokenizer_id = load_tokenizer(model, "cpu")
    with user_errors():
        check_exportable(tokenizer)
    with user_errors(ProgramMismatch):
        agreements = export_tokenizer(tokenizer, folder, formats, parts, tokenizer_id)
    width = max(map(len, agreements))
    for file, agreement in agreements.items():
        print(f"{file:{width}}  {agreement}")
    print(f"Wrote {folder}/")
    return 0
