"""Small pure functions on tensors that several subpackages share."""

import math
import warnings
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from magvit2_pytorch.types import Precision, Video


def autocast(device: torch.device | str, precision: Precision) -> torch.autocast:
    """Returns a context that runs convolutions and matrix products in `precision`."""
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    if precision not in dtypes:
        raise ValueError(f"precision {precision!r}: use 'fp32', 'bf16' or 'fp16'")
    device_type = torch.device(device).type
    if not torch.amp.is_autocast_available(device_type):  # such as "meta", which has no values
        return torch.autocast("cpu", enabled=False)
    return torch.autocast(device_type, dtypes[precision], enabled=precision != "fp32")


def padded_num_frames(num_frames: int, time_factor: int) -> int:
    """Smallest 1 + k * time_factor that is at least `num_frames`.

    A causal tokenizer encodes videos of such lengths without padding.
    """
    return 1 + -(-(num_frames - 1) // time_factor) * time_factor


def pad_frames(video: Video, time_factor: int, first: bool = True) -> Float[Tensor, "b c u h w"]:
    """Repeats the last frame up to a length that needs no padding.

    This is 1 + k * time_factor frames, or k * time_factor in a chunk that is not the `first`.
    """
    missing = -(video.shape[2] - int(first)) % time_factor
    if not missing:
        return video
    last = video[:, :, -1:].expand(-1, -1, missing, -1, -1)
    return torch.cat((video, last), dim=2)


def space_padding(height: int, width: int, space_factor: int) -> tuple[int, int]:
    """Rows below and columns right missing to multiples of `space_factor`."""
    return -height % space_factor, -width % space_factor


def pad_space(video: Video, space_factor: int) -> Float[Tensor, "b c t y x"]:
    """Repeats the last row and column up to multiples of `space_factor`."""
    below, right = space_padding(*video.shape[-2:], space_factor)
    if not below and not right:
        return video
    return pad(video, (0, right, 0, below, 0, 0), mode="replicate")


def at_least_float32(x: Tensor) -> Tensor:
    """Converts to float32, but keeps float64: squares overflow in half precision."""
    return x if x.dtype == torch.float64 else x.float()


def own_copy(x: Tensor) -> Tensor:
    """Copies a slice of an activation that becomes streaming state.

    A view would keep the full activation in memory, in every layer of the network. With gradients
    enabled activations stay in memory anyway, so the slice is returned without a copy.
    """
    return x if torch.is_grad_enabled() else x.clone()


def linear_scan(
    decay: Float[Tensor, "b t ..."], value: Float[Tensor, "b t ..."]
) -> Float[Tensor, "b t ..."]:
    """Linear recurrence in log2(t) parallel steps.

    Solves h[t] = decay[t] * h[t - 1] + value[t] with h[-1] = 0.
    Source: the doubling scan of Hillis and Steele, 1986, on the associative pair (decay, value).
    """
    if isinstance(value.shape[1], torch.SymInt):
        return _scan_dynamic_length(decay, value)
    step = 1
    while step < value.shape[1]:
        value = torch.cat(
            (value[:, :step], value[:, step:] + decay[:, step:] * value[:, :-step]), dim=1
        )
        decay = torch.cat((decay[:, :step], decay[:, step:] * decay[:, :-step]), dim=1)
        step *= 2
    return value


def _scan_dynamic_length(
    decay: Float[Tensor, "b t ..."], value: Float[Tensor, "b t ..."]
) -> Float[Tensor, "b t ..."]:
    """`linear_scan` of any length up to 2**16 in one traced graph."""
    position = torch.arange(value.shape[1], device=value.device)
    for doubling in range(16):
        earlier = position - 2**doubling
        exists = (earlier >= 0).view(-1, *(1,) * (value.ndim - 2))
        earlier = earlier.clamp(min=0)
        value = torch.where(exists, value + decay * value[:, earlier], value)
        decay = torch.where(exists, decay * decay[:, earlier], decay)
    return value


NOT_FINITE = "values that are not finite: infinity, or not numbers (NaN)"


class NotFinite(ValueError):
    """Latents or a condition with NaN or infinity."""


def check_tensor(x: Any, name: str) -> None:
    """Raises `TypeError` on arrays, pictures and lists."""
    if not isinstance(x, Tensor):
        raise TypeError(
            f"{name} are a {type(x).__module__}.{type(x).__name__}: give a tensor, such as "
            "torch.from_numpy(array)"
        )


def check_finite(x: Tensor, name: str) -> None:
    """Raises `NotFinite` on NaN and infinity.

    Only for values on a CPU: reading them on a GPU waits for the device at each call, and while
    compiling it breaks the graph. Videos are checked everywhere, by `check_range`.
    """
    check_tensor(x, name)
    is_values = x.is_floating_point() and x.device.type == "cpu" and x.numel()
    if not is_values or torch.compiler.is_compiling():
        return
    low, high = (float(value) for value in x.detach().aminmax())
    if not math.isfinite(high - low):
        raise NotFinite(f"{name} hold {NOT_FINITE}")


def range_warning(video: Float[Tensor, "..."]) -> str:
    """Message if values do not look like [-1, 1], else "".

    [0, 1] and bytes have no negative values, while a batch in [-1, 1] nearly always has some. A
    single bright image may have none, so the message is no more than a warning.
    """
    if not video.numel():
        return ""
    low, high = (float(value) for value in video.detach().aminmax())
    if not math.isfinite(high - low):
        return f"the video holds {NOT_FINITE}"
    if low < 0 or high <= 0.5 or (high <= 1 and low > 0.05) or 1 < high <= 2:
        return ""
    kind, fix = ("[0, 1]", "2 * video - 1") if high <= 1 else ("bytes", "video / 127.5 - 1")
    return f"values from {low:g} to {high:g} look like {kind}: a video is in [-1, 1]; give {fix}"


def check_range(video: Tensor) -> None:
    """Raises `ValueError` on NaN, infinity and values like bytes.

    Warns of values like [0, 1]. Does nothing while compiling: reading values would break the graph.
    """
    if torch.compiler.is_compiling() or not video.is_floating_point():
        return
    message = range_warning(video)
    if "like [0, 1]" in message:
        warnings.warn(message, stacklevel=3)
    elif message:
        raise ValueError(message)
