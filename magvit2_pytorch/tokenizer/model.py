"""VideoTokenizer: video to codes and back, without losses, optimizers or data sets."""

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from magvit2_pytorch.config import check_at_least_one
from magvit2_pytorch.functional import check_finite, pad_frames, padded_num_frames
from magvit2_pytorch.layers.arithmetic import Linear
from magvit2_pytorch.layers.stateful import Residual
from magvit2_pytorch.quantizers import Quantized, build_quantizer
from magvit2_pytorch.runtime import compile_in_place
from magvit2_pytorch.tokenizer.build import build_encoder_decoder
from magvit2_pytorch.tokenizer.inputs import check_cond, check_size, unflatten_codes
from magvit2_pytorch.tokenizer.presets import PRESETS
from magvit2_pytorch.tokenizer.pretrained import PretrainedTokenizer
from magvit2_pytorch.tokenizer.streaming import DecodeStream, EncodeStream
from magvit2_pytorch.tokenizer.tiling import TileSize, in_tiles
from magvit2_pytorch.tokenizer.tokenizer_config import TokenizerConfig
from magvit2_pytorch.types import Codes, Condition, Context, Image, Latents, Past, Precision, Video


class VideoTokenizer(PretrainedTokenizer, nn.Module):
    """Causal 3D convolutional autoencoder with discrete (or continuous) latents.

    Options are the fields of `TokenizerConfig`, by keyword. Video is `b c t h w` in [-1, 1]; an
    image, `b c h w`, is a video of one frame. The first frame has a latent frame of its own, and
    every further `time_factor` frames share one. Videos that do not have 1 + k * time_factor frames
    are padded by repeating the last frame; `forward` crops the padding from the reconstruction.
    Source: MAGVIT-v2 (arXiv 2310.05737).
    """

    num_alone = 1
    """First frames of a video that have a latent of their own."""
    config_class = TokenizerConfig
    config: TokenizerConfig
    presets = PRESETS

    def __init__(self, **options: Any):
        super().__init__()
        self.config = config = TokenizerConfig.from_dict(options)
        self.time_factor, self.space_factor = config.time_factor, config.space_factor
        self.look_ahead = config.look_ahead
        self.quantizer = build_quantizer(**config.quantizer_options)
        self.encoder, self.decoder = build_encoder_decoder(
            config, self.quantizer.latent_dim, self.quantizer.quantized_dim
        )
        dim_cond = config.layer_options.dim_cond
        self.embed_cond = nn.ModuleDict()
        if dim_cond is not None:
            for name in ("encoder", "decoder"):
                linear = Linear(config.dim_cond, dim_cond)
                self.embed_cond[name] = nn.Sequential(linear, nn.SiLU())
        # Convolutions on a CPU and on tensor cores are fastest in channels-last memory format.
        self.to(memory_format=torch.channels_last_3d)

    # Sizes

    @property
    def bits_per_pixel(self) -> float | None:
        """Bits per pixel of a long video's codes; None if continuous."""
        bits = self.quantizer.bits_per_position
        return None if bits is None else bits / (self.time_factor * self.space_factor**2)

    def latent_grid(self, num_frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Latent frames, rows and columns for a video of this size."""
        check_size(height, width, self.space_factor)
        num_latents = 1 + (padded_num_frames(num_frames, self.time_factor) - 1) // self.time_factor
        return num_latents, height // self.space_factor, width // self.space_factor

    def code_shape(self, num_frames: int, height: int, width: int) -> tuple[int, ...]:
        """Shape of one video's codes; several codebooks are the last axis."""
        grid = self.latent_grid(num_frames, height, width)
        return grid if self.num_codebooks == 1 else (*grid, self.num_codebooks)

    # Video to codes

    def encode(
        self, video: Video | Image, cond: Condition | None = None, tile_size: TileSize | None = None
    ) -> Latents:
        """Latents before quantization, 1 + ceil((t - 1) / time_factor) frames.

        `tile_size` computes frames in tiles with sides of that many pixels (a multiple of
        `space_factor`) or, with "auto", in the largest tiles that fit into memory: equal except for
        rounding, without gradients. The video may then stay on the CPU; latents are on the GPU.
        Raises `TypeError` or `ValueError` for input that is not floating point, has other channels,
        or has sides that are no multiples of `space_factor`, and, except in training mode with
        gradients, for values out of range as `tokenize` does.
        """
        # Training checks its first batch: on a GPU, a look at the values waits for the device.
        is_training_step = self.training and torch.is_grad_enabled()
        video = pad_frames(self.prepare(video, not is_training_step), self.time_factor)
        return self.encode_chunk(video, None, cond, tile_size, last=True)[0]

    def encode_chunk(
        self,
        video: Video,
        past: Past = None,
        cond: Condition | None = None,
        tile_size: TileSize | None = None,
        last: bool = False,
    ) -> tuple[Latents, Past]:
        """Latents of a chunk, and the past for the next chunk.

        The first chunk (no past) has 1 + k * time_factor frames, any other k * time_factor. After
        the `last` chunk the past must not be used. All chunks need the same `tile_size`.
        """
        num_frames = video.shape[2] - int(past is None)
        if num_frames % self.time_factor or video.shape[2] < 1:
            start = "1 + " if past is None else ""
            raise ValueError(
                f"a chunk of {video.shape[2]} frames does not fit: give {start}k * "
                f"{self.time_factor} frames"
            )
        video = video.to(self.dtype).contiguous(memory_format=torch.channels_last_3d)
        context = Context(cond=self._embed("encoder", cond), last=last)
        latents, past = in_tiles(self, self.encoder, tile_size)(video, past, context)
        return latents.to(self.device), past

    def quantize(self, latents: Latents) -> Quantized:
        """Quantized latents and their codes, with straight-through gradients."""
        self._check_finite(latents, "latents")
        return self.quantizer(latents)

    @torch.no_grad()
    def tokenize(
        self, video: Video | Image, cond: Condition | None = None, tile_size: TileSize | None = None
    ) -> Codes:
        """Codes `b t h w`, int64; several codebooks add a last axis.

        `tile_size` is that of `encode`. Raises `ValueError` if the values look like bytes, and
        warns if they look like [0, 1].
        """
        codes = self.quantize(self.encode(video, cond, tile_size)).codes
        if codes is None:
            raise ValueError("continuous latents have no codes: use encode and decode")
        return codes

    # Codes to video

    def decode(
        self,
        quantized: Latents,
        cond: Condition | None = None,
        num_frames: int | None = None,
        tile_size: TileSize | None = None,
    ) -> Video:
        """Video from quantized latents.

        It has 1 + (t - 1) * time_factor frames, of which `num_frames` keeps the first. Values
        approximate [-1, 1] and are not clamped, so that losses see their full error. `tile_size` is
        that of `encode`; the video is then on the device of the latents.
        """
        check_at_least_one(num_frames=num_frames)
        self._check_finite(quantized, "quantized latents")
        video, _ = self.decode_chunk(quantized, None, cond, tile_size, last=True)
        return video if num_frames is None else video[:, :, :num_frames]

    def decode_chunk(
        self,
        quantized: Latents,
        past: Past = None,
        cond: Condition | None = None,
        tile_size: TileSize | None = None,
        last: bool = False,
    ) -> tuple[Video, Past]:
        """Frames of a chunk, and the past for the next chunk.

        Arguments are those of `encode_chunk`. With a `look_ahead` so many frames wait for the next
        chunk; the `last` chunk, which may be empty, returns all.
        """
        dim, at_least = self.quantizer.quantized_dim, int(past is None or not last)
        if quantized.shape[1] != dim or quantized.shape[2] < at_least:
            raise ValueError(
                f"latents of shape {tuple(quantized.shape)}: give b {dim} t h w, one frame or more"
            )
        latents = quantized.to(self.dtype).contiguous(memory_format=torch.channels_last_3d)
        context = Context(cond=self._embed("decoder", cond), latents=latents, last=last)
        video, past = in_tiles(self, self.decoder, tile_size)(latents, past, context)
        return video.to(quantized.dtype), past

    @torch.no_grad()
    def decode_from_code_indices(
        self,
        codes: Int[Tensor, "b ..."],
        cond: Condition | None = None,
        grid: tuple[int, int, int] | None = None,
        num_frames: int | None = None,
        tile_size: TileSize | None = None,
    ) -> Video:
        """Video from codes of the shape that `tokenize` returns, or flat ones.

        Flat codes, `b n` or `b n q`, lie on `grid`, (latent frames, rows, columns), by default on
        frames of the configured `image_size`. Raises `ValueError` if they do not fit.
        """
        height, width = (side // self.space_factor for side in self.config.height_and_width)
        codes = unflatten_codes(codes, self.num_codebooks, grid, default_size=(height, width))
        return self.decode(self.decode_codes(codes), cond, num_frames, tile_size)

    def decode_codes(self, codes: Codes) -> Latents:
        """Quantized latents of codes, on the device of the codes."""
        return self.quantizer.decode_codes(codes.to(self.device)).to(codes.device)

    # Chunks of any length

    def encode_stream(
        self,
        cond: Condition | None = None,
        precision: Precision = "fp32",
        tile_size: TileSize | None = None,
    ) -> EncodeStream:
        """A stream that encodes frames pushed in chunks of any length."""
        return EncodeStream(self, cond, precision, tile_size)

    def decode_stream(
        self,
        cond: Condition | None = None,
        num_frames: int | None = None,
        precision: Precision = "fp32",
        tile_size: TileSize | None = None,
    ) -> DecodeStream:
        """A stream that decodes codes pushed in chunks of any length."""
        return DecodeStream(self, cond, num_frames, precision, tile_size)

    # Latents of a continuous tokenizer, for diffusion models

    def normalize_latents(self, latents: Latents) -> Latents:
        """Latents normalized per channel by measured mean and standard deviation.

        Takes the input of `decode`. Training measures the statistics at its end,
        `training.latent_statistics.measure_latents` at any time. Raises `ValueError` without them.
        """
        return self.quantizer.normalize(latents)

    def denormalize_latents(self, normalized: Latents) -> Latents:
        """The inverse of `normalize_latents`; raises the same errors."""
        return self.quantizer.denormalize(normalized)

    # Execution

    def compile(self, **options: Any) -> None:
        """Compiles encoder and decoder in place; options are those of `torch.compile`.

        The first call is slow, and so is the first with a past or with another size.
        """
        # Encoder and decoder count as one function. Whole videos, first and later chunks, each
        # with and without gradients, with fixed and dynamic sizes, exceed the default limit of 8.
        compile_in_place((self.encoder, self.decoder), **({"recompile_limit": 64} | options))

    def checkpoint_activations(self, on: bool = True) -> None:
        """Recomputes residual layers in the backward pass.

        Training then needs a third more computation and a fraction of the memory.
        """
        for module in self.modules():
            if isinstance(module, Residual):
                module.checkpointed = on

    # Reconstruction

    def forward(
        self,
        video: Video | Image,
        cond: Condition | None = None,
        return_codes: bool = False,
        return_recon: bool = False,
    ):
        """The reconstruction, in the shape of the input.

        `return_codes` returns the codes instead, and with `return_recon` the pair (codes,
        reconstruction), as in magvit2-pytorch.
        """
        # Training and evaluation read files, whose bright clips only look like another range.
        frames = self.prepare(video, check_values=False)
        self._check_finite(frames, "frames")
        latents, _ = self.encode_chunk(pad_frames(frames, self.time_factor), None, cond, last=True)
        # Weights that have diverged give a reconstruction with NaN, which validation logs.
        quantized, codes = self.quantizer(latents)
        if return_codes and not return_recon:
            return codes
        recon = self.decode_chunk(quantized, None, cond, last=True)[0][:, :, : frames.shape[2]]
        recon = recon[:, :, 0] if video.ndim == 4 else recon
        return (codes, recon) if return_codes else recon

    def _check_finite(self, x: Tensor, name: str) -> None:
        if not (self.training and torch.is_grad_enabled()):
            check_finite(x, name)

    def _embed(self, name: str, cond: Condition | None) -> Tensor | None:
        """Embedding of the condition for `name`, encoder or decoder; None if unconditional."""
        check_cond(cond, self.config.dim_cond)
        if cond is None:
            return None
        self._check_finite(cond, "values of cond")
        return self.embed_cond[name](cond.to(self.dtype))
