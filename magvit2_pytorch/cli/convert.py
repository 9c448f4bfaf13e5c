"""`magvit2 convert`: converts another project's checkpoint."""

from typing import TYPE_CHECKING, Any, Literal

from magvit2_pytorch.atomic import as_path
from magvit2_pytorch.cli.info import format_lines
from magvit2_pytorch.cli.model_folder import UserError, output_folder, user_errors

if TYPE_CHECKING:
    from magvit2_pytorch.discriminators.models import FrameDiscriminator, VideoDiscriminator
    from magvit2_pytorch.tokenizer.model import VideoTokenizer
    from magvit2_pytorch.weights import Tensors

DISCRIMINATOR_FILE = "discriminator.safetensors"


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
    """Converts a checkpoint of O2-MAGVIT2 or VidTok into a tokenizer for the other commands.

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
