"""What every discriminator is to a trainer."""

from abc import ABC, abstractmethod
from inspect import signature

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from magvit2_pytorch.discriminators.output import DiscriminatorOutput
from magvit2_pytorch.options import check_known, to_tuples
from magvit2_pytorch.registry import Registry
from magvit2_pytorch.types import Video

Picks = tuple[Int[Tensor, "b _t"], ...]
"""The frames that each view of each sample shows."""

Views = tuple[Float[Tensor, "b c _t h w"], ...]
"""Those frames."""


class Discriminator(nn.Module, ABC):
    """Judges views of clips: real ones, decoded ones, or both along the batch.

    A real clip and its reconstruction are shown at the same frames: pick once, take the views of
    both. Gradient penalties differentiate by the views. There are no batch statistics, so what
    else lies in the batch changes nothing.
    """

    channels: int
    num_views: int = 1

    @abstractmethod
    def pick(self, video: Video, generator: torch.Generator | None = None) -> Picks:
        """Draws the frames of each view, on the CPU, and gives them on the video's device."""

    def views(self, video: Video, picks: Picks) -> Views:
        """The frames that were picked."""
        if video.shape[1] != self.channels:
            raise ValueError(
                f"the video has {video.shape[1]} channels, but this discriminator was built for "
                f"{self.channels}"
            )
        return tuple(gather_frames(video, pick) for pick in picks)

    @abstractmethod
    def forward(self, views: Views) -> DiscriminatorOutput:
        """Logits and hidden maps of these views; sizes may differ from call to call."""

    def check_views(self, views: Views) -> None:
        """Raises `ValueError` unless there are as many as this discriminator has eyes."""
        if len(views) != self.num_views:
            raise ValueError(
                f"{len(views)} views for a discriminator of {self.num_views}: give what its "
                "views(video, picks) returns"
            )


DISCRIMINATORS: Registry[type[Discriminator]] = Registry("discriminator")


def build_discriminator(name: str, channels: int = 3, **options) -> Discriminator:
    """A discriminator by its name; an option it does not have is a `ValueError`."""
    kind = DISCRIMINATORS[name]
    check_known(f"discriminator {name!r}", options, signature(kind).parameters)
    return kind(channels=channels, **to_tuples(options))


def gather_frames(video: Video, pick: Int[Tensor, "b u"]) -> Float[Tensor, "b c u h w"]:
    """Frames by number, other ones for every sample."""
    index = pick[:, None, :, None, None].expand(-1, video.shape[1], -1, *video.shape[3:])
    return video.gather(2, index)
