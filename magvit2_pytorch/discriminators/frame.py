"""Discriminator of single frames."""

import torch
from einops import rearrange

from magvit2_pytorch.discriminators.discriminator import (
    DISCRIMINATORS,
    Discriminator,
    Picks,
    Views,
)
from magvit2_pytorch.discriminators.heads import HeadName
from magvit2_pytorch.discriminators.output import DiscriminatorOutput
from magvit2_pytorch.discriminators.picking import check_positive, pick_frames
from magvit2_pytorch.discriminators.residual_network import BlockOrder, ResidualNetwork
from magvit2_pytorch.types import Video


@DISCRIMINATORS.register("frame")
class FrameDiscriminator(Discriminator):
    """Residual network on `num_frames` random frames of a clip, each classified separately.

    It ignores motion and costs a fraction of a video discriminator. Logits are `b t`, or
    `b t y x` with head "patch"; head "fixed" needs `input_size=(height, width)`. `blur_taps=1`
    turns anti-aliasing off. Default widths are a quarter of the 128 of O2-MAGVIT2. A gradient
    penalty is computed on the mean logit of the frames of a sample: R1 is 1 / `num_frames` of the
    mean R1 of single frames.
    """

    def __init__(
        self,
        channels: int = 3,
        dim: int = 32,
        dim_mults: tuple[int, ...] = (2, 4, 4, 4),
        num_frames: int = 1,
        head: HeadName = "pooled",
        input_size: tuple[int, int] | None = None,
        block_order: BlockOrder = "o2",
        blur_taps: int = 3,
    ):
        super().__init__()
        check_positive(num_frames=num_frames)
        self.options = dict(
            name="frame", channels=channels, dim=dim, dim_mults=dim_mults, num_frames=num_frames,
            head=head, input_size=input_size, block_order=block_order, blur_taps=blur_taps,
        )  # fmt: skip
        self.channels = channels
        self.num_frames = num_frames
        self.network = ResidualNetwork(
            2, channels, dim, dim_mults, head, input_size, block_order, blur_taps
        )

    def pick(self, video: Video, generator: torch.Generator | None = None) -> Picks:
        pick = pick_frames(video.shape[2], self.num_frames, video.shape[0], generator)
        return (pick.to(video.device),)

    def forward(self, views: Views) -> DiscriminatorOutput:
        self.check_views(views)
        num_frames = views[0].shape[2]
        frames = rearrange(views[0], "b c t h w -> (b t) c h w")
        logits, features = self.network(frames)
        return DiscriminatorOutput(
            (rearrange(logits, "(b t) ... -> b t ...", t=num_frames),),
            tuple(rearrange(x, "(b t) d y x -> b d t y x", t=num_frames) for x in features),
        )
