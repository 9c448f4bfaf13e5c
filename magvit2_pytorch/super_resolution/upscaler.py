"""SuperResolution: decoded frames to frames of two or four times the size."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from magvit2_pytorch.config import Options, Presets
from magvit2_pytorch.functional import check_finite, check_range, pad_space
from magvit2_pytorch.layers.conv import PadMode
from magvit2_pytorch.layers.norm import NormName, NormSpec
from magvit2_pytorch.layers.resample import BicubicUpsample, LappedFilter
from magvit2_pytorch.layers.stateful import Chain, Residual
from magvit2_pytorch.tokenizer.build import input_layer, output_layer
from magvit2_pytorch.tokenizer.inputs import validate_video
from magvit2_pytorch.tokenizer.layer_spec import (
    Grid,
    LayerEntry,
    LayerOptions,
    normalize_entry,
    parse_layer,
)
from magvit2_pytorch.tokenizer.pretrained import Pretrained
from magvit2_pytorch.tokenizer.streaming import check_same_size, inference
from magvit2_pytorch.tokenizer.tiling import TileSize, fit_tile_size, in_tiles
from magvit2_pytorch.types import Context, Image, Past, Precision, Video

Enlarged = Float[Tensor, "b c t y x"]
"""Enlarged video, in the range of its input but not clamped to it."""

SR_PRESETS = Presets(Path(__file__).with_name("presets"))


@dataclass(frozen=True, kw_only=True)
class SuperResolutionConfig(Options):
    """Options of a `SuperResolution`."""

    owner = "a SuperResolution"

    scale: int = 2
    """Pixels of the output to the side of a pixel of the input: 2 or 4."""
    channels: int = 3
    """1 (grey), 3 (RGB) or 4 (RGBA)."""
    dim: int = 32
    """Channels inside."""
    layers: tuple[LayerEntry, ...] = (("factorized_residual", 6),)
    """Layers, as those of a tokenizer's encoder; they must keep the size and the frame rate."""
    kernel_size: int = 3
    """Kernel of the residual units, and of the first and the last convolution."""
    patch_size: int = 1
    """Pixels of the input to the side of a cell that the layers see. Above 1 the first and the last
    convolution are linear maps of patches, and the patches drawn overlap. With 4, layers of four
    times the width see four times as far in the same time."""
    pad_mode: PadMode = "first_frame"
    """Padding of convolutions, as in `TokenizerConfig`."""
    norm: NormName = "layer"
    """Norm of convolutional layers, as in `TokenizerConfig`."""

    def __post_init__(self):
        object.__setattr__(self, "layers", tuple(normalize_entry(e) for e in self.layers))
        if self.scale not in (2, 4):
            raise ValueError(f"scale is {self.scale}: use 2 or 4")
        if self.channels not in (1, 3, 4):
            raise ValueError(f"channels is {self.channels}: use 1 (grey), 3 (RGB) or 4 (RGBA)")
        if self.dim < 1:
            raise ValueError(f"dim is {self.dim}: give 1 or more")
        if self.patch_size < 1:
            raise ValueError(f"patch_size is {self.patch_size}: give 1 or more")
        for entry, spec, grid in zip(self.layers, self.layer_specs, self.grids[1:], strict=True):
            needs_more = spec.conditional or spec.reads_latents
            if needs_more or grid.time * grid.space > 1:
                raise ValueError(
                    f"layer {entry!r}: a SuperResolution takes layers that keep the size and the "
                    "frame rate and need frames only, such as ('factorized_residual', 6)"
                )

    @property
    def layer_specs(self):
        return tuple(parse_layer(entry) for entry in self.layers)

    @property
    def layer_options(self) -> LayerOptions:
        return LayerOptions(
            kernel_size=self.kernel_size, pad_mode=self.pad_mode, norm=NormSpec(self.norm)
        )

    @property
    def grids(self) -> list[Grid]:
        """The grid before every layer and after the last."""
        grids = [Grid(self.dim)]
        for spec in self.layer_specs:
            grids.append(spec.after(grids[-1], self.layer_options))
        return grids


def build_network(config: SuperResolutionConfig) -> Residual:
    """Bicubic enlargement, plus a residual that starts at zero."""
    options, grids = config.layer_options, config.grids
    patch, padding, norm = config.patch_size, dict(pad_mode=config.pad_mode), options.norm
    kernel, frame_kernel = config.kernel_size, (1, config.kernel_size, config.kernel_size)
    if patch > 1:
        kernel = frame_kernel = 1
        norm = None
    first = input_layer(config.channels, config.dim, kernel, patch=(1, patch), **padding)
    drawn = patch * config.scale
    last = output_layer(
        grids[-1].dim, config.channels, frame_kernel, patch=(1, drawn), norm=norm, **padding
    )
    for parameter in last.layers[-1].parameters():
        nn.init.zeros_(parameter)
    if patch > 1:
        last = Chain((last, LappedFilter(drawn)))
    layers = [
        spec.build(grid, options)[0]
        for spec, grid in zip(config.layer_specs, grids[:-1], strict=True)
    ]
    return Residual(Chain((first, *layers, last)), shortcut=BicubicUpsample(config.scale))


class SuperResolution(Pretrained, nn.Module):
    """Causal network that enlarges the frames of a video by `scale`.

    The output is the bicubic enlargement of the input plus a learned residual, which is zero at the
    start. Frame j depends on frames up to j, so that an image is a video of one frame. Options are
    the fields of `SuperResolutionConfig`, by keyword. Videos are `b c t h w` of any size, in
    [-1, 1]; results are not clamped.
    Source: residuals to an interpolation, VDSR (arXiv 1511.04587); channels to pixels at the end,
    ESPCN (arXiv 1609.05158).
    """

    config_class = SuperResolutionConfig
    config: SuperResolutionConfig
    presets = SR_PRESETS
    tag = "video-super-resolution"

    def __init__(self, **options: Any):
        super().__init__()
        self.config = SuperResolutionConfig.from_dict(options)
        self.scale, self.space_factor = self.config.scale, self.config.patch_size
        self.network = build_network(self.config)
        self.to(memory_format=torch.channels_last_3d)

    def forward(
        self, video: Video | Image, tile_size: TileSize | None = None
    ) -> Enlarged | Float[Tensor, "b c y x"]:
        """Enlarged video or image.

        `tile_size` computes frames in tiles with sides of that many pixels of the input or, with
        "auto", in the largest tiles that fit into memory: equal except for rounding, without
        gradients. The video may then stay on the CPU. Raises `TypeError` or `ValueError` for input
        that is not floating point, or has other channels.
        """
        frames = self.prepare(video, check_values=False)
        out, _ = self.upscale_chunk(frames, None, tile_size, last=True)
        return out[:, :, 0] if video.ndim == 4 else out

    def upscale_chunk(
        self,
        video: Video,
        past: Past = None,
        tile_size: TileSize | None = None,
        last: bool = False,
    ) -> tuple[Enlarged, Past]:
        """Enlarged frames of a chunk, and the past for the next one.

        All chunks need the same `tile_size`. After the `last` one the past must not be used.
        """
        height, width = (self.scale * side for side in video.shape[3:])
        x = pad_space(video.to(self.dtype), self.space_factor)
        x = x.contiguous(memory_format=torch.channels_last_3d)
        out, past = in_tiles(self, self.network, tile_size)(x, past, Context(last=last))
        return out[..., :height, :width].to(video.dtype), past

    def bicubic(self, video: Video) -> Enlarged:
        """The bicubic enlargement to which the network adds."""
        return self.network.shortcut(video)[0]

    def stream(
        self, precision: Precision = "fp32", tile_size: TileSize | None = None
    ) -> "UpscaleStream":
        """A stream that enlarges frames pushed in chunks of any length."""
        return UpscaleStream(self, precision, tile_size)

    def prepare(self, video: Video | Image, check_values: bool = True) -> Video:
        """Checked video `b c t h w`; an image becomes one frame.

        Raises as `forward` does; `check_values` refuses values like bytes, as `tokenize` does.
        """
        video = validate_video(video, self.config.channels, space_factor=1)
        if check_values:
            check_range(video)
        return video


class UpscaleStream:
    """Stream from frames to enlarged frames, for any chunks."""

    def __init__(
        self,
        upscaler: SuperResolution,
        precision: Precision = "fp32",
        tile_size: TileSize | None = None,
    ):
        self.upscaler, self.precision, self.tile_size = upscaler, precision, tile_size
        self.past: Past = None
        self.size: tuple[int, int, int] | None = None
        """Batch, height and width, known after the first frame."""
        self.num_frames = 0
        """Frames pushed so far."""

    def push(self, frames: Video | Image) -> Enlarged:
        """Enlarged frames, as many as there are in `frames`."""
        frames = self.upscaler.prepare(frames, check_values=self.size is None)
        check_finite(frames, "frames")
        self.size = check_same_size(frames, self.size)
        with inference(self.upscaler, self.precision):
            if self.tile_size == "auto":
                self.tile_size = fit_tile_size(self.upscaler, self.upscaler.network, frames)
            out, self.past = self.upscaler.upscale_chunk(frames, self.past, self.tile_size)
        self.num_frames += frames.shape[2]
        return out
