"""Small pure functions on tensors that several rooms share."""

import warnings

import torch
from jaxtyping import Float
from torch import Tensor

from magvit2_pytorch.types import Precision, Video


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
    missing = -(video.shape[2] - int(first)) % time_factor
    if not missing:
        return video
    last = video[:, :, -1:].expand(-1, -1, missing, -1, -1)
    return torch.cat((video, last), dim=2)


def at_least_float32(x: Tensor) -> Tensor:
    """The tensor in float32, or in float64 if it is: half precision has no room for squares."""
    return x if x.dtype == torch.float64 else x.float()


def own_copy(x: Tensor) -> Tensor:
    """A part of an activation, to be a past: without gradients a copy.

    A view would keep all of the activation in memory, and so a tower all of its activations. With
    gradients they stay in memory anyway.
    """
    return x if torch.is_grad_enabled() else x.clone()


def linear_scan(
    decay: Float[Tensor, "b t ..."], value: Float[Tensor, "b t ..."]
) -> Float[Tensor, "b t ..."]:
    """Solves h[t] = decay[t] * h[t - 1] + value[t] with h[-1] = 0, in log2(t) steps.

    Source: the doubling scan of Hillis and Steele, 1986, on the associative pair (decay, value).
    """
    if isinstance(value.shape[1], torch.SymInt):
        return _scan_of_any_length(decay, value)
    step = 1
    while step < value.shape[1]:
        value = torch.cat(
            (value[:, :step], value[:, step:] + decay[:, step:] * value[:, :-step]), dim=1
        )
        decay = torch.cat((decay[:, :step], decay[:, step:] * decay[:, :-step]), dim=1)
        step *= 2
    return value


def _scan_of_any_length(
    decay: Float[Tensor, "b t ..."], value: Float[Tensor, "b t ..."]
) -> Float[Tensor, "b t ..."]:
    """The same for a graph that is traced for any length, up to 2**16: all steps, needed or not."""
    position = torch.arange(value.shape[1], device=value.device)
    for doubling in range(16):
        before = position - 2**doubling
        seen = (before >= 0).view(-1, *(1,) * (value.ndim - 2))
        before = before.clamp(min=0)
        value = torch.where(seen, value + decay * value[:, before], value)
        decay = torch.where(seen, decay * decay[:, before], decay)
    return value


def range_warning(video: Float[Tensor, "..."]) -> str:
    """Names values that lie in another usual range than [-1, 1], and what to do; "" if none do.

    Bytes and [0, 1] are told by their floor: whole batches of the true range go below its middle.
    A single picture need not, so of one only a warning is in place.
    """
    if not video.numel():
        return ""
    low, high = (float(value) for value in video.detach().aminmax())
    if low < 0 or high <= 0.5 or (high <= 1 and low > 0.05) or 1 < high <= 2:
        return ""
    kind, scaled = ("[0, 1]", "2 * video - 1") if high <= 1 else ("bytes", "video / 127.5 - 1")
    return f"values from {low:g} to {high:g} look like {kind}: a video is in [-1, 1]; give {scaled}"


def check_range(video: Tensor) -> None:
    """Raises `ValueError` on floating-point bytes, and warns of what may be [0, 1].

    Says nothing within a compiled graph, which would be cut in two by it.
    """
    if torch.compiler.is_compiling() or not video.is_floating_point():
        return
    mistake = range_warning(video)
    if "bytes" in mistake:
        raise ValueError(mistake)
    if mistake:
        warnings.warn(mistake, stacklevel=3)
