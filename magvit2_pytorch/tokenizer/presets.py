"""Presets: named configurations with their size, cost and expected quality."""

from collections.abc import Callable
from typing import Any

from magvit2_pytorch.config import Registry
from magvit2_pytorch.tokenizer.layer_spec import LayerEntry

Preset = Callable[[], dict[str, Any]]

PRESETS: Registry[Preset] = Registry("preset")


def preset(name: str) -> dict[str, Any]:
    """Options of a preset, a new dict of keyword arguments for `VideoTokenizer`."""
    return PRESETS[name]()


@PRESETS.register("small")
def small() -> dict[str, Any]:
    """For a laptop: 4 x 8 x 8 compression, 5.8 M parameters.

    It has 64,000 codes (15.97 bits) per position. With its recipe, training for four and a half
    minutes on two CPU cores reaches 26 dB on held-out frames of the training clips (`magvit2 demo`;
    experiments in benchmarks/LOG.md). It uses finite scalar quantization, which was 1 dB better
    than LFQ with as many codes after the same time.
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
        use_fsq=True,
        fsq_levels=(8, 8, 8, 5, 5, 5),
    )


@PRESETS.register("tiny")
def tiny() -> dict[str, Any]:
    """For tests: 2 x 4 x 4 compression, 10 bits, few parameters."""
    return dict(
        image_size=16,
        init_dim=8,
        layers=("residual", "compress_space", "compress_space", "compress_time", "residual"),
        input_conv_kernel_size=3,
        codebook_size=2**10,
    )


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


COMPRESS_8X = dict(dim_mults=(1, 2, 2, 4), halve_time=(False, True, True))
COMPRESS_16X = dict(dim_mults=(1, 1, 2, 2, 4), halve_time=(False, False, True, True))
IMAGE = COMPRESS_16X | dict(halve_time=(False,) * 4, kernel_size=(1, 3, 3))
FULL = dict(init_dim=128, num_units=4)
REDUCED = dict(init_dim=64, num_units=2)


@PRESETS.register("magvit2")
def magvit2() -> dict[str, Any]:
    """MAGVIT-v2: 4 x 8 x 8 compression, 18 bits, 370.5 M parameters.

    17 x 128 x 128 clips become 5 x 16 x 16 codes. The paper reports a reconstruction FVD of 8.62 on
    UCF-101 (arXiv 2310.05737, table 5c) after training with a batch size of 256. Encoding and
    decoding cost 10.7 TFLOP per clip. A training step costs three times that and 12.5 GiB of
    activations per clip in float32; weights, gradients, Adam's moments and averages take 7.4 GB.
    Training needs many large GPUs.
    """
    return dict(image_size=128, codebook_size=2**18) | magvit2_options(**FULL, **COMPRESS_8X)


@PRESETS.register("magvit2-small")
def magvit2_small() -> dict[str, Any]:
    """Small `magvit2`: 4 x 8 x 8 compression, 56.4 M parameters.

    For one GPU: half the channels and half the residual units, 18 bits per position. Encoding and
    decoding cost 1.6 TFLOP per clip; training takes 3.6 GiB of activations per clip in float32 and
    1.1 GB for weights, moments and averages.
    """
    return dict(image_size=128, codebook_size=2**18) | magvit2_options(**REDUCED, **COMPRESS_8X)


@PRESETS.register("o2")
def o2() -> dict[str, Any]:
    """O2-MAGVIT2's video model: 4 x 16 x 16 compression, 379.8 M parameters.

    17 x 256 x 256 clips become 5 x 16 x 16 codes of 18 bits, a quarter of MAGVIT-v2's rate.
    `magvit2 convert` converts O2-MAGVIT2's checkpoints to this model. No reconstruction figures are
    published for it. Encoding and decoding cost 27.7 TFLOP per clip; training takes 42 GiB of
    activations per clip in float32.
    """
    return dict(image_size=256, codebook_size=2**18) | magvit2_options(**FULL, **COMPRESS_16X)


@PRESETS.register("o2-small")
def o2_small() -> dict[str, Any]:
    """Small `o2`: 4 x 16 x 16 compression, 57.9 M parameters.

    For one GPU: half the channels and half the residual units, 18 bits per position. Encoding and
    decoding cost 3.8 TFLOP per clip; training takes 11.7 GiB of activations per clip in float32.
    """
    return dict(image_size=256, codebook_size=2**18) | magvit2_options(**REDUCED, **COMPRESS_16X)


@PRESETS.register("o2-image")
def o2_image() -> dict[str, Any]:
    """Image `o2`: 1 x 16 x 16 compression, 115.1 M parameters.

    Stage I of `o2`: the same network without time, 18 bits per position. After training on images,
    `init_from` inflates it to `o2`. Encoding and decoding cost 0.6 TFLOP per image; training takes
    2.4 GiB of activations per image in float32.
    """
    return dict(image_size=256, codebook_size=2**18) | magvit2_options(**FULL, **IMAGE)


@PRESETS.register("o2-image-small")
def o2_image_small() -> dict[str, Any]:
    """Image `o2-small`: 1 x 16 x 16 compression, 16.4 M parameters.

    Stage I of `o2-small`, 18 bits per position. Encoding and decoding cost 0.08 TFLOP per image;
    training takes 0.7 GiB of activations per image in float32.
    """
    return dict(image_size=256, codebook_size=2**18) | magvit2_options(**REDUCED, **IMAGE)


@PRESETS.register("walt")
def walt() -> dict[str, Any]:
    """W.A.L.T.'s continuous tokenizer: 4 x 8 x 8 compression, 370.4 M parameters.

    The network of `magvit2` with 8 continuous channels instead of a quantizer, at the same cost.
    The paper (arXiv 2312.06662, table 3f) reports a reconstruction FVD of 17.1 on UCF-101 with 8
    channels, 8.2 with 16 and 3.5 with 32 (`continuous_dim`). Training ends by measuring mean and
    standard deviation of the latents for a diffusion model: see `normalize_latents`.
    """
    return dict(image_size=128, continuous_dim=8) | magvit2_options(**FULL, **COMPRESS_8X)


@PRESETS.register("walt-small")
def walt_small() -> dict[str, Any]:
    """Small `walt`: 4 x 8 x 8 compression, 56.4 M parameters.

    For one GPU: 8 continuous channels, at the cost of `magvit2-small`.
    """
    return dict(image_size=128, continuous_dim=8) | magvit2_options(**REDUCED, **COMPRESS_8X)
