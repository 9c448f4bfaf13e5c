"""How much of a codebook is in use, counted over as many codes as one likes."""

from typing import NamedTuple

import torch
import torch.distributed as dist
from einops import rearrange
from jaxtyping import Float, Int, Integer
from torch import Tensor
from torch.utils._pytree import tree_map_only

MAX_DENSE_SIZE = 2**20
"""Larger codebooks keep only the codes they saw: 2^20 counters are 8 MB, 2^36 would be 512 GB."""

Seen = tuple[Int[Tensor, " _"], Int[Tensor, " _"]]
"""Sorted codes of one codebook, and how often each occurred."""


class CodebookUse(NamedTuple):
    """What a count of codes says; with several codebooks, scalars are means over them."""

    usage: float
    """Fraction of the codebook that occurred, in [0, 1]."""
    usage_of_possible: float
    """Fraction of min(codebook size, codes counted): few codes cannot fill a large codebook."""
    perplexity: float
    """exp of the entropy in nats: how many codes, used alike, would be as varied."""
    bit_means: Float[Tensor, "q d"] | None
    """How often each bit is 1, most significant first; None if the size is no power of two."""
    dead_bits: int | None
    """Bits that never changed, in all codebooks together; None as above."""


class CodebookUsage:
    """Counts codes: `update` with them, `compute` the use so far, `reset` to start anew.

    Counts stay on the device that codes are on, so that counting on a GPU makes nothing wait;
    beyond 2^20 codes they are kept sorted, which does. No one-hot vector ever exists.
    """

    def __init__(self, codebook_size: int, num_codebooks: int = 1):
        if codebook_size < 1 or num_codebooks < 1:
            raise ValueError(
                f"{num_codebooks} codebooks of size {codebook_size}: both must be 1 or more"
            )
        self.codebook_size, self.num_codebooks = codebook_size, num_codebooks
        self.reset()

    def reset(self) -> None:
        """Forgets all codes."""
        self.num_codes = 0
        """Codes counted in each codebook."""
        # One of the two is filled, by the size of the codebook; both None before the first code.
        self._dense: Int[Tensor, "q k"] | None = None
        self._sparse: list[Seen] | None = None

    @torch.no_grad()
    def update(self, codes: Integer[Tensor, "*n"]) -> None:
        """Codes of any shape, with a codebook axis last when there are several.

        Raises `ValueError` on codes out of range where looking is free: not on a GPU.
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
                f"codes reach from {int(rows.min())} to {int(rows.max())}, but the codebook has "
                f"{self.codebook_size}: are they another tokenizer's?"
            )
        self.num_codes += rows.shape[1]
        if self.codebook_size <= MAX_DENSE_SIZE:
            if self._dense is None:
                self._dense = rows.new_zeros(self.num_codebooks, self.codebook_size)
            self._dense.scatter_add_(1, rows, torch.ones_like(rows))
        else:
            self._add_sparse([row.unique(return_counts=True) for row in rows])

    def merge(self, other: "CodebookUsage") -> None:
        """Adds what another counter of the same codebooks has counted."""
        ours, theirs = ((it.codebook_size, it.num_codebooks) for it in (self, other))
        if ours != theirs:
            raise ValueError(
                f"counters of {theirs[1]} codebooks of {theirs[0]} and {ours[1]} of {ours[0]} "
                "do not add up"
            )
        self.num_codes += other.num_codes
        if other._dense is not None:
            if self._dense is None:
                self._dense = torch.zeros_like(other._dense)
            self._dense += other._dense.to(self._dense.device)
        if other._sparse is not None:
            self._add_sparse(other._sparse)

    def state_dict(self) -> dict[str, Tensor]:
        """All that was counted, on the CPU; `load_state_dict` of a like counter goes on from it."""
        state = {"num_codes": torch.tensor(self.num_codes)}
        if self._dense is not None:
            state["dense"] = self._dense.cpu()
        for book, seen in enumerate(self._sparse or ()):
            state[f"codes.{book}"], state[f"counts.{book}"] = (x.cpu() for x in seen)
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Replaces what was counted."""
        self.num_codes = int(state["num_codes"])
        self._dense = state.get("dense")
        self._sparse = None
        if "codes.0" in state:
            books = range(self.num_codebooks)
            self._sparse = [(state[f"codes.{book}"], state[f"counts.{book}"]) for book in books]

    def gathered(self) -> "CodebookUsage":
        """A counter of what all processes counted, on the CPU; a collective that all must call."""
        mine = CodebookUsage(self.codebook_size, self.num_codebooks)
        mine.num_codes = self.num_codes
        mine._dense, mine._sparse = tree_map_only(Tensor, Tensor.cpu, (self._dense, self._sparse))
        if not (dist.is_available() and dist.is_initialized()):
            return mine
        # As objects: one process may have counted nothing, and each met other codes.
        everyones: list[CodebookUsage | None] = [None] * dist.get_world_size()
        dist.all_gather_object(everyones, mine)
        total = CodebookUsage(self.codebook_size, self.num_codebooks)
        for counter in everyones:
            total.merge(counter)
        return total

    @torch.no_grad()
    def compute(self) -> CodebookUse:
        """The use of the codes counted so far; `ValueError` before the first."""
        if not self.num_codes:
            raise ValueError("no codes were counted yet: update with some first")
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

    def _ones_in_bits(self, books: list[Seen]) -> Int[Tensor, "q d"] | None:
        num_bits = self.codebook_size.bit_length() - 1
        if num_bits < 1 or self.codebook_size != 2**num_bits:
            return None
        ones = [
            (codes >> place & 1).mul_(counts).sum()
            for codes, counts in books
            for place in reversed(range(num_bits))
        ]
        return rearrange(torch.stack(ones), "(q d) -> q d", d=num_bits)

    def _add_sparse(self, seen: list[Seen]) -> None:
        if self._sparse is None:
            self._sparse = seen
            return
        merged = []
        for (codes, counts), (more, more_counts) in zip(self._sparse, seen, strict=True):
            codes, places = torch.cat((codes, more.to(codes.device))).unique(return_inverse=True)
            counts = torch.cat((counts, more_counts.to(counts.device)))
            merged.append((codes, torch.zeros_like(codes).scatter_add_(0, places, counts)))
        self._sparse = merged


def codebook_usage(
    codes: Integer[Tensor, "*n"], codebook_size: int, num_codebooks: int = 1
) -> CodebookUse:
    """The use of one batch of codes; see `CodebookUsage` for counting over many."""
    usage = CodebookUsage(codebook_size, num_codebooks)
    usage.update(codes)
    return usage.compute()
