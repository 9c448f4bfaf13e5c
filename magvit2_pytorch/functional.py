"""Small pure functions on tensors that several rooms share."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils._pytree import tree_map

from magvit2_pytorch.types import Past, Precision, Video


def autocast(device: torch.device | str, precision: Precision) -> torch.autocast:
    """The context in which convolutions and matrices run in `precision`."""
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    if precision not in dtypes:
        raise ValueError(f"precision {precision!r}: use 'fp32', 'bf16' or 'fp16'")
    kind = torch.device(device).type
    return torch.autocast(kind, dtypes[precision], enabled=precision != "fp32")


def padded_num_frames(num_frames: int, time_factor: int) -> int:
    """The next count of the form 1 + k * time_factor, the ones a causal tokenizer codes whole."""
    return 1 + -(-(num_frames - 1) // time_factor) * time_factor


def pad_frames(video: Video, time_factor: int, first: bool = True) -> Float[Tensor, "b c u h w"]:
    """Repeats the last frame until there are 1 + k * time_factor; k * it in a later chunk."""
    missing = -(video.shape[2] - first) % time_factor
    if not missing:
        return video
    last = video[:, :, -1:].expand(-1, -1, missing, -1, -1)
    return torch.cat((video, last), dim=2)


def wide(x: Tensor) -> Tensor:
    """The tensor in float32, or in float64 if it is: half precision has no room for squares."""
    return x if x.dtype == torch.float64 else x.float()


def detach_past(past: Past) -> Past:
    """A past that holds no graph and no more memory than its own values."""
    return tree_map(lambda leaf: leaf.detach().clone() if isinstance(leaf, Tensor) else leaf, past)


def linear_scan(
    decay: Float[Tensor, "b t ..."], value: Float[Tensor, "b t ..."]
) -> Float[Tensor, "b t ..."]:
    """Solves h[t] = decay[t] * h[t - 1] + value[t] with h[-1] = 0, in log2(t) steps.

    Source: the doubling scan of Hillis and Steele, 1986, on the associative pair (decay, value).
    """
    step = 1
    while step < value.shape[1]:
        value = torch.cat(
            (value[:, :step], value[:, step:] + decay[:, step:] * value[:, :-step]), dim=1
        )
        decay = torch.cat((decay[:, :step], decay[:, step:] * decay[:, :-step]), dim=1)
        step *= 2
    return value
