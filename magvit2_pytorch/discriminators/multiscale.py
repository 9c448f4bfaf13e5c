"""Several video discriminators, each at a frame rate of its own."""

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

    Each looks at its own random run of consecutive frames: few frames, far apart, show slow
    motion for the price of few frames. By default the runs span 5, 9 and all 17 frames of the
    paper's clips. `logits` holds one tensor a scale.
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
        said = [d((view,)) for d, view in zip(self.discriminators, views, strict=True)]
        return DiscriminatorOutput(
            tuple(logits for judgement in said for logits in judgement.logits),
            tuple(x for judgement in said for x in judgement.features),
        )
