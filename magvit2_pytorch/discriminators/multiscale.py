"""Several video discriminators at different frame rates."""

import torch
from torch import nn

from magvit2_pytorch.discriminators.discriminator import (
    DISCRIMINATORS,
    Discriminator,
    Picks,
    Views,
)
from magvit2_pytorch.discriminators.heads import HeadName
from magvit2_pytorch.discriminators.output import DiscriminatorOutput
from magvit2_pytorch.discriminators.residual_network import BlockOrder
from magvit2_pytorch.discriminators.video import VideoDiscriminator
from magvit2_pytorch.types import Video


@DISCRIMINATORS.register("multiscale")
class MultiScaleDiscriminator(Discriminator):
    """One `VideoDiscriminator` for each of `scales`, pairs of (number of frames, stride).

    Each has its own random start: a large stride shows slow motion at the cost of few frames. By
    default they span 5, 9 and 17 frames, the last being the clip length of the paper. The output
    has one tensor of logits per scale.
    """

    def __init__(
        self,
        channels: int = 3,
        dim: int = 32,
        dim_mults: tuple[int, ...] = (2, 4, 4, 4),
        scales: tuple[tuple[int, int], ...] = ((5, 1), (5, 2), (5, 4)),
        head: HeadName = "pooled",
        block_order: BlockOrder = "o2",
        blur_taps: int = 3,
    ):
        super().__init__()
        if not scales:
            raise ValueError("scales is empty: give pairs of (number of frames, stride)")
        if head == "fixed":
            raise ValueError("head 'fixed' is for views of one size: use 'pooled' or 'patch'")
        self.options = dict(
            name="multiscale", channels=channels, dim=dim, dim_mults=dim_mults, scales=scales,
            head=head, block_order=block_order, blur_taps=blur_taps,
        )  # fmt: skip
        self.channels = channels
        self.num_views = len(scales)
        self.discriminators = nn.ModuleList(
            VideoDiscriminator(
                channels,
                dim,
                dim_mults,
                num_frames,
                stride,
                head=head,
                block_order=block_order,
                blur_taps=blur_taps,
            )
            for num_frames, stride in scales
        )

    def pick(self, video: Video, generator: torch.Generator | None = None) -> Picks:
        return tuple(pick for d in self.discriminators for pick in d.pick(video, generator))

    def forward(self, views: Views) -> DiscriminatorOutput:
        self.check_views(views)
        outputs = [d((view,)) for d, view in zip(self.discriminators, views, strict=True)]
        return DiscriminatorOutput(
            tuple(logits for output in outputs for logits in output.logits),
            tuple(x for output in outputs for x in output.features),
        )
