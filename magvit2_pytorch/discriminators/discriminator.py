"""Interface of discriminators, their outputs, and the choice of frames."""

from abc import ABC, abstractmethod
from inspect import signature
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from magvit2_pytorch.config import Registry, check_at_least_one, check_known, to_tuples
from magvit2_pytorch.types import Video


class DiscriminatorOutput(NamedTuple):
    """Logits (high is real) and features, with the batch as first axis."""

    logits: tuple[Float[Tensor, "b ..."], ...]
    """One tensor per view, with a logit per clip, frame or patch. At least float32."""
    features: tuple[Float[Tensor, "..."], ...]
    """Hidden maps of all views, from shallow to deep layers, for feature matching."""


def pick_frames(
    num_frames_in_video: int, num: int, batch: int, generator: torch.Generator | None = None
) -> Int[Tensor, "b t"]:
    """Draws `num` frames per sample (or all) in order, on the CPU."""
    check_at_least_one(num_frames_in_video=num_frames_in_video, num=num)
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
    check_at_least_one(num_frames_in_video=num_frames_in_video, num_frames=num_frames)
    check_at_least_one(stride=stride)
    num_frames = min(num_frames, (num_frames_in_video - 1) // stride + 1)
    num_starts = num_frames_in_video - (num_frames - 1) * stride
    starts = torch.randint(num_starts, (batch, 1), generator=generator)
    return starts + torch.arange(num_frames) * stride


Picks = tuple[Int[Tensor, "b _t"], ...]
"""Frame numbers of each view and sample."""

Views = tuple[Float[Tensor, "b c _t h w"], ...]
"""Frames of each view, selected by `Picks`."""


class Discriminator(nn.Module, ABC):
    """Classifies clips as real or reconstructed, from views of them.

    A view is a subset of the frames of a clip. A batch may contain both kinds: there are no batch
    statistics, so samples do not affect each other. Call `pick` once for a real clip and its
    reconstruction, and take the `views` of both at the same frames. Gradient penalties
    differentiate with respect to the views.
    """

    options: dict[str, Any]
    """Arguments that `build_discriminator` needs for a copy, including the name."""

    channels: int
    num_views: int = 1

    @abstractmethod
    def pick(self, video: Video, generator: torch.Generator | None = None) -> Picks:
        """Draws the frames of each view; moves them to the video's device."""

    def views(self, video: Video, picks: Picks) -> Views:
        """Selects the picked frames."""
        if video.shape[1] != self.channels:
            raise ValueError(
                f"the video has {video.shape[1]} channels, but this discriminator was built for "
                f"{self.channels}"
            )
        return tuple(gather_frames(video, pick) for pick in picks)

    @abstractmethod
    def forward(self, views: Views) -> DiscriminatorOutput:
        """Computes logits and features; sizes may differ between calls."""

    def check_views(self, views: Views) -> None:
        """Raises `ValueError` unless there are `num_views` views."""
        if len(views) != self.num_views:
            raise ValueError(
                f"{len(views)} views for a discriminator of {self.num_views}: give the result of "
                "its views(video, picks)"
            )


DISCRIMINATORS: Registry[type[Discriminator]] = Registry("discriminator")


def build_discriminator(name: str, channels: int = 3, **options) -> Discriminator:
    """Builds a discriminator by name; raises `ValueError` on unknown options."""
    cls = DISCRIMINATORS[name]
    check_known(f"discriminator {name!r}", options, signature(cls).parameters)
    return cls(channels=channels, **to_tuples(options))


def gather_frames(video: Video, pick: Int[Tensor, "b u"]) -> Float[Tensor, "b c u h w"]:
    """Selects frames by number, for each sample separately."""
    index = pick[:, None, :, None, None].expand(-1, video.shape[1], -1, *video.shape[3:])
    return video.gather(2, index)
