"""Metrics of reconstructions and of codes."""

from magvit2_pytorch.metrics.bootstrap import Interval, bootstrap_interval
from magvit2_pytorch.metrics.channel_moments import ChannelMoments, Moments
from magvit2_pytorch.metrics.codebook_usage import CodebookUsage, CodebookUse
from magvit2_pytorch.metrics.frechet import FrechetDistance, GaussianMoments, frechet_distance
from magvit2_pytorch.metrics.psnr import psnr
from magvit2_pytorch.metrics.rate import bits_per_pixel, compression_ratio
from magvit2_pytorch.metrics.structural import ms_ssim, ssim
from magvit2_pytorch.metrics.temporal import TemporalConsistency, temporal_consistency

__all__ = [
    "ChannelMoments",
    "CodebookUsage",
    "CodebookUse",
    "FrechetDistance",
    "GaussianMoments",
    "Interval",
    "Moments",
    "TemporalConsistency",
    "bits_per_pixel",
    "bootstrap_interval",
    "compression_ratio",
    "frechet_distance",
    "ms_ssim",
    "psnr",
    "ssim",
    "temporal_consistency",
]
