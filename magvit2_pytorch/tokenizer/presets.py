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
    """For a laptop: 4 x 8 x 8 compression, 16 bits to a block, 5.9 M parameters.

    With its recipe, four and a half minutes on two CPU cores bring held-out frames of the clips it
    trains on to 25 dB (`magvit2 demo`; experiments in benchmarks/LOG.md).
    """
    return dict(
        image_size=64,
        init_dim=128,
        patch_size=(4, 4),
        input_conv_kernel_size=1,
        output_conv_kernel_size=1,
        separate_first_frame_encoding=True,
        layers=(
            ("factorized_residual", 1, 2),
            ("compress_space", 256),
            ("factorized_residual", 2, 4),
        ),
        codebook_size=2**16,
        # The norm keeps all bits alive by itself; the entropy loss at its usual weight cost 3 dB.
        lfq_norm="layer",
        lfq_entropy_loss_weight=0.0,
        lfq_commitment_loss_weight=0.0,
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
