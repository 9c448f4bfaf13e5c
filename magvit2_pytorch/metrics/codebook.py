"""Use of the codebook, and bits per pixel."""

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

import torch
import torch.distributed as dist
from einops import rearrange
from jaxtyping import Float, Int, Integer
from torch import Tensor
from torch.utils._pytree import tree_map_only

from magvit2_pytorch.runtime import num_processes


def bits_per_pixel(
    bits_per_position: float, latent_grid: Sequence[int], video_grid: Sequence[int]
) -> float:
    """Bits per pixel of a clip's fixed-length codes, without entropy coding.

    Both grids are (frames, height, width). The first latent frame encodes only one video frame,
    so a short clip costs more per pixel than a long one.
    """
    for name, grid in (("latent_grid", latent_grid), ("video_grid", video_grid)):
        if len(grid) != 3 or min(grid) < 1:
            raise ValueError(f"{name} is {tuple(grid)}: give frames, height and width")
    return bits_per_position * prod(latent_grid) / prod(video_grid)


def compression_ratio(bits_per_pixel: float, channels: int = 3, bits_per_channel: int = 8) -> float:
    """Bits of raw pixels divided by bits of codes."""
    if bits_per_pixel <= 0:
        raise ValueError(f"bits_per_pixel is {bits_per_pixel}: give a number above 0")
    return channels * bits_per_channel / bits_per_pixel


MAX_DENSE_SIZE = 2**20
"""Larger codebooks count only the codes that occur: 2^20 counters are 8 MB, 2^36 are 512 GB."""

CodeCounts = tuple[Int[Tensor, " _"], Int[Tensor, " _"]]
"""Sorted codes of one codebook and the number of times each occurs."""


class CodebookUse(NamedTuple):
    """Statistics of code counts; with several codebooks, scalars are means over them."""

    usage: float
    """Fraction of the codebook that occurs, in [0, 1]."""
    usage_of_possible: float
    """Used codes over min(codebook size, codes counted): few codes cannot fill a large codebook."""
    perplexity: float
    """exp of the entropy in nats: the size of a uniformly used codebook of equal entropy."""
    bit_means: Float[Tensor, "q d"] | None
    """Fraction of ones in each bit, most significant first; None unless the size is 2^d."""
    dead_bits: int | None
    """Number of bits that never change, summed over codebooks; None unless the size is 2^d."""


class CodebookUsage:
    """Counter of codes: `update`, then `compute`; `reset` starts again.

    Counts stay on the device of the codes, so that counting on a GPU does not synchronize. For
    codebooks above 2^20 codes they are kept sorted, which does.
    """

    def __init__(self, codebook_size: int, num_codebooks: int = 1):
        if codebook_size < 1 or num_codebooks < 1:
            raise ValueError(
                f"{num_codebooks} codebooks of size {codebook_size}: both must be 1 or more"
            )
        self.codebook_size, self.num_codebooks = codebook_size, num_codebooks
        self.reset()

    def reset(self) -> None:
        """Clears all counts."""
        self.num_codes = 0
        """Number of codes counted in each codebook."""
        # The codebook size decides which of the two is used; both are None before the first code.
        self._dense: Int[Tensor, "q k"] | None = None
        self._sparse: list[CodeCounts] | None = None

    @torch.no_grad()
    def update(self, codes: Integer[Tensor, "*n"]) -> None:
        """Add codes of any shape.

        With several codebooks, the last axis is the codebook. Raises `ValueError` for codes out of
        range on the CPU. On a GPU the check would synchronize.
        """
        if self.num_codebooks == 1:
            rows = codes.reshape(1, -1).long()
        elif codes.ndim and codes.shape[-1] == self.num_codebooks:
            rows = rearrange(codes, "... q -> q (...)").long()
        else:
            raise ValueError(
                f"codes have shape {tuple(codes.shape)}: the last axis should be the "
                f"{self.num_codebooks} codebooks"
            )
        if not rows.numel():
            return
        if rows.device.type == "cpu" and (rows.min() < 0 or rows.max() >= self.codebook_size):
            raise ValueError(
                f"codes range from {int(rows.min())} to {int(rows.max())}, but the codebook has "
                f"{self.codebook_size} codes: do they come from another tokenizer?"
            )
        self.num_codes += rows.shape[1]
        if self.codebook_size <= MAX_DENSE_SIZE:
            if self._dense is None:
                self._dense = rows.new_zeros(self.num_codebooks, self.codebook_size)
            self._dense.scatter_add_(1, rows, torch.ones_like(rows))
        else:
            self._add_sparse([row.unique(return_counts=True) for row in rows])

    def merge(self, other: "CodebookUsage") -> None:
        """Add the counts of another counter of the same codebooks."""
        ours, theirs = ((x.codebook_size, x.num_codebooks) for x in (self, other))
        if ours != theirs:
            raise ValueError(
                f"counters of {theirs[1]} codebooks of {theirs[0]} and {ours[1]} of {ours[0]} "
                "cannot be merged"
            )
        self.num_codes += other.num_codes
        if other._dense is not None:
            if self._dense is None:
                self._dense = torch.zeros_like(other._dense)
            self._dense += other._dense.to(self._dense.device)
        if other._sparse is not None:
            self._add_sparse(other._sparse)

    def state_dict(self) -> dict[str, Tensor]:
        """All counts, on the CPU, for `load_state_dict`."""
        state = {"num_codes": torch.tensor(self.num_codes)}
        if self._dense is not None:
            state["dense"] = self._dense.cpu()
        for book, (codes, counts) in enumerate(self._sparse or ()):
            state[f"codes.{book}"], state[f"counts.{book}"] = codes.cpu(), counts.cpu()
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Replace all counts."""
        self.num_codes = int(state["num_codes"])
        self._dense = state.get("dense")
        self._sparse = None
        if "codes.0" in state:
            books = range(self.num_codebooks)
            self._sparse = [(state[f"codes.{book}"], state[f"counts.{book}"]) for book in books]

    def gathered(self) -> "CodebookUsage":
        """Counts of all processes, on the CPU; all must call it."""
        local = CodebookUsage(self.codebook_size, self.num_codebooks)
        local.num_codes = self.num_codes
        local._dense, local._sparse = tree_map_only(Tensor, Tensor.cpu, (self._dense, self._sparse))
        if num_processes() == 1:
            return local
        # As objects: a process may have no counts, and sparse counts differ in length.
        counters: list[CodebookUsage | None] = [None] * num_processes()
        dist.all_gather_object(counters, local)
        total = CodebookUsage(self.codebook_size, self.num_codebooks)
        for counter in counters:
            total.merge(counter)
        return total

    @torch.no_grad()
    def compute(self) -> CodebookUse:
        """Statistics of the codes counted so far; raises `ValueError` before the first."""
        if not self.num_codes:
            raise ValueError("no codes were counted yet: call update first")
        if self._dense is not None:
            books = [(row.nonzero()[:, 0], row[row > 0]) for row in self._dense.cpu()]
        else:
            books = [(codes.cpu(), counts.cpu()) for codes, counts in self._sparse]
        num_used = sum(len(codes) for codes, _ in books) / self.num_codebooks
        shares = [counts.double() / self.num_codes for _, counts in books]
        entropies = torch.stack([torch.special.entr(share).sum() for share in shares])
        ones = self._ones_in_bits(books)
        return CodebookUse(
            usage=num_used / self.codebook_size,
            usage_of_possible=num_used / min(self.codebook_size, self.num_codes),
            perplexity=float(entropies.exp().mean()),
            bit_means=None if ones is None else (ones.double() / self.num_codes).float(),
            dead_bits=None if ones is None else int((ones % self.num_codes == 0).sum()),
        )

    def _ones_in_bits(self, books: list[CodeCounts]) -> Int[Tensor, "q d"] | None:
        num_bits = self.codebook_size.bit_length() - 1
        if num_bits < 1 or self.codebook_size != 2**num_bits:
            return None
        ones = [
            (codes >> bit & 1).mul_(counts).sum()
            for codes, counts in books
            for bit in reversed(range(num_bits))
        ]
        return rearrange(torch.stack(ones), "(q d) -> q d", d=num_bits)

    def _add_sparse(self, books: list[CodeCounts]) -> None:
        if self._sparse is None:
            self._sparse = books
            return
        merged = []
        for (codes, counts), (more, more_counts) in zip(self._sparse, books, strict=True):
            codes, indices = torch.cat((codes, more.to(codes.device))).unique(return_inverse=True)
            counts = torch.cat((counts, more_counts.to(counts.device)))
            merged.append((codes, torch.zeros_like(codes).scatter_add_(0, indices, counts)))
        self._sparse = merged
