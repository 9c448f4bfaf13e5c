"""Discriminators of real and reconstructed clips."""

from magvit2_pytorch.discriminators.discriminator import (
    DISCRIMINATORS,
    Discriminator,
    build_discriminator,
    gather_frames,
)
from magvit2_pytorch.discriminators.frame import FrameDiscriminator
from magvit2_pytorch.discriminators.multiscale import MultiScaleDiscriminator
from magvit2_pytorch.discriminators.output import DiscriminatorOutput
from magvit2_pytorch.discriminators.picking import pick_consecutive_frames, pick_frames
from magvit2_pytorch.discriminators.video import VideoDiscriminator

__all__ = [
    "DISCRIMINATORS",
    "Discriminator",
    "DiscriminatorOutput",
    "FrameDiscriminator",
    "MultiScaleDiscriminator",
    "VideoDiscriminator",
    "build_discriminator",
    "gather_frames",
    "pick_consecutive_frames",
    "pick_frames",
]
