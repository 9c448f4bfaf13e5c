"""Metrics of reconstructions and of codes."""

from magvit2_pytorch.metrics.bootstrap import Interval, bootstrap_interval
from magvit2_pytorch.metrics.codebook import (
    CodebookUsage,
    CodebookUse,
    bits_per_pixel,
    compression_ratio,
)
from magvit2_pytorch.metrics.moments import (
    ChannelMoments,
    FrechetDistance,
    Moments,
    frechet_distance,
)
from magvit2_pytorch.metrics.quality import (
    TemporalConsistency,
    block_edges,
    ms_ssim,
    psnr,
    ssim,
    temporal_consistency,
)

__all__ = [
    "ChannelMoments",
    "CodebookUsage",
    "CodebookUse",
    "FrechetDistance",
    "Interval",
    "Moments",
    "TemporalConsistency",
    "bits_per_pixel",
    "block_edges",
    "bootstrap_interval",
    "compression_ratio",
    "frechet_distance",
    "ms_ssim",
    "psnr",
    "ssim",
    "temporal_consistency",
]
