"""Super-resolution: frames of two or four times the size."""

from magvit2_pytorch.super_resolution.upscaler import (
    SR_PRESETS,
    SuperResolution,
    SuperResolutionConfig,
    UpscaleStream,
)

__all__ = ["SR_PRESETS", "SuperResolution", "SuperResolutionConfig", "UpscaleStream"]
