"""Codes in as few bytes as their likeness to one another allows, and back, bit for bit."""

import math
import struct
import zlib
from types import ModuleType

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Int
from torch import Tensor

from magvit2_pytorch.data.code_file import OneVideosCodes
from magvit2_pytorch.evaluation.code_model import (
    Bits,
    CodeModel,
    Positions,
    Probabilities,
    num_bits,
)
from magvit2_pytorch.quantizers.fsq import FSQ
from magvit2_pytorch.quantizers.quantizer import Quantizer

HEADER = struct.Struct("<BIHHI")
"""Form, latent frames, rows, columns, checksum."""
HEADER_BYTES = HEADER.size
FIXED_LENGTH, MODELED = 1, 2
"""Forms. The number is that of a version as well: one of another meaning gets another."""

Grid = tuple[int, int, int]
Digits = Int[np.ndarray, "j y x d"]
"""Of all codebooks' codes."""


def compress(codes: OneVideosCodes, quantizer: Quantizer) -> bytes:
    """The codes of one video, `j y x` or `j y x q`, losslessly.

    A range coder writes each bit at the chance that `CodeModel` gives it. The model starts from
    nothing with every video, so that the bytes are all there is; in a short one it is still
    learning. Where it does not pay, as with random codes, codes are written at their fixed length:
    the result is never longer than that, in whole bits to a code and whole bytes, and
    `HEADER_BYTES`.

    Takes time: each latent frame goes in 2 y + x steps, and each of them bit by bit. Raises
    `ValueError` on what are not this quantizer's codes, `ImportError` without constriction.
    """
    model = CodeModel(digit_levels(quantizer))
    checked = quantizer.check_codes(codes[None])[0].cpu()
    grid = tuple(checked.shape[:3])
    if not checked.numel() or max(grid[1:]) > 0xFFFF:
        raise ValueError(f"codes of {grid}: give 1 to 65,535 rows and columns, and a frame or more")
    digits = _digits(checked.numpy(), quantizer)
    encoder = _constriction().queue.RangeEncoder()
    family = _constriction().model.Bernoulli(perfect=False)

    def write(positions: Positions, digit: int, place: int, probabilities: Probabilities) -> Bits:
        bits = (digits[(*positions, digit)] >> place & 1).astype(bool)
        encoder.encode(bits.astype(np.int32), family, probabilities)
        return bits

    model.visit(grid, write)
    form, payload = MODELED, encoder.get_compressed().astype("<u4").tobytes()
    plain = _packed(checked.numpy(), quantizer)
    if len(plain) <= len(payload):
        form, payload = FIXED_LENGTH, plain
    return HEADER.pack(form, *grid, _checksum(form, grid, payload, quantizer)) + payload


def decompress(data: bytes, quantizer: Quantizer) -> Int[Tensor, "j y x *q"]:
    """Undoes `compress`: int64 codes, with a codebook axis where the quantizer has several.

    Raises `ValueError` on bytes that are damaged, cut off, of another version or of a quantizer
    with another codebook, `ImportError` without constriction.
    """
    if len(data) < HEADER_BYTES:
        raise ValueError(
            f"{len(data)} bytes are not compressed codes: {HEADER_BYTES} are the least"
        )
    form, *grid, checksum = HEADER.unpack_from(data)
    grid, payload = tuple(grid), data[HEADER_BYTES:]
    if form not in (FIXED_LENGTH, MODELED):
        raise ValueError(f"these are no codes compressed by this version (form {form})")
    if checksum != _checksum(form, grid, payload, quantizer):
        raise ValueError(
            "compressed codes are damaged, or of a tokenizer with another codebook: their "
            "checksum does not fit"
        )
    if form == FIXED_LENGTH:
        codes = _unpacked(payload, grid, quantizer)
    else:
        decoder = _constriction().queue.RangeDecoder(
            np.frombuffer(payload, "<u4").astype(np.uint32)
        )
        family = _constriction().model.Bernoulli(perfect=False)

        def read(
            positions: Positions, digit: int, place: int, probabilities: Probabilities
        ) -> Bits:
            return decoder.decode(family, probabilities).astype(bool)

        codes = _codes(CodeModel(digit_levels(quantizer)).visit(grid, read), quantizer)
    codes = torch.from_numpy(codes)
    return codes[..., 0] if quantizer.num_codebooks == 1 else codes


def digit_levels(quantizer: Quantizer) -> list[tuple[int, ...]]:
    """For each codebook, how many values the digits of its codes have, least significant first.

    FSQ's levels; the bits of an index for LFQ, where each is a latent's sign, and for others.
    """
    if not quantizer.codebook_size:
        raise ValueError("this tokenizer is continuous: it has no codes to compress")
    bits = (2,) * num_bits(quantizer.codebook_size)
    levels = quantizer.levels if isinstance(quantizer, FSQ) else bits
    return [levels] * quantizer.num_codebooks


def _digits(codes: Int[np.ndarray, "j y x q"], quantizer: Quantizer) -> Digits:
    levels = digit_levels(quantizer)[0]
    digits = codes[..., None] // _places(levels) % np.array(levels)
    return rearrange(digits, "j y x q d -> j y x (q d)")


def _codes(digits: Digits, quantizer: Quantizer) -> Int[np.ndarray, "j y x q"]:
    digits = rearrange(digits, "j y x (q d) -> j y x q d", q=quantizer.num_codebooks)
    return (digits * _places(digit_levels(quantizer)[0])).sum(axis=-1)


def _places(levels: tuple[int, ...]) -> Int[np.ndarray, " d"]:
    return np.cumprod([1, *levels[:-1]], dtype=np.int64)


def _packed(codes: Int[np.ndarray, "j y x q"], quantizer: Quantizer) -> bytes:
    """Each code in as many bits as the largest needs."""
    bits = codes[..., None] >> np.arange(num_bits(quantizer.codebook_size)) & 1
    return np.packbits(bits.astype(bool)).tobytes()


def _unpacked(payload: bytes, grid: Grid, quantizer: Quantizer) -> Int[np.ndarray, "j y x q"]:
    shape = (*grid, quantizer.num_codebooks, num_bits(quantizer.codebook_size))
    bits = np.unpackbits(np.frombuffer(payload, np.uint8), count=math.prod(shape)).reshape(shape)
    return (bits.astype(np.int64) << np.arange(shape[-1])).sum(axis=-1)


def _checksum(form: int, grid: Grid, payload: bytes, quantizer: Quantizer) -> int:
    """Of the bytes and of what they stand for."""
    meaning = f"{form} {grid} {digit_levels(quantizer)}"
    return zlib.crc32(payload, zlib.crc32(meaning.encode()))


def _constriction() -> ModuleType:
    """The range coder's package, which nothing else here needs."""
    try:
        import constriction
    except ImportError as error:
        raise ImportError(
            "install what entropy coding needs with pip install 'magvit2-pytorch[entropy]'"
        ) from error
    return constriction.stream
