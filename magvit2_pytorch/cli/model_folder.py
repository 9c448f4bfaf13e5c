"""The tokenizer that `--model` names, on the device that `--device` names."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from magvit2_pytorch.cli.errors import UserError, user_errors

if TYPE_CHECKING:
    from magvit2_pytorch.evaluation.identity import TokenizerId
    from magvit2_pytorch.tokenizer.model import VideoTokenizer

Device = Literal["auto", "cpu", "cuda"]
HUB = "hf://"
"""Before a name on the hub: nothing is downloaded that was not asked for so plainly."""


def find_tokenizer(model: str, option: str = "--model") -> str:
    """The folder of a tokenizer, also from the folder of the run that trained it."""
    if model.startswith(HUB):
        return model.removeprefix(HUB)
    folder = Path(model).expanduser()
    if not folder.exists():
        raise UserError(
            f"there is no {model}: {option} is the folder of a tokenizer, such as RUN/tokenizer, "
            f"or {HUB}OWNER/NAME"
        )
    for place in (folder, folder / "tokenizer"):
        if (place / "config.json").is_file():
            return str(place)
    raise UserError(f"{model} holds no tokenizer: give a folder with config.json, or of a run")


def load_tokenizer(model: str, device: Device) -> "tuple[VideoTokenizer, TokenizerId]":
    """The tokenizer in eval mode, and its tokenizer_id under the name the user gave."""
    place = find_tokenizer(model)
    from magvit2_pytorch.evaluation.identity import TokenizerId
    from magvit2_pytorch.tokenizer.model import VideoTokenizer

    where = find_device(device)
    with user_errors(about=f"cannot use {model}"):
        tokenizer = VideoTokenizer.from_pretrained(place)
    return tokenizer.to(where), TokenizerId.of(tokenizer, model)


def find_device(device: Device) -> str:
    """The device to compute on; `auto` is a GPU where there is one."""
    import torch

    has_gpu = torch.cuda.is_available()
    if device == "cuda" and not has_gpu:
        raise UserError("--device cuda: torch finds no CUDA device here, use auto or cpu")
    return ("cuda" if has_gpu else "cpu") if device == "auto" else device
