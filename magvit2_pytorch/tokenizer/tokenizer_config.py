"""Configuration of a tokenizer: frozen, strict, plain JSON."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from magvit2_pytorch.config import Options
from magvit2_pytorch.layers.attention import AttentionSize
from magvit2_pytorch.layers.conv import PadMode, Triple, triple
from magvit2_pytorch.layers.norm import NormName, NormSpec
from magvit2_pytorch.layers.resample import check_lapped
from magvit2_pytorch.quantizers.lfq import BitOrder
from magvit2_pytorch.quantizers.quantizer import CodeNormName
from magvit2_pytorch.quantizers.vector import VectorQuantizerName
from magvit2_pytorch.tokenizer.layer_spec import (
    Grid,
    LayerEntry,
    LayerOptions,
    LayerSpec,
    normalize_entry,
    parse_layer,
)
from magvit2_pytorch.tokenizer.quantizer_options import check_quantizer_options, quantizer_options

OF_TRAINER = (
    "adversarial_loss_weight", "multiscale_adversarial_loss_weight", "grad_penalty_loss_weight",
    "perceptual_loss_weight", "discr_kwargs", "multiscale_discrs", "use_gan", "vgg", "vgg_weights",
    "learning_rate", "batch_size", "num_train_steps", "num_frames",
)  # fmt: skip
TRAINING_OPTIONS = {
    name: f"the model holds no losses, give the trainer {name}" for name in OF_TRAINER
} | {
    "quantizer_aux_loss_weight": "give the trainer quantizer_loss_weight",
    "flash_attn": "attention always uses the fastest available kernel",
    "lfq_activation": "a JSON config cannot hold a module, see lfq_norm and "
    "lfq_soft_clamp_input_value",
}
"""Options of other implementations' models, and what to use here instead."""


INFLATABLE = {"inflatable": True}
"""Metadata of options in which a tokenizer may differ from the one it is initialized from: they
change no weights, or only in ways that `convert.inflate` handles."""


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig(Options):
    """Options of a `VideoTokenizer`. Round-trips through JSON and rejects unknown keys."""

    owner = "the tokenizer"
    hints = TRAINING_OPTIONS

    image_size: int | tuple[int, int] = field(default=128, metadata=INFLATABLE)
    """Height and width of training videos in pixels; the model takes any multiple of its stride."""
    channels: int = 3
    """1 (grey), 3 (RGB) or 4 (RGBA)."""
    codes_of: str | None = field(default=None, metadata=INFLATABLE)
    """Fingerprint of another tokenizer whose codes this one decodes too: that with which training
    with `freeze_encoder` began."""
    init_dim: int = 64
    """Channels of the first level."""
    max_dim: int | float | None = None
    """Upper limit for layers that double the channels; None means no limit."""
    layers: tuple[LayerEntry, ...] = field(
        default=("residual", "residual", "residual"), metadata=INFLATABLE
    )
    """Layers of the encoder, from pixels to latents; the decoder has them in reverse order."""
    decoder_layers: tuple[LayerEntry, ...] | None = field(default=None, metadata=INFLATABLE)
    """Layers of the decoder, also from pixels to latents, where they differ from `layers`. They
    must compress as much."""
    residual_conv_kernel_size: int | Triple = field(default=3, metadata=INFLATABLE)
    """Kernel of the residual units: one odd number or (time, height, width)."""
    input_conv_kernel_size: int | Triple = field(default=(7, 7, 7), metadata=INFLATABLE)
    """Kernel of the first convolution of the encoder."""
    output_conv_kernel_size: int | Triple = field(default=(3, 3, 3), metadata=INFLATABLE)
    """Kernel of the last convolution of the decoder."""
    latent_conv_kernel_size: int | Triple = field(default=3, metadata=INFLATABLE)
    """Kernel of the first convolution of the decoder."""
    last_encoder_conv_kernel_size: int | Triple = field(default=1, metadata=INFLATABLE)
    """Kernel of the last convolution of the encoder; 3 in VidTok."""
    norm: NormName = "layer"
    """Norm of convolutional layers: over the channels of each position (`layer`), or over groups of
    channels and all positions of a frame (`group`), as in MAGVIT-v2."""
    norm_groups: int = 32
    """Number of groups of `norm="group"`; it must divide the channels of every level."""
    norm_eps: float = 1e-5
    """Added to the variance by the norms of convolutional layers; 1e-6 in VidTok."""
    output_norm: bool = True
    """Norm and SiLU before the last convolution of encoder and decoder, as in MAGVIT-v2."""
    patch_size: int | tuple[int, int] = field(default=1, metadata=INFLATABLE)
    """Patches that the first convolution reads as channels: pixels to a side, or (frames, pixels).
    The first frame of a video is repeated to fill a patch of its own."""
    lapped_patches: bool = False
    """Let the decoder's patches overlap by half a patch, by an orthogonal filter across their
    borders, so that no grid shows. Needs patches of 4, 6, ... pixels."""
    pad_mode: PadMode = "constant"
    """Padding in space: zeros (`constant`), edge pixels (`replicate`) or mirrored (`reflect`).
    Before the first frame: zeros with `constant`, otherwise copies of it; `first_frame` has them
    with zeros in space."""
    separate_first_frame_encoding: bool = False
    """Use separate two-dimensional input and output convolutions for the first frame."""
    repeat_first_frame: bool = False
    """Put copies of the first frame in front of the video, so that its latent stands for as many
    frames as others, and drop their reconstructions, as VidTok does."""
    dim_cond: int | None = None
    """Size of the condition vector; None without conditional layers."""
    dim_cond_expansion_factor: float = 4.0
    """Size of the condition's embedding, as a multiple of `dim_cond`."""

    codebook_size: int | None = None
    """Codes in one codebook of lookup-free quantization (LFQ): a power of two; any number with
    `vq_type`."""
    num_codebooks: int = 1
    """Codes per position, each from its own codebook."""
    residual_levels: int = 1
    """Levels of LFQ or FSQ, each of what those before it left over; a position then has one code
    per level, and the first levels alone decode too."""
    level_dropout: float = field(default=0.0, metadata=INFLATABLE)
    """Share of the samples that keep a random number of levels in training; needs
    `residual_levels`."""
    quantizer: dict[str, Any] | None = None
    """Any registered quantizer, as {"name": "fsq", "levels": [8, 5, 5]}, instead of the options
    below and `codebook_size`."""
    use_fsq: bool = False
    """Use finite scalar quantization (FSQ, arXiv 2309.15505) instead of LFQ."""
    fsq_levels: tuple[int, ...] | None = None
    """Levels of each FSQ channel; their product is the codebook size."""
    continuous_dim: int | None = None
    """Channels of continuous latents without quantization (W.A.L.T., arXiv 2312.06662)."""
    use_kl: bool = False
    """Sample continuous latents from a Gaussian that the encoder predicts."""
    kl_loss_weight: float = field(default=1e-6, metadata=INFLATABLE)
    """Weight of the KL divergence from a standard normal distribution; needs `use_kl`."""

    vq_type: VectorQuantizerName | None = None
    """Use a learned codebook of `codebook_size` vectors instead of LFQ: `vq`, `simvq` (trains all
    codes at once, arXiv 2411.02038) or `residual` (several levels)."""
    vq_dim: int = 16
    """Channels of the latents and of each codebook vector; needs `vq_type`."""
    vq_num_levels: int = 4
    """Codes per position of `residual`; each level quantizes what the levels before left over."""
    vq_commitment_loss_weight: float = field(default=1.0, metadata=INFLATABLE)
    """Weight of the commitment loss of `vq_type`, the default of vector-quantize-pytorch."""

    lfq_entropy_loss_weight: float = field(default=0.02, metadata=INFLATABLE)
    """Weight of the entropy loss, which favours confident samples and a fully used codebook.
    MAGVIT-v2 has 0.1 with a squared error weighted 5; with one weighted 1, 0.1 cost 2.4 dB
    (benchmarks/LOG.md)."""
    lfq_commitment_loss_weight: float = field(default=0.05, metadata=INFLATABLE)
    """Weight of the commitment loss; MAGVIT-v2 has 0.25 with a squared error weighted 5."""
    lfq_diversity_gamma: float = 1.0
    """Weight of the codebook entropy relative to the entropy per sample."""
    lfq_temperature: float = 0.01
    """Temperature of the distribution over codes in the entropy loss."""
    lfq_entropy_eps: float = field(default=0.0, metadata=INFLATABLE)
    """Added inside the logarithm of the codebook entropy; 1e-5 in O2-MAGVIT2."""
    lfq_entropy_anneal_factor: float = field(default=1.0, metadata=INFLATABLE)
    """Factor on the entropy weight at the start of training; 3 in MAGVIT-v2."""
    lfq_entropy_anneal_steps: int = field(default=2000, metadata=INFLATABLE)
    """Steps until that factor has fallen to 1."""
    lfq_bit_order: BitOrder = "msb"
    """Bit of a code for latent channel 0: the most significant (`msb`: O2-MAGVIT2,
    vector-quantize-pytorch) or the least (`lsb`: the paper's equation 4, Open-MAGVIT2)."""
    lfq_spherical: bool = False
    """Project latents to the unit sphere: binary spherical quantization (arXiv 2406.07548)."""
    lfq_norm: CodeNormName | None = None
    """Norm over the channels of each code, before the sign."""
    lfq_soft_clamp_input_value: float | None = None
    """Bound of a smooth clamp of the latents before the sign; at least 1."""

    attn_dim_head: int = 32
    """Channels per attention head; a multiple of 4."""
    attn_heads: int = 8
    """Number of attention heads."""
    attn_dropout: float = field(default=0.0, metadata=INFLATABLE)
    """Dropout probability of attention weights in training."""
    linear_attn_dim_head: int = 8
    """Channels per head of linear attention."""
    linear_attn_heads: int = 16
    """Number of heads of linear attention."""

    def __post_init__(self):
        if isinstance(self.layers, str):
            raise ValueError(f"layers is {self.layers!r}: give a tuple, ({self.layers!r},)")
        for name in ("layers", "decoder_layers"):
            if (entries := getattr(self, name)) is not None:
                object.__setattr__(self, name, tuple(normalize_entry(e) for e in entries))
        for name in ("residual", "input", "output", "latent", "last_encoder"):
            option = f"{name}_conv_kernel_size"
            size = getattr(self, option)
            object.__setattr__(self, option, size if isinstance(size, int) else triple(size))
        if self.max_dim == math.inf:
            object.__setattr__(self, "max_dim", None)
        self._check_widths()
        check_quantizer_options(vars(self), {f.name: f.default for f in fields(self)})
        self._check_layers()

    def _check_widths(self):
        if self.channels not in (1, 3, 4):
            raise ValueError(f"channels is {self.channels}: use 1 (grey), 3 (RGB) or 4 (RGBA)")
        names = "init_dim dim_cond max_dim attn_heads linear_attn_heads norm_groups"
        for name in names.split():
            value = getattr(self, name)
            if value is not None and (value < 1 or value != int(value)):
                raise ValueError(f"{name} is {value}: give a whole number, 1 or more")
        if len(self.patch) != 2 or min(self.patch) < 1:
            raise ValueError(
                f"patch_size {self.patch_size}: give pixels to a side, or (frames, pixels)"
            )
        if self.lapped_patches:
            check_lapped(self.patch[1])
        if not isinstance(self.image_size, int) and len(self.image_size) != 2:
            raise ValueError(f"image_size {self.image_size}: give one number or (height, width)")

    def _check_layers(self):
        specs = (*self.layer_specs, *self.decoder_layer_specs)
        conditional = [spec.name for spec in specs if spec.conditional]
        if conditional and self.dim_cond is None:
            raise ValueError(f"{conditional[0]!r} needs a condition: give dim_cond")
        if self.dim_cond is not None and not conditional:
            raise ValueError(
                f"dim_cond={self.dim_cond}, but no layer is conditional: use cond_residual, "
                "cond_attend_space, cond_linear_attend_space or cond_attend_time"
            )
        self._check_time()
        size, stride = self.image_size, self.space_factor
        for side in self.height_and_width:
            if side < 1 or side % stride:
                raise ValueError(
                    f"image_size {size} is not a multiple of the layers' stride of {stride}"
                )

    def _check_time(self):
        """Checks that encoder, decoder and a video's start fit together."""
        encoder, decoder = self.grids[-1], self.decoder_grids[-1]
        if (encoder.time, encoder.space) != (decoder.time, decoder.space):
            raise ValueError(
                f"layers compress {encoder.time} x {encoder.space} x {encoder.space} and "
                f"decoder_layers {decoder.time} x {decoder.space} x {decoder.space}: they must "
                "compress alike"
            )
        if self.repeat_first_frame:
            specs = (*self.layer_specs, *self.decoder_layer_specs)
            unfit = [spec.name for spec in specs if spec.one_frame_start]
            unfit += ["separate_first_frame_encoding"] * self.separate_first_frame_encoding
            unfit += [f"patch_size={self.patch_size}"] * (self.patch[0] > 1)
            if unfit:
                raise ValueError(
                    f"repeat_first_frame: {unfit[0]} needs a first latent of one frame; use "
                    "vidtok_compress_time to compress time"
                )
        delayed = [bool(frames) for frames in self._look_aheads]
        for number, spec in enumerate(self.decoder_layer_specs):
            if spec.reads_latents and any(delayed[number + 1 :]):
                raise ValueError(
                    f"{spec.name!r} reads the latents of its frames, which layers nearer to the "
                    "latents delay: put those that look ahead before it"
                )

    @property
    def layer_specs(self) -> tuple[LayerSpec, ...]:
        return tuple(parse_layer(entry) for entry in self.layers)

    @property
    def decoder_layer_specs(self) -> tuple[LayerSpec, ...]:
        """Specs of the decoder's layers, from pixels to latents."""
        entries = self.layers if self.decoder_layers is None else self.decoder_layers
        return tuple(parse_layer(entry) for entry in entries)

    @property
    def layer_options(self) -> LayerOptions:
        dim_cond = self.dim_cond and int(self.dim_cond * self.dim_cond_expansion_factor)
        return LayerOptions(
            max_dim=self.max_dim,
            kernel_size=self.residual_conv_kernel_size,
            pad_mode=self.pad_mode,
            norm=NormSpec(self.norm, self.norm_groups, self.norm_eps),
            dim_cond=dim_cond,
            attention=AttentionSize(self.attn_dim_head, self.attn_heads, self.attn_dropout),
            linear_attention=AttentionSize(self.linear_attn_dim_head, self.linear_attn_heads),
        )

    @property
    def quantizer_options(self) -> dict[str, Any]:
        """Name and options for `build_quantizer`."""
        return quantizer_options(vars(self))

    @property
    def height_and_width(self) -> tuple[int, int]:
        """Height and width of `image_size` in pixels."""
        size = self.image_size
        return (size, size) if isinstance(size, int) else size

    @property
    def patch(self) -> tuple[int, int]:
        """Frames, and pixels to a side, of a patch."""
        size = self.patch_size
        return (1, size) if isinstance(size, int) else size

    @property
    def grids(self) -> list[Grid]:
        """The grid before every layer of the encoder and after the last."""
        return self._grids(self.layer_specs)

    @property
    def decoder_grids(self) -> list[Grid]:
        """`grids` of the decoder's layers, from pixels to latents."""
        return self._grids(self.decoder_layer_specs)

    def _grids(self, specs: Sequence[LayerSpec]) -> list[Grid]:
        time, space = self.patch
        grids = [Grid(dim=self.init_dim, time=time, space=space)]
        for spec in specs:
            grids.append(spec.after(grids[-1], self.layer_options))
        return grids

    @property
    def look_ahead(self) -> int:
        """Frames before its own that a latent may change; 0 if causal."""
        return sum(self._look_aheads)

    @property
    def _look_aheads(self) -> list[int]:
        grids = self.decoder_grids[:-1]
        specs = self.decoder_layer_specs
        return [spec.look_ahead(grid) for spec, grid in zip(specs, grids, strict=True)]

    @property
    def time_factor(self) -> int:
        """Frames per latent frame, except for the first."""
        return self.grids[-1].time

    @property
    def space_factor(self) -> int:
        """Pixels to the side of a latent."""
        return self.grids[-1].space
