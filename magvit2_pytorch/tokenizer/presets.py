"""Named configurations: what they are, what they cost, what they should reach."""

from collections.abc import Callable
from typing import Any

from magvit2_pytorch.registry import Registry

Preset = Callable[[], dict[str, Any]]

PRESETS: Registry[Preset] = Registry("preset")


def preset(name: str) -> dict[str, Any]:
    """The options of a named configuration, to change and hand to `VideoTokenizer`."""
    return PRESETS[name]()


@PRESETS.register("small")
def small() -> dict[str, Any]:
    """For a laptop: placeholder until measured."""
    return dict(
        image_size=64,
        init_dim=32,
        max_dim=256,
        patch_size=2,
        input_conv_kernel_size=3,
        layers=("compress_space", "residual", "compress_space", "compress_time", "residual", "compress_time", ("consecutive_residual", 2)),
        codebook_size=2**16,
    )


@PRESETS.register("tiny")
def tiny() -> dict[str, Any]:
    """For tests and first steps: 2 x 4 x 4 compression, 10 bits, a few thousand parameters."""
    return dict(
        image_size=16,
        init_dim=8,
        layers=("residual", "compress_space", "compress_space", "compress_time", "residual"),
        input_conv_kernel_size=3,
        codebook_size=2**10,
    )
