"""The interface of tokenizers, against which everything above this room is written."""

from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Int
from torch import Tensor

from magvit2_pytorch.types import Image, Video


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
        """A tokenizer in eval mode from a folder or a name on the Hugging Face hub."""
