"""What is measured of reconstructions and of codes."""

from magvit2_pytorch.metrics.channel_moments import ChannelMoments, Moments
from magvit2_pytorch.metrics.codebook_usage import CodebookUsage, CodebookUse, codebook_usage
from magvit2_pytorch.metrics.psnr import psnr
from magvit2_pytorch.metrics.rate import bits_per_pixel, compression_ratio

__all__ = [
    "ChannelMoments",
    "CodebookUsage",
    "CodebookUse",
    "Moments",
    "bits_per_pixel",
    "codebook_usage",
    "compression_ratio",
    "psnr",
]
