"""Discriminator of clips."""

import torch

from magvit2_pytorch.discriminators.discriminator import (
    DISCRIMINATORS,
    Discriminator,
    Picks,
    Views,
)
from magvit2_pytorch.discriminators.heads import HeadName
from magvit2_pytorch.discriminators.output import DiscriminatorOutput
from magvit2_pytorch.discriminators.picking import check_positive, pick_consecutive_frames
from magvit2_pytorch.discriminators.residual_network import BlockOrder, ResidualNetwork
from magvit2_pytorch.types import Video


@DISCRIMINATORS.register("video")
class VideoDiscriminator(Discriminator):
    """Residual network over time and space, for clips of any size.

    Its input is the whole clip, or `num_frames` consecutive frames `stride` apart from a random
    start. Logits are `b`, or `b j y x` with head "patch"; head "fixed" needs
    `input_size=(frames, height, width)`. `blur_taps=1` turns anti-aliasing off. Default widths are
    a quarter of the 128 of O2-MAGVIT2, with one downsampling less.
    """

    def __init__(
        self,
        channels: int = 3,
        dim: int = 32,
        dim_mults: tuple[int, ...] = (2, 4, 4, 4),
        num_frames: int | None = None,
        stride: int = 1,
        head: HeadName = "pooled",
        input_size: tuple[int, int, int] | None = None,
        block_order: BlockOrder = "o2",
        blur_taps: int = 3,
    ):
        super().__init__()
        check_positive(stride=stride, num_frames=1 if num_frames is None else num_frames)
        self.options = dict(
            name="video", channels=channels, dim=dim, dim_mults=dim_mults, num_frames=num_frames,
            stride=stride, head=head, input_size=input_size, block_order=block_order,
            blur_taps=blur_taps,
        )  # fmt: skip
        self.channels = channels
        self.num_frames = num_frames
        self.stride = stride
        self.network = ResidualNetwork(
            3, channels, dim, dim_mults, head, input_size, block_order, blur_taps
        )

    def pick(self, video: Video, generator: torch.Generator | None = None) -> Picks:
        batch, length = video.shape[0], video.shape[2]
        num_frames = length if self.num_frames is None else self.num_frames
        pick = pick_consecutive_frames(length, num_frames, self.stride, batch, generator)
        return (pick.to(video.device),)

    def forward(self, views: Views) -> DiscriminatorOutput:
        self.check_views(views)
        logits, features = self.network(views[0])
        return DiscriminatorOutput((logits,), features)
