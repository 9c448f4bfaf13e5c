"""Tokenizer1d: videos of any size to token sequences of any length."""

import math
import warnings
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from magvit2_pytorch.config import Presets, check_at_least_one
from magvit2_pytorch.quantizers import Quantized, build_quantizer
from magvit2_pytorch.tokenizer.model import VideoTokenizer
from magvit2_pytorch.tokenizer.pretrained import PretrainedTokenizer
from magvit2_pytorch.tokenizer_1d.patches import (
    Size,
    from_patches,
    group_packs,
    to_patches,
)
from magvit2_pytorch.tokenizer_1d.sequence_config import Tokenizer1dConfig
from magvit2_pytorch.tokenizer_1d.sequence_streams import TokenDecodeStream, TokenEncodeStream
from magvit2_pytorch.tokenizer_1d.token_counts import (
    NumTokens,
    Prefixes,
    check_count,
    count_steps,
    parse_target,
)
from magvit2_pytorch.tokenizer_1d.towers import Decoder, Encoder
from magvit2_pytorch.types import Condition, Image, Latents, Precision, Video

PRESETS_1D = Presets(Path(__file__).with_name("presets"))

TokenCodes = Int[Tensor, "_ _"]
"""Codes `b k`."""
TokenLatents = Float[Tensor, "_ _ 1 1 _"]
"""Latents `b d 1 1 k` of videos with k tokens."""
Group = Float[Tensor, "_ _ _ _ _"]
"""Videos `b c t h w` of one size, with one number of tokens."""
Videos = Video | Image | Sequence[Tensor]
"""Videos of one size, or a list of videos `c t h w` and images `c h w` of any sizes."""


class Tokenizer1d(PretrainedTokenizer, nn.Module):
    """Transformer autoencoder with a token sequence of any length.

    Options are the fields of `Tokenizer1dConfig`, by keyword. Videos may have any number of frames
    and any size: they are padded to whole patches by repeating the last frame, row and column, and
    cropped again. The first tokens of a sequence are a coarser description of the whole video, so
    that any beginning of the codes can be decoded. Source: TiTok (arXiv 2406.07550) for the
    sequence of latent tokens, and TiTok-Video for videos of any size.
    """

    config_class = Tokenizer1dConfig
    config: Tokenizer1dConfig
    presets = PRESETS_1D

    def __init__(self, **options: Any):
        super().__init__()
        self.config = config = Tokenizer1dConfig.from_dict(options)
        self.quantizer = build_quantizer(**config.quantizer_options)
        if self.quantizer.codebook_size is None or self.quantizer.num_codebooks > 1:
            raise ValueError(
                f"quantizer {config.quantizer}: tokens are one code each; use one codebook of fsq, "
                "lfq or vector"
            )
        patch_dim = config.channels * math.prod(config.patch)
        options = dict(
            anchored=config.slots == "anchored",
            theta=config.rope_theta,
            window=config.block_window,
        )
        self.encoder = Encoder(config.encoder_size, patch_dim, self.quantizer.latent_dim, **options)
        self.decoder = Decoder(
            config.decoder_size, patch_dim, self.quantizer.quantized_dim, **options
        )

    # Sizes

    num_alone = 0
    """No frames have tokens of their own: every part begins alike."""

    @property
    def time_factor(self) -> int:
        """Frames of a part that a stream encodes to own tokens."""
        return self.config.chunk_frames

    @property
    def space_factor(self) -> int:
        """1: height and width may have any size."""
        return 1

    @property
    def bits_per_pixel(self) -> float:
        """Bits per pixel of a clip of the configured size and tokens."""
        size = (self.config.num_frames, *self.config.height_and_width)
        return math.prod(self.code_shape(*size)) * math.log2(self.codebook_size) / math.prod(size)

    def code_shape(self, num_frames: int, height: int, width: int) -> tuple[int, ...]:
        """Shape of a video's codes with the configured number of tokens."""
        size = (num_frames, height, width)
        return (self.config.default_count(size) * len(self.config.layout(size, 1)),)

    # Groups of videos, with gradients: the videos of a group have one size and one number of tokens

    def encode(self, groups: Sequence[Group], counts: Sequence[int]) -> list[TokenLatents]:
        """Latents `b d 1 1 k` before quantization of each group.

        `counts` are the tokens of a video, or of each block of it.
        """
        layouts = [
            self.config.layout(tuple(video.shape[2:]), check_count(count))
            for video, count in zip(groups, counts, strict=True)
        ]
        patches = [to_patches(video.to(self.dtype), self.config.patch) for video in groups]
        latents = self.encoder(patches, layouts)
        return [rearrange(latent, "b k d -> b d 1 1 k") for latent in latents]

    def quantize(self, latents: Latents) -> Quantized:
        """Quantized latents and their codes `b 1 1 k`, with straight-through gradients."""
        return self.quantizer(latents)

    def decode_latents(self, groups: Sequence[TokenLatents], sizes: Sequence[Size]) -> list[Group]:
        """Videos of groups of one size, from quantized latents.

        Values approximate [-1, 1] and are not clamped.
        """
        layouts = [
            self.config.decoded_layout(latents.shape[-1], size)
            for latents, size in zip(groups, sizes, strict=True)
        ]
        rows = [rearrange(latents, "b d 1 1 k -> b k d").to(self.dtype) for latents in groups]
        patches = self.decoder(rows, layouts)
        return [
            from_patches(x, size, self.config.patch).to(torch.promote_types(z.dtype, self.dtype))
            for x, size, z in zip(patches, sizes, groups, strict=True)
        ]

    # Videos of any sizes

    @torch.no_grad()
    def tokenize(self, video: Videos, num_tokens: NumTokens = None) -> TokenCodes | list[Tensor]:
        """Codes `b k`, int64; a list of `k` of a list.

        `num_tokens` is the number of tokens of a video (with `block_frames`, of each block): one
        for all, one for each, or a text that finds it for each video: "psnr:28" or "mse:0.003" for
        the fewest tokens of that quality among numbers that grow by sqrt(2), "share:0.1" for a
        tenth of the patches. Codes of different lengths are a list. None takes the configured
        number, at most one for each patch. Raises `ValueError` if a number is not in 1 to 4096 or
        the values look like bytes, and warns if they look like [0, 1].
        """
        videos = self._list(video)
        sizes = [tuple(video.shape[1:]) for video in videos]
        if isinstance(num_tokens, str) and parse_target(num_tokens).name != "share":
            codes = self._prefixes(videos).shortest(parse_target(num_tokens).max_error)
        else:
            codes = self._tokenize_to_counts(videos, self.counts(sizes, num_tokens))
        if isinstance(video, Tensor) and len({len(c) for c in codes}) == 1:
            return torch.stack(codes)
        return codes

    def counts(self, sizes: Sequence[Size], num_tokens: NumTokens = None) -> list[int]:
        """Tokens of each video or block, for requests other than a quality."""
        if num_tokens is None:
            return [self.config.default_count(size) for size in sizes]
        if isinstance(num_tokens, int):
            return [check_count(num_tokens)] * len(sizes)
        if isinstance(num_tokens, str):
            name, value = parse_target(num_tokens)
            if name != "share":
                raise ValueError(f"num_tokens is {num_tokens!r}: give a number, or 'share:0.1'")
            return [
                check_count(max(1, round(value * self.config.num_patches(size)))) for size in sizes
            ]
        if len(num_tokens) != len(sizes):
            raise ValueError(
                f"num_tokens has {len(num_tokens)} numbers for {len(sizes)} videos: give one each"
            )
        return [check_count(count) for count in num_tokens]

    @torch.no_grad()
    def decode(
        self, codes: TokenCodes | Sequence[Tensor], sizes: Size | Sequence[Size] | None = None
    ) -> Group | list[Tensor]:
        """Videos `b c t h w` from codes; a list from a list.

        `codes` may be the first ones of a video. `sizes` are frames, height and width: those of the
        videos that were encoded, or others; one for all, or one for each. None is the configured
        size. Raises `ValueError` if they do not fit, and warns of a size above that of training.
        """
        batched = isinstance(codes, Tensor)
        config = self.config
        sizes = (config.num_frames, *config.height_and_width) if sizes is None else sizes
        if isinstance(sizes[0], int):
            sizes = [tuple(sizes)] * len(codes)
        if len(sizes) != len(codes):
            raise ValueError(f"{len(sizes)} sizes for {len(codes)} videos: give one each")
        for size in {tuple(size) for size in sizes}:
            check_at_least_one(size=min(size))
            if text := config.size_warning(size):
                warnings.warn(text, stacklevel=2)
        videos = self._decode_list(list(codes), [tuple(size) for size in sizes])
        return torch.stack(videos) if batched and len(set(sizes)) == 1 else videos

    def _decode_list(self, codes: list[Tensor], sizes: list[Size]) -> list[Tensor]:
        keys = [(len(c), size) for c, size in zip(codes, sizes, strict=True)]
        lengths = [sum(b.length for b in self.config.decoded_layout(*key)) for key in keys]
        videos: dict[int, Tensor] = {}
        for groups in group_packs(keys, lengths):
            latents = [self.decode_codes(torch.stack([codes[i] for i in g])) for g in groups]
            decoded = self.decode_latents(latents, [keys[group[0]][1] for group in groups])
            videos |= zip(chain(*groups), chain(*decoded), strict=True)
        return [videos[number] for number in range(len(keys))]

    def decode_from_code_indices(
        self, codes: TokenCodes, size: Size | None = None, num_frames: int | None = None
    ) -> Video:
        """Videos from codes `b k`; `num_frames` replaces the frames of `size`."""
        size = size or (self.config.num_frames, *self.config.height_and_width)
        return self.decode(codes, size if num_frames is None else (num_frames, *size[1:]))

    def decode_codes(self, codes: TokenCodes) -> TokenLatents:
        """Quantized latents `b d 1 1 k` of codes."""
        return self.quantizer.decode_codes(codes[:, None, None].to(self.device))

    @torch.no_grad()
    def allocate(self, videos: Videos, total: int) -> list[int]:
        """Tokens of each video, at most `total`, for the least squared error.

        Each video is encoded once and decoded from beginnings of its codes; errors then fall
        equally steeply with the tokens of each. For `tokenize(videos, num_tokens=...)`. Raises
        `ValueError` if `total` is not enough for the fewest configured tokens of each.
        """
        return self._prefixes(self._list(videos)).divide(total)

    def _tokenize_to_counts(self, videos: list[Tensor], counts: list[int]) -> list[Tensor]:
        keys = [(tuple(video.shape), count) for video, count in zip(videos, counts, strict=True)]
        lengths = [
            sum(b.length for b in self.config.layout(shape[1:], count)) for shape, count in keys
        ]
        codes: dict[int, Tensor] = {}
        for groups in group_packs(keys, lengths):
            stacked = [torch.stack([videos[i] for i in group]) for group in groups]
            latents = self.encode(stacked, [counts[group[0]] for group in groups])
            new = (self.quantize(latent).codes.flatten(1) for latent in latents)
            codes |= zip(chain(*groups), chain(*new), strict=True)
        return [codes[number] for number in range(len(keys))]

    def _prefixes(self, videos: list[Tensor]) -> Prefixes:
        """Codes of the configured length, to take the first ones from."""
        if self.config.block_frames is not None:
            raise ValueError("blocks have one number of tokens each: give num_tokens as a number")
        counts = [self.config.default_count(tuple(video.shape[1:])) for video in videos]
        candidates = [count_steps(self.config.num_tokens[0], count) for count in counts]
        codes = self._tokenize_to_counts(videos, counts)
        return Prefixes(videos, codes, candidates, self._decode_list)

    # Files and long videos

    def encode_stream(
        self, num_tokens: NumTokens = None, precision: Precision = "fp32"
    ) -> TokenEncodeStream:
        """A stream that encodes frames part by part, from any chunks.

        `num_tokens` are those of each part: a block, or without blocks a clip of its own.
        """
        return TokenEncodeStream(self, num_tokens, precision)

    def decode_stream(
        self,
        size: tuple[int, int],
        num_frames: int | None = None,
        precision: Precision = "fp32",
        num_tokens: NumTokens = None,
    ) -> TokenDecodeStream:
        """A stream that decodes parts to frames of this height and width.

        It decodes at most the first `num_tokens` of each part, by default all.
        """
        return TokenDecodeStream(self, size, num_frames, precision, num_tokens)

    # Reconstruction

    def forward(
        self,
        video: Video | Image,
        cond: Condition | None = None,
        return_codes: bool = False,
        return_recon: bool = False,
        num_tokens: int | None = None,
    ):
        """The reconstruction, with the options of `VideoTokenizer`."""
        if cond is not None:
            raise ValueError("a condition was given, but a 1-D tokenizer takes none")
        frames = self.prepare(video, check_values=False)
        size = tuple(frames.shape[2:])
        latents = self.encode([frames], self.counts([size], num_tokens))[0]
        quantized, codes = self.quantize(latents)
        codes = codes.flatten(1)
        if return_codes and not return_recon:
            return codes
        recon = self.decode_latents([quantized], [size])[0]
        recon = recon[:, :, 0] if video.ndim == 4 else recon
        return (codes, recon) if return_codes else recon

    def _list(self, videos: Videos) -> list[Tensor]:
        """Checked videos `c t h w`."""
        if isinstance(videos, Tensor):
            return list(self.prepare(videos))
        if not len(videos):
            raise ValueError("there are no videos: give one or more")
        return [self.prepare(video[None])[0] for video in videos]


AnyTokenizer = VideoTokenizer | Tokenizer1d
"""A tokenizer of a grid of latents, or of a sequence of tokens."""
