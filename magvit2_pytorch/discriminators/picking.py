"""Random choice of the frames of a clip that a discriminator sees."""

import torch
from jaxtyping import Int
from torch import Tensor


def pick_frames(
    num_frames_in_video: int, num: int, batch: int, generator: torch.Generator | None = None
) -> Int[Tensor, "b t"]:
    """Draws `num` different frames per sample, in order and uniformly.

    Of a shorter clip all frames are taken. Drawn on the CPU.
    """
    check_positive(num_frames_in_video=num_frames_in_video, num=num, batch=batch)
    order = torch.rand(batch, num_frames_in_video, generator=generator).argsort(dim=1)
    return order[:, :num].sort(dim=1).values


def pick_consecutive_frames(
    num_frames_in_video: int,
    num_frames: int,
    stride: int,
    batch: int,
    generator: torch.Generator | None = None,
) -> Int[Tensor, "b t"]:
    """Draws `num_frames` frames `stride` apart per sample, with a uniform start.

    If the clip is too short, as many frames are taken as fit, at least one. Drawn on the CPU.
    """
    check_positive(
        num_frames_in_video=num_frames_in_video, num_frames=num_frames, stride=stride, batch=batch
    )
    num_frames = min(num_frames, (num_frames_in_video - 1) // stride + 1)
    num_starts = num_frames_in_video - (num_frames - 1) * stride
    starts = torch.randint(num_starts, (batch, 1), generator=generator)
    return starts + torch.arange(num_frames) * stride


def check_positive(**counts: int) -> None:
    """Raises `ValueError` on the first count below one."""
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} is {count}: give 1 or more")
