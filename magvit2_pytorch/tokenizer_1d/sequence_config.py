"""Configuration of a 1-D tokenizer: frozen, strict, plain JSON."""

import math
from dataclasses import dataclass
from typing import Any, Literal

from magvit2_pytorch.config import Options, to_tuples
from magvit2_pytorch.layers.transformer import TransformerSize
from magvit2_pytorch.tokenizer_1d.patches import MAX_TOKENS, Block, Size, patch_grid

Slots = Literal["anchored", "learned"]


@dataclass(frozen=True, kw_only=True)
class Tokenizer1dConfig(Options):
    """Options of a `Tokenizer1d`. Round-trips through JSON and rejects unknown keys."""

    owner = "the 1-D tokenizer"

    channels: int = 3
    """Channels of a video."""
    num_frames: int = 8
    """Most frames of training clips; longer files are encoded in parts of this length."""
    image_size: int | tuple[int, int] = 64
    """Largest height and width of training clips in pixels, or one number for both."""
    num_tokens: tuple[int, int] = (8, 128)
    """Fewest and most tokens that training draws; the latter is the default of `tokenize`."""
    patch_size: tuple[int, int] = (4, 8)
    """Frames, and pixels to a side, of a patch."""
    encoder_dim: int = 192
    """Channels of the encoder."""
    encoder_depth: int = 3
    """Blocks of the encoder."""
    encoder_heads: int = 3
    """Attention heads of the encoder."""
    decoder_dim: int = 192
    """Channels of the decoder."""
    decoder_depth: int = 4
    """Blocks of the decoder."""
    decoder_heads: int = 3
    """Attention heads of the decoder."""
    heads_per_kv_head: int = 1
    """Attention heads that share keys and values."""
    quantizer: dict[str, Any] | None = None
    """Name and options of the quantizer; None is FSQ with the levels 7, 7, 7, 5, 5."""
    slots: Slots = "anchored"
    """`anchored` begins each token with the mean of the patches around its anchor; `learned` gives
    all tokens one learned vector and tells them apart by their positions, as TiTok-Video does."""
    rope_theta: float = 100.0
    """Ratio of the largest to the smallest frequency of rotary positions."""
    block_frames: int | None = None
    """Frames of a block with its own tokens, which sees itself and blocks before it: video can be
    of any length, and can be streamed. None: all patches of a video see each other."""
    block_window: int = 2
    """Blocks that a block sees, itself included."""

    def __post_init__(self):
        for name in ("image_size", "num_tokens", "patch_size"):
            value = getattr(self, name)
            if not isinstance(value, int):
                object.__setattr__(self, name, tuple(value))
        if self.quantizer is not None:
            object.__setattr__(self, "quantizer", to_tuples(dict(self.quantizer)))
        if self.channels not in (1, 3, 4):
            raise ValueError(f"channels is {self.channels}: use 1 (grey), 3 (RGB) or 4 (RGBA)")
        for name in ("num_frames", "rope_theta", "heads_per_kv_head", "block_window"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: give 1 or more")
        if min(self.height_and_width) < 1:
            raise ValueError(f"image_size is {self.image_size}: sides have 1 pixel or more")
        if len(self.patch_size) != 2 or min(self.patch_size) < 1:
            raise ValueError(f"patch_size {self.patch_size}: give (frames, pixels to a side)")
        low, high = self.num_tokens
        if not 1 <= low <= high <= MAX_TOKENS:
            raise ValueError(
                f"num_tokens is {self.num_tokens}: give the fewest and the most, from 1 to "
                f"{MAX_TOKENS}"
            )
        if self.slots not in ("anchored", "learned"):
            raise ValueError(f"slots is {self.slots!r}: use 'anchored' or 'learned'")
        time = self.patch_size[0]
        if self.block_frames is not None and (self.block_frames < 1 or self.block_frames % time):
            raise ValueError(
                f"block_frames is {self.block_frames}: give a multiple of the {time} frames of a "
                "patch"
            )
        _ = self.encoder_size, self.decoder_size  # checks widths and heads

    @property
    def height_and_width(self) -> tuple[int, int]:
        """Height and width of `image_size` in pixels."""
        size = self.image_size
        return (size, size) if isinstance(size, int) else size

    @property
    def patch(self) -> tuple[int, int, int]:
        """Frames, height and width of a patch."""
        time, side = self.patch_size
        return time, side, side

    @property
    def chunk_frames(self) -> int:
        """Frames that a stream encodes together."""
        return self.block_frames or self.num_frames

    @property
    def quantizer_options(self) -> dict[str, Any]:
        """Name and options for `build_quantizer`."""
        return self.quantizer or {"name": "fsq", "levels": (7, 7, 7, 5, 5)}

    @property
    def encoder_size(self) -> TransformerSize:
        return self._size(self.encoder_dim, self.encoder_depth, self.encoder_heads)

    @property
    def decoder_size(self) -> TransformerSize:
        return self._size(self.decoder_dim, self.decoder_depth, self.decoder_heads)

    def _size(self, dim: int, depth: int, heads: int) -> TransformerSize:
        if heads % self.heads_per_kv_head:
            raise ValueError(
                f"heads_per_kv_head is {self.heads_per_kv_head}: it must divide {heads} heads"
            )
        return TransformerSize(dim, depth, heads, heads // self.heads_per_kv_head)

    # Sizes of videos: frames, height and width in pixels

    def num_patches(self, size: Size) -> int:
        """Patches of a video, or of each whole block of it."""
        frames = min(size[0], self.block_frames or size[0])
        return math.prod(patch_grid((frames, *size[1:]), self.patch))

    def default_count(self, size: Size) -> int:
        """Tokens of a video or block, at most one for each patch."""
        return min(self.num_tokens[1], self.num_patches(size))

    def layout(self, size: Size, count: int) -> list[Block]:
        """Blocks of a video, of `count` tokens each, or one block."""
        frames, rows, columns = patch_grid(size, self.patch)
        step = frames if self.block_frames is None else self.block_frames // self.patch_size[0]
        return [
            Block((min(step, frames - start), rows, columns), count, start, step)
            for start in range(0, frames, step)
        ]

    def decoded_layout(self, num_codes: int, size: Size) -> list[Block]:
        """Blocks of a video with so many codes; `ValueError` unless they fit."""
        if len(size) != 3 or min(size) < 1:
            raise ValueError(f"size is {size}: give frames, height and width in pixels")
        num_blocks = len(self.layout(size, 1))
        if num_codes < num_blocks or num_codes % num_blocks:
            raise ValueError(
                f"{num_codes} codes do not divide among {num_blocks} blocks of {size[0]} frames: "
                "give as many codes for each block"
            )
        return self.layout(size, num_codes // num_blocks)

    def size_warning(self, size: Size) -> str:
        """Message on a video larger than those of training, or ""."""
        largest = (self.num_frames, *self.height_and_width)
        first = 0 if self.block_frames is None else 1
        if all(a <= b for a, b in zip(size[first:], largest[first:], strict=True)):
            return ""
        size, largest = (" x ".join(map(str, sides)) for sides in (size, largest))
        return f"{size} is above {largest}, the largest size of training: quality may suffer"
