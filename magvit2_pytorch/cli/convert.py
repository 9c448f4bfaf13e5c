"""`magvit2 convert`: converts an O2-MAGVIT2 checkpoint."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from magvit2_pytorch.cli.info import format_lines
from magvit2_pytorch.cli.model_folder import UserError, user_errors

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
) -> int:
    """Converts an O2-MAGVIT2 checkpoint into a tokenizer for the other commands.

    The kind of model (image or video), its size and its layers are read from the weights. A
    pickle that would run code is refused. The output folder can be given to --model; if the
    checkpoint contains a discriminator, it is saved there as discriminator.safetensors.

    Args:
        checkpoint: pytorch_model.bin, model.safetensors, iter_N.ckpt, iter_N_ema.ckpt, or the
            folder of one.
        output: Folder to create. It appears when everything is written, or not at all.
        bit_order: Order of the bits in a code: the first bit is the most (msb) or the least (lsb)
            significant one. By default the checkpoint's own order, which is msb.
    """
    folder = Path(output).expanduser()
    _check_new(folder)
    from magvit2_pytorch.atomic import replacing_folder
    from magvit2_pytorch.convert.conversion import read_checkpoint, tokenizer_from_state
    from magvit2_pytorch.discriminators.models import save_discriminator

    with user_errors():
        weights = read_checkpoint(Path(checkpoint).expanduser())
        tokenizer = tokenizer_from_state(weights.tokenizer, checkpoint, bit_order)
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


def _check_new(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: name a folder")
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty: name a new folder, or remove its contents")


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
    summary = {
        "model": "video" if config.residual_conv_kernel_size == 3 else "images",
        "parameters": count(tokenizer),
        "compression": f"{tokenizer.time_factor} x {space} x {space}",
        "bits": f"{tokenizer.quantizer.num_bits} to a code, {config.lfq_bit_order}",
        "bits_per_pixel": tokenizer.bits_per_pixel,
        "discriminator": no_discriminator,
    }
    if discriminator is not None:
        size = " x ".join(map(str, discriminator.network.head.input_size))
        summary["discriminator"] = f"{count(discriminator):,} parameters, for {size}"
    return summary
