"""Named configurations: what they are, what they cost, what they should reach."""

from collections.abc import Callable
from typing import Any

from magvit2_pytorch.registry import Registry
from magvit2_pytorch.tokenizer.layer_spec import LayerEntry

Preset = Callable[[], dict[str, Any]]

PRESETS: Registry[Preset] = Registry("preset")


def preset(name: str) -> dict[str, Any]:
    """The options of a named configuration, to change and hand to `VideoTokenizer`."""
    return PRESETS[name]()


@PRESETS.register("small")
def small() -> dict[str, Any]:
    """For a laptop: 4 x 8 x 8 compression, 64,000 codes (15.97 bits) to a block, 5.8 M parameters.

    With its recipe, four and a half minutes on two CPU cores bring held-out frames of the clips it
    trains on to 26 dB (`magvit2 demo`; experiments in benchmarks/LOG.md). Finite-scalar
    quantization, as it was a decibel ahead of lookup-free codes of the same size at equal time.
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
    """For tests and first steps: 2 x 4 x 4 compression, 10 bits, a few thousand parameters."""
    return dict(
        image_size=16,
        init_dim=8,
        layers=("residual", "compress_space", "compress_space", "compress_time", "residual"),
        input_conv_kernel_size=3,
        codebook_size=2**10,
    )


def magvit2_layers(
    init_dim: int, dim_mults: tuple[int, ...], halve_time: tuple[bool, ...], num_units: int
) -> tuple[LayerEntry, ...]:
    """The MAGVIT-v2 network as layers: one level for each of `dim_mults`, the first being 1.

    `halve_time` says for each step from one level to the next whether frames are merged too.
    """
    if dim_mults[:1] != (1,) or len(halve_time) != len(dim_mults) - 1:
        raise ValueError(
            f"dim_mults {dim_mults} and halve_time {halve_time}: the first level is as wide as "
            "init_dim, so its mult is 1, and there is one step less than levels"
        )
    steps = (
        (f"magvit2_compress_space{'_time' * time}", init_dim * mult, num_units)
        for mult, time in zip(dim_mults[1:], halve_time, strict=True)
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
    """The network with its norms, kernels and loss weights, but for the quantizer and the size.

    Weights of the losses are meant to stand beside a squared error weighted 5.
    """
    return dict(
        init_dim=init_dim,
        layers=magvit2_layers(init_dim, dim_mults, halve_time, num_units),
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


EIGHTFOLD = dict(dim_mults=(1, 2, 2, 4), halve_time=(False, True, True))
SIXTEENFOLD = dict(dim_mults=(1, 1, 2, 2, 4), halve_time=(False, False, True, True))
STILL = SIXTEENFOLD | dict(halve_time=(False,) * 4, kernel_size=(1, 3, 3))
FULL = dict(init_dim=128, num_units=4)
REDUCED = dict(init_dim=64, num_units=2)


@PRESETS.register("magvit2")
def magvit2() -> dict[str, Any]:
    """MAGVIT-v2 of the paper: 4 x 8 x 8 compression, 18 bits to a block, 370.5 M parameters.

    17 x 128 x 128 clips to 5 x 16 x 16 codes. The paper reports a reconstruction FVD of 8.62 on
    UCF-101 (arXiv 2310.05737, table 5c) after training on batches of 256. There and back costs
    10.7 TFLOP a clip, a training step three times that and 12.5 GiB of activations in float32;
    weights, gradients, Adam's moments and averages take 7.4 GB: plan for many large GPUs.
    """
    return dict(image_size=128, codebook_size=2**18) | magvit2_options(**FULL, **EIGHTFOLD)


@PRESETS.register("magvit2-small")
def magvit2_small() -> dict[str, Any]:
    """`magvit2` for one GPU: 4 x 8 x 8 compression, 18 bits to a block, 56.4 M parameters.

    Half the width, half the units: 1.6 TFLOP a clip there and back, and to train 3.6 GiB of
    activations a clip in float32 besides 1.1 GB of weights, moments and averages.
    """
    return dict(image_size=128, codebook_size=2**18) | magvit2_options(**REDUCED, **EIGHTFOLD)


@PRESETS.register("o2")
def o2() -> dict[str, Any]:
    """O2-MAGVIT2's video model: 4 x 16 x 16 compression, 18 bits to a block, 379.8 M parameters.

    17 x 256 x 256 clips to 5 x 16 x 16 codes, a quarter of MAGVIT-v2's rate. `magvit2 convert`
    turns its checkpoints into this model. No reconstruction figures were published for it.
    There and back costs 27.7 TFLOP a clip, training 42 GiB of activations a clip in float32.
    """
    return dict(image_size=256, codebook_size=2**18) | magvit2_options(**FULL, **SIXTEENFOLD)


@PRESETS.register("o2-small")
def o2_small() -> dict[str, Any]:
    """`o2` for one GPU: 4 x 16 x 16 compression, 18 bits to a block, 57.9 M parameters.

    Half the width, half the units: 3.8 TFLOP a clip there and back, and to train 11.7 GiB of
    activations a clip in float32.
    """
    return dict(image_size=256, codebook_size=2**18) | magvit2_options(**REDUCED, **SIXTEENFOLD)


@PRESETS.register("o2-image")
def o2_image() -> dict[str, Any]:
    """Stage I of `o2`, for images: 1 x 16 x 16 compression, 18 bits to a block, 115.1 M parameters.

    The same network without time. Trained on images, it is what `init_from` inflates to `o2`.
    There and back costs 0.6 TFLOP an image, training 2.4 GiB of activations in float32.
    """
    return dict(image_size=256, codebook_size=2**18) | magvit2_options(**FULL, **STILL)


@PRESETS.register("o2-image-small")
def o2_image_small() -> dict[str, Any]:
    """Stage I of `o2-small`: 1 x 16 x 16 compression, 18 bits to a block, 16.4 M parameters.

    There and back costs 0.08 TFLOP an image, training 0.7 GiB of activations in float32.
    """
    return dict(image_size=256, codebook_size=2**18) | magvit2_options(**REDUCED, **STILL)


@PRESETS.register("walt")
def walt() -> dict[str, Any]:
    """W.A.L.T.'s tokenizer: 4 x 8 x 8 compression to 8 continuous channels, 370.4 M parameters.

    The network of `magvit2` without a quantizer. The paper (arXiv 2312.06662, table 3f) reports a
    reconstruction FVD of 17.1 on UCF-101 with 8 channels, 8.2 with 16 and 3.5 with 32
    (`continuous_dim`). It costs what `magvit2` costs. For a diffusion model, training ends by
    measuring the latents' mean and deviation: see `normalize_latents`.
    """
    return dict(image_size=128, continuous_dim=8) | magvit2_options(**FULL, **EIGHTFOLD)


@PRESETS.register("walt-small")
def walt_small() -> dict[str, Any]:
    """`walt` for one GPU: 4 x 8 x 8 compression to 8 continuous channels, 56.4 M parameters.

    It costs what `magvit2-small` costs.
    """
    return dict(image_size=128, continuous_dim=8) | magvit2_options(**REDUCED, **EIGHTFOLD)
