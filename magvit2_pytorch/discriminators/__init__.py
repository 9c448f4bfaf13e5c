"""Discriminators of real and reconstructed clips."""

from magvit2_pytorch.discriminators.discriminator import (
    DISCRIMINATORS,
    Discriminator,
    DiscriminatorOutput,
    build_discriminator,
    gather_frames,
    pick_consecutive_frames,
    pick_frames,
)
from magvit2_pytorch.discriminators.models import (
    FrameDiscriminator,
    MultiScaleDiscriminator,
    VideoDiscriminator,
)

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
