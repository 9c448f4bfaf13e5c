"""VideoTokenizer: video to codes and back. It knows no loss, no optimizer and no data set."""

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from magvit2_pytorch.functional import check_range, pad_frames, padded_num_frames
from magvit2_pytorch.layers.arithmetic import Linear
from magvit2_pytorch.layers.stateful import Residual
from magvit2_pytorch.options import keyword_signature
from magvit2_pytorch.quantizers import Quantized
from magvit2_pytorch.tokenizer.bottleneck import build_quantizer
from magvit2_pytorch.tokenizer.checkpoint import Pretrained
from magvit2_pytorch.tokenizer.code_grid import on_grid
from magvit2_pytorch.tokenizer.config import TokenizerConfig
from magvit2_pytorch.tokenizer.inputs import as_video, check_size
from magvit2_pytorch.tokenizer.ladder import build_encoder_decoder
from magvit2_pytorch.tokenizer.presets import preset
from magvit2_pytorch.tokenizer.streaming import DecodeStream, EncodeStream
from magvit2_pytorch.tokenizer.tile_size import TileSize, Tower, check_tile_size, fit_tile_size
from magvit2_pytorch.tokenizer.tiling import run_tiled
from magvit2_pytorch.types import Codes, Condition, Context, Image, Latents, Past, Precision, Video


class VideoTokenizer(Pretrained, nn.Module):
    """A causal 3D-convolutional autoencoder with a discrete (or continuous) middle.

    Options are the fields of `TokenizerConfig`, by keyword. Video is `b c t h w` in [-1, 1]; an
    image, `b c h w`, is a video of one frame. Of 1 + k * time_factor frames the first makes the
    first latent alone and every `time_factor` more make the next; other counts are padded by
    repeating the last frame, and `forward` crops them off again.
    Source: MAGVIT-v2 (arXiv 2310.05737).
    """

    def __init__(self, **options: Any):
        super().__init__()
        self.config = config = TokenizerConfig.from_dict(options)
        self.time_factor, self.space_factor = config.time_factor, config.space_factor
        self.quantizer = build_quantizer(config)
        self.encoder, self.decoder = build_encoder_decoder(
            config, self.quantizer.latent_dim, self.quantizer.quantized_dim
        )
        dim_cond = config.layer_options.dim_cond
        self.embed_cond = nn.ModuleDict()
        if dim_cond is not None:
            for tower in ("encoder", "decoder"):
                linear = Linear(config.dim_cond, dim_cond)
                self.embed_cond[tower] = nn.Sequential(linear, nn.SiLU())
        # Convolutions on a CPU and on tensor cores run fastest over channels-last memory.
        self.to(memory_format=torch.channels_last_3d)

    @classmethod
    def from_config(cls, config: TokenizerConfig) -> "VideoTokenizer":
        return cls(**config.to_dict())

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> "VideoTokenizer":
        """A named configuration (see `PRESETS`), with some options changed."""
        return cls(**{**preset(name), **overrides})

    # Sizes

    @property
    def codebook_size(self) -> int | None:
        """Codes of one codebook; None when latents are continuous."""
        return self.quantizer.codebook_size

    @property
    def num_codebooks(self) -> int:
        return self.quantizer.num_codebooks

    @property
    def bits_per_pixel(self) -> float | None:
        """Bits of code per pixel of a long video, at a fixed-length code; None if continuous."""
        bits = self.quantizer.bits_per_position
        return None if bits is None else bits / (self.time_factor * self.space_factor**2)

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are, and where video has to be, but for tiled video."""
        return next(self.parameters()).device

    def latent_grid(self, num_frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Latent frames, rows and columns of a video of this size."""
        check_size(height, width, self.space_factor)
        num_latents = 1 + (padded_num_frames(num_frames, self.time_factor) - 1) // self.time_factor
        return num_latents, height // self.space_factor, width // self.space_factor

    # Video to codes

    def encode(
        self,
        video: Video | Image,
        cond: Condition | None = None,
        tile_size: TileSize | None = None,
    ) -> Latents:
        """Latents before quantization, 1 + ceil((t - 1) / time_factor) frames of them.

        With a `tile_size`, frames go through in tiles of so many pixels to a side (a multiple of
        `space_factor`), or as many as memory allows (`auto`): the same but for rounding, without
        gradients, in less memory. A video on the CPU may stay there; latents come from the GPU.
        Raises `TypeError` or `ValueError` for anything but floating-point video of the right
        channels whose height and width divide by `space_factor`.
        """
        video = pad_frames(self.as_video(video), self.time_factor)
        latents, _ = self.encode_chunk(video, None, cond, tile_size, last=True)
        return latents

    def encode_chunk(
        self,
        video: Video,
        past: Past = None,
        cond: Condition | None = None,
        tile_size: TileSize | None = None,
        last: bool = False,
    ) -> tuple[Latents, Past]:
        """Latents of the next frames of a video, and the past that the chunk after needs.

        The first chunk (no past) has 1 + k * time_factor frames, any other k * time_factor. If it
        is the `last`, there is no past to use afterwards. All chunks have the same `tile_size`.
        """
        frames = video.shape[2] - int(past is None)
        if frames % self.time_factor or video.shape[2] < 1:
            start = "1 + " if past is None else ""
            raise ValueError(
                f"a chunk of {video.shape[2]} frames does not fit: give {start}k * "
                f"{self.time_factor} of them"
            )
        video = video.to(self.dtype).contiguous(memory_format=torch.channels_last_3d)
        context = self._context("encoder", cond)._replace(last=last)
        latents, past = self._run("encoder", video, past, context, tile_size)
        return latents.to(self.device), past

    def quantize(self, latents: Latents) -> Quantized:
        """What `decode` hears and the codes; straight-through gradients while training."""
        return self.quantizer(latents)

    @torch.no_grad()
    def tokenize(
        self,
        video: Video | Image,
        cond: Condition | None = None,
        tile_size: TileSize | None = None,
    ) -> Codes:
        """Codes, int64, `b t h w`, with a codebook axis last when there are several.

        `tile_size` is that of `encode`. Floats that hold bytes raise `ValueError`, and a video that
        seems to be in [0, 1] is warned of.
        """
        check_range(video)
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
        """Video from quantized latents: 1 + (t - 1) * time_factor frames, or the first few.

        Values are meant to lie in [-1, 1] but are not clamped, so that losses see how far off
        they are. `tile_size` is that of `encode`; the video is then where the latents were.
        """
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
        """Frames of the next latents, and the past that the chunk after needs.

        Arguments are those of `encode_chunk`.
        """
        dim = self.quantizer.quantized_dim
        if quantized.shape[1] != dim or quantized.shape[2] < 1:
            raise ValueError(
                f"latents of shape {tuple(quantized.shape)}: give b {dim} t h w, one frame or more"
            )
        latents = quantized.to(self.dtype).contiguous(memory_format=torch.channels_last_3d)
        context = self._context("decoder", cond)._replace(latents=latents, last=last)
        video, past = self._run("decoder", latents, past, context, tile_size)
        return video.to(quantized.dtype), past

    def _run(
        self,
        tower: Tower,
        x: Tensor,
        past: Past,
        context: Context,
        tile_size: TileSize | None,
    ) -> tuple[Tensor, Past]:
        layers = self.encoder if tower == "encoder" else self.decoder
        if tile_size is None:
            return layers(x, past, context)
        to_latent = self.space_factor if tower == "encoder" else 1
        grid = (x.shape[3] // to_latent, x.shape[4] // to_latent)
        if tile_size == "auto":
            tile_size = fit_tile_size(self, tower, x)
        check_tile_size(tile_size, self.space_factor)
        tile = tile_size // self.space_factor
        return run_tiled(layers, x, past, context, grid, tile, self.device)

    @torch.no_grad()
    def decode_from_code_indices(
        self,
        codes: Int[Tensor, "b ..."],
        cond: Condition | None = None,
        grid: tuple[int, int, int] | None = None,
        num_frames: int | None = None,
        tile_size: TileSize | None = None,
    ) -> Video:
        """Video from codes as `tokenize` gives them, or flattened to `b n` (`b n q`).

        Flattened codes lie on `grid`, (latent frames, rows, columns); if not said, on frames of
        the configured `image_size`. Raises `ValueError` where they do not fit it.
        """
        height, width = (side // self.space_factor for side in self.config.height_and_width)
        codes = on_grid(codes, self.num_codebooks, grid, default=(height, width))
        return self.decode(self.decode_codes(codes), cond, num_frames, tile_size)

    def decode_codes(self, codes: Codes) -> Latents:
        """The quantized latents that codes stand for, where the codes are."""
        return self.quantizer.decode_codes(codes.to(self.device)).to(codes.device)

    # Pieces of any length

    def encode_stream(
        self,
        cond: Condition | None = None,
        precision: Precision = "fp32",
        tile_size: TileSize | None = None,
    ) -> EncodeStream:
        """A stream to `push` frames into: codes come out, those of the whole video."""
        return EncodeStream(self, cond, precision, tile_size)

    def decode_stream(
        self,
        cond: Condition | None = None,
        num_frames: int | None = None,
        precision: Precision = "fp32",
        tile_size: TileSize | None = None,
    ) -> DecodeStream:
        """A stream to `push` codes into: frames come out, `num_frames` of them at most."""
        return DecodeStream(self, cond, num_frames, precision, tile_size)

    # Latents of a continuous tokenizer, for diffusion models

    def normalize_latents(self, latents: Latents) -> Latents:
        """Latents with mean 0 and standard deviation 1 in each channel, by what was measured.

        Takes what `decode` takes, `quantize(encode(video)).quantized`. Training measures at its
        end, and `training.latent_statistics.measure_latents` at any time. Raises `ValueError` for a
        discrete tokenizer, and for one whose latents were never measured.
        """
        return self.quantizer.normalize(latents)

    def denormalize_latents(self, normalized: Latents) -> Latents:
        """Latents for `decode` from normalized ones; raises as `normalize_latents` does."""
        return self.quantizer.denormalize(normalized)

    # How it runs

    def compile(self, **options: Any) -> None:
        """Compiles both towers in place, for all methods; options are those of `torch.compile`.

        The first call takes its time, and so does the first with a past or of another size.
        """
        # Both towers count as one function: whole videos, first chunks and later ones, each with
        # and without gradients, of fixed sizes and of any, are more graphs than PyTorch expects.
        config = torch._dynamo.config
        config.cache_size_limit = max(config.cache_size_limit, 64)
        self.encoder.compile(**options)
        self.decoder.compile(**options)

    def checkpoint_activations(self, on: bool = True) -> None:
        """Whether residual layers keep nothing for the backward pass, but compute it again then.

        Training then takes a third more computation and a fraction of the memory.
        """
        for module in self.modules():
            if isinstance(module, Residual):
                module.checkpointed = on

    # Both ways

    def forward(
        self,
        video: Video | Image,
        cond: Condition | None = None,
        return_codes: bool = False,
        return_recon: bool = False,
    ):
        """The reconstruction, of the size of what came in.

        `return_codes` gives the codes instead, or (codes, reconstruction) if `return_recon` is
        asked for too, as in magvit2-pytorch.
        """
        frames = self.as_video(video)
        quantized, codes = self.quantize(self.encode(frames, cond))
        if return_codes and not return_recon:
            return codes
        recon = self.decode(quantized, cond, num_frames=frames.shape[2])
        recon = recon[:, :, 0] if video.ndim == 4 else recon
        return (codes, recon) if return_codes else recon

    # Checks

    def as_video(self, video: Tensor) -> Video:
        """Video `b c t h w`, an image as one frame, or the error that says why it is neither."""
        return as_video(video, self.config.channels, self.space_factor)

    def _context(self, tower: str, cond: Condition | None) -> Context:
        if self.config.dim_cond is None:
            if cond is not None:
                raise ValueError("a condition was given, but no layer of this tokenizer uses it")
            return Context()
        if cond is None:
            raise ValueError(
                f"this tokenizer is conditional: give cond, b x {self.config.dim_cond}"
            )
        if cond.ndim != 2 or cond.shape[1] != self.config.dim_cond:
            raise ValueError(
                f"cond has shape {tuple(cond.shape)}, but dim_cond is {self.config.dim_cond}: "
                f"give b x {self.config.dim_cond}"
            )
        return Context(cond=self.embed_cond[tower](cond.to(self.dtype)))


VideoTokenizer.__signature__ = keyword_signature(TokenizerConfig)
