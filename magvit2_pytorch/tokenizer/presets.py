"""Presets of tokenizers: named configurations with their training options."""

from pathlib import Path
from typing import Any

from magvit2_pytorch.config import Presets
from magvit2_pytorch.tokenizer.layer_spec import LayerEntry

PRESETS = Presets(Path(__file__).with_suffix(""))


def preset(name: str) -> dict[str, Any]:
    """Options of a preset, a new dict of keyword arguments for `VideoTokenizer`."""
    return PRESETS.model(name)


def recipe(name: str) -> dict[str, Any]:
    """Training options of a preset, keyword arguments for `VideoTokenizerTrainer`."""
    return PRESETS.training(name)


def magvit2_layer_tuple(
    init_dim: int, dim_mults: tuple[int, ...], halve_time: tuple[bool, ...], num_units: int
) -> tuple[LayerEntry, ...]:
    """The value of `layers` for a MAGVIT-v2 network.

    `dim_mults` has one entry per level, the first of which is 1: its channels divided by
    `init_dim`. `halve_time` has one entry per step between levels; True halves the frame rate too.
    """
    if dim_mults[:1] != (1,) or len(halve_time) != len(dim_mults) - 1:
        raise ValueError(
            f"dim_mults {dim_mults} and halve_time {halve_time}: the first entry of dim_mults must "
            "be 1, and halve_time must have one entry less than dim_mults"
        )
    steps = (
        (f"magvit2_compress_space{'_time' * halves}", init_dim * mult, num_units)
        for mult, halves in zip(dim_mults[1:], halve_time, strict=True)
    )
    return (
        ("magvit2_encoder_residual", num_units),
        *steps,
        ("magvit2_decoder_residual", num_units),
        ("magvit2_residual", num_units),
    )


def magvit2_options(
    init_dim: int,
    dim_mults: tuple[int, ...],
    halve_time: tuple[bool, ...],
    num_units: int,
    kernel_size: int | tuple[int, int, int] = 3,
) -> dict[str, Any]:
    """Options of a MAGVIT-v2 network, without its quantizer and image size.

    The loss weights go with a squared error weighted 5.
    """
    return dict(
        init_dim=init_dim,
        layers=magvit2_layer_tuple(init_dim, dim_mults, halve_time, num_units),
        norm="group",
        input_conv_kernel_size=kernel_size,
        residual_conv_kernel_size=kernel_size,
        latent_conv_kernel_size=kernel_size,
        output_conv_kernel_size=kernel_size,
        lfq_entropy_loss_weight=0.1,
        lfq_entropy_anneal_factor=3.0,
        lfq_entropy_anneal_steps=2000,
        lfq_commitment_loss_weight=0.25,
    )
