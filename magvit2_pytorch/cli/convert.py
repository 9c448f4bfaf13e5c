"""`magvit2 convert`: a checkpoint of O2-MAGVIT2 to a tokenizer of this library."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from magvit2_pytorch.cli.errors import UserError, user_errors
from magvit2_pytorch.cli.info import lines

if TYPE_CHECKING:
    from magvit2_pytorch.discriminators import FrameDiscriminator, VideoDiscriminator
    from magvit2_pytorch.state_file import State
    from magvit2_pytorch.tokenizer.model import VideoTokenizer

DISCRIMINATOR_FILE = "discriminator.safetensors"


def convert(
    checkpoint: str,
    /,
    *,
    output: str,
    bit_order: Literal["msb", "lsb"] | None = None,
) -> int:
    """Turns a checkpoint of O2-MAGVIT2 into a tokenizer for the other commands.

    Image or video model, its size and its layers are told from the weights. A pickle that would
    run code is refused. The output folder gets what --model wants and, if the checkpoint holds a
    discriminator, that as discriminator.safetensors.

    Args:
        checkpoint: pytorch_model.bin, model.safetensors, iter_N.ckpt, iter_N_ema.ckpt, or the
            folder of one.
        output: Folder to make; it is there when all is written, or not at all.
        bit_order: Whether the first bit of the codes is the most or the least significant one; the
            checkpoint's own order if not given, which is msb.
    """
    folder = Path(output).expanduser()
    _check_new(folder)
    from safetensors import SafetensorError

    from magvit2_pytorch.data.replace_folder import replacing_folder
    from magvit2_pytorch.discriminators.saved import save_discriminator
    from magvit2_pytorch.tokenizer.convert import read_checkpoint, tokenizer_from_state

    with user_errors():
        weights = read_checkpoint(Path(checkpoint).expanduser())
        tokenizer = tokenizer_from_state(weights.tokenizer, checkpoint, bit_order)
    discriminator = _discriminator(weights.discriminator)
    cannot = user_errors(SafetensorError, about=f"cannot write {output}")
    with cannot, replacing_folder(folder.resolve()) as part:
        tokenizer.save_pretrained(part)
        if discriminator is not None:
            save_discriminator(discriminator, part / DISCRIMINATOR_FILE)
    about = _about(tokenizer, discriminator, "left out" if weights.discriminator else "none")
    print("\n".join(lines(about)))
    print(f"Wrote {folder}/")
    return 0


def _check_new(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: name a folder that can be made")
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty: name a new folder, or remove what is in it")


def _discriminator(state: "State") -> "FrameDiscriminator | VideoDiscriminator | None":
    """A discriminator that cannot be had is no reason to go without the tokenizer."""
    if not state:
        return None
    from warnings import warn

    from magvit2_pytorch.discriminators.o2_magvit2 import convert_discriminator

    try:
        return convert_discriminator(state)
    except ValueError as error:
        warn(f"{error}: it is left out", stacklevel=2)
        return None


def _about(
    tokenizer: "VideoTokenizer",
    discriminator: "FrameDiscriminator | VideoDiscriminator | None",
    without: str,
) -> dict[str, Any]:
    from magvit2_pytorch.evaluation.describe import count

    config, space = tokenizer.config, tokenizer.space_factor
    about = {
        "model": "video" if config.residual_conv_kernel_size == 3 else "images",
        "parameters": count(tokenizer),
        "compression": f"{tokenizer.time_factor} x {space} x {space}",
        "bits": f"{tokenizer.quantizer.num_bits} to a code, {config.lfq_bit_order}",
        "bits_per_pixel": tokenizer.bits_per_pixel,
        "discriminator": without,
    }
    if discriminator is not None:
        size = " x ".join(map(str, discriminator.network.head.input_size))
        about["discriminator"] = f"{count(discriminator):,} parameters, for {size}"
    return about
