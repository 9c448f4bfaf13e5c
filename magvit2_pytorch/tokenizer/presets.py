"""Presets of tokenizers: named configurations with their training options."""

from collections.abc import Collection
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

    `dim_mults` has one entry per level, its channels divided by `init_dim`. `halve_time` has one
    entry per step between levels; True halves the frame rate too.
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
    """Options of a MAGVIT-v2 network, without its quantizer and image size."""
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


def vidtok_options(
    init_dim: int,
    dim_mults: tuple[int, ...] = (1, 2, 4, 4),
    num_units: int = 2,
    space_down: Collection[int] | None = None,
    time_down: Collection[int] | None = None,
    space_up: Collection[int] | None = None,
    time_up: Collection[int] = (1, 2),
    linear: bool = True,
    repeat_start: bool = True,
) -> dict[str, Any]:
    """Options of a VidTok network, without its quantizer and image size.

    `dim_mults` has one entry per level, the first of which is 1. The encoder halves space after
    the levels `space_down` (by default all but the last) and time after `time_down` (the last but
    one and two). The decoder, which has one unit more per level, doubles them after `space_up` (all
    but the first) and `time_up`. VidTok 1.1 interpolates frames (`linear`) and starts convolutions
    with copies of the first frame (`repeat_start`); 1.0 repeats frames and starts with zeros.
    Raises `ValueError` if the levels do not exist.
    """
    last = len(dim_mults) - 1
    space_down = range(last) if space_down is None else space_down
    time_down = (last - 2, last - 1) if time_down is None else time_down
    space_up = range(1, last + 1) if space_up is None else space_up
    levels = {*space_down, *time_down, *space_up, *time_up}
    if dim_mults[:1] != (1,) or not levels <= set(range(last + 1)):
        raise ValueError(
            f"dim_mults {dim_mults} must begin with 1, and the levels {sorted(levels)} of "
            f"resampling must be among 0 to {last}"
        )
    dims = [init_dim * mult for mult in dim_mults]
    to_space, to_time = "vidtok_compress_space", f"vidtok_compress_time{'_linear' * linear}"
    layers: list[LayerEntry] = []
    decoder_layers: list[LayerEntry] = []
    for level, (dim, deeper) in enumerate(zip(dims, [*dims[1:], dims[-1]], strict=True)):
        layers.append(("vidtok_residual", dim, num_units))
        layers += [to_space] * (level in space_down) + [to_time] * (level in time_down)
        decoder_layers += [to_time] * (level in time_up) + [to_space] * (level in space_up)
        decoder_layers.append(("vidtok_residual", deeper, num_units + 1))
    return dict(
        init_dim=init_dim,
        layers=(*layers, "vidtok_middle"),
        decoder_layers=(*decoder_layers, "vidtok_middle"),
        input_conv_kernel_size=3,
        last_encoder_conv_kernel_size=3,
        norm_eps=1e-6,
        pad_mode="first_frame" if repeat_start else "constant",
        repeat_first_frame=True,
    )
