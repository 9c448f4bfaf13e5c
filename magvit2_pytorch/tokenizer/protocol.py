"""The interface of tokenizers, against which everything above this room is written."""

from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

from magvit2_pytorch.layers.stateful import Chain
from magvit2_pytorch.quantizers.quantizer import Quantized
from magvit2_pytorch.types import Codes, Condition, Image, Latents, Past, Video


@runtime_checkable
class Tokenizer(Protocol):
    """Encodes videos to codes and decodes them.

    Codes of any shape will do: a grid of latents (`VideoTokenizer`) or a sequence of tokens. Each
    is an index into a codebook. Tokenizers that are causal also have streams.
    """

    @property
    def codebook_size(self) -> int | None:
        """Number of codes in one codebook; None if latents are continuous."""

    @property
    def num_codebooks(self) -> int:
        """Codes per position, each from its own codebook."""

    def code_shape(self, num_frames: int, height: int, width: int) -> tuple[int, ...]:
        """Shape of the codes of one video, without the batch axis."""

    def tokenize(self, video: Video | Image) -> Int[Tensor, "b ..."]:
        """Codes of videos in [-1, 1], int64, of the shape `b *code_shape`."""

    def decode_from_code_indices(self, codes: Int[Tensor, "b ..."]) -> Video:
        """Videos in [-1, 1] from codes of the shape that `tokenize` returns."""

    def save_pretrained(self, save_directory: str | Path) -> Any:
        """Writes a folder for `from_pretrained`."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path) -> "Tokenizer":
        """A tokenizer in eval mode, from a folder or the hub."""


@runtime_checkable
class TiledModel(Protocol):
    """A model that computes frames in tiles of multiples of `space_factor`."""

    config: Any
    training: bool

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def space_factor(self) -> int: ...


@runtime_checkable
class CausalTokenizer(TiledModel, Protocol):
    """A tokenizer that computes chunk by chunk, as `VideoTokenizer` does."""

    encoder: Chain
    decoder: Chain

    @property
    def time_factor(self) -> int: ...

    def prepare(self, video: Tensor, check_values: bool = True) -> Video: ...

    def encode_chunk(
        self, video: Video, past: Past = None, cond: Condition | None = None, **options: Any
    ) -> tuple[Latents, Past]: ...

    def quantize(self, latents: Latents) -> Quantized: ...

    def decode_chunk(
        self, quantized: Latents, past: Past = None, cond: Condition | None = None, **options: Any
    ) -> tuple[Video, Past]: ...

    def decode_codes(self, codes: Codes) -> Latents: ...
