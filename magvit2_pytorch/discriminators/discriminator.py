"""Base class of discriminators."""

from abc import ABC, abstractmethod
from inspect import signature
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from magvit2_pytorch.discriminators.output import DiscriminatorOutput
from magvit2_pytorch.options import check_known, to_tuples
from magvit2_pytorch.registry import Registry
from magvit2_pytorch.types import Video

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
        """Draws the frames of each view on the CPU, for the video's device."""

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
