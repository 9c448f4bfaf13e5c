"""Lossless compression of codes with a range coder and adaptive probabilities."""

import math
import struct
import zlib
from types import ModuleType

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Int
from torch import Tensor

from magvit2_pytorch.codes.code_header import VideoCodes
from magvit2_pytorch.codes.code_model import (
    Bits,
    CodeModel,
    Positions,
    Probabilities,
    modeled_levels,
    num_bits,
    place_values,
    split_digits,
)
from magvit2_pytorch.quantizers.quantizer import Quantizer

HEADER = struct.Struct("<BIHHI")
"""Form, latent frames, rows, columns, checksum."""
HEADER_BYTES = HEADER.size
FIXED_LENGTH, MODELED = 1, 2
"""Forms of the payload. An incompatible change of a form gets a new number."""

LatentGrid = tuple[int, int, int]


def compress(codes: VideoCodes, quantizer: Quantizer) -> bytes:
    """Compresses one video's codes, `j y x` or `j y x q`.

    A range coder writes each bit with the probability from `CodeModel`. The model starts untrained
    for every video, so that the bytes are self-contained; in a short video it has learned little.
    If it does not help, as with random codes, codes are written at fixed length: the result is
    never longer than `HEADER_BYTES` plus a whole number of bits per code, rounded up to bytes.

    This is slow: a latent frame takes 2 y + x steps, and each of them one step per bit. Raises
    `ValueError` if `codes` are not codes of this quantizer, `ImportError` without constriction.
    """
    levels = model_levels(quantizer)
    checked = quantizer.check_codes(codes[None])[0].cpu()
    grid = tuple(checked.shape[:3])
    if not checked.numel() or max(grid[1:]) > 0xFFFF:
        raise ValueError(
            f"codes of {grid}: give 1 to 65,535 rows and columns, and at least one frame"
        )
    digits = split_digits(checked.numpy(), levels[0])
    digits = rearrange(digits, "j y x q d -> j y x (q d)")
    encoder = range_coder().queue.RangeEncoder()
    family = range_coder().model.Bernoulli(perfect=False)

    def write(positions: Positions, digit: int, bit: int, probabilities: Probabilities) -> Bits:
        bits = (digits[(*positions, digit)] >> bit & 1).astype(bool)
        encoder.encode(bits.astype(np.int32), family, probabilities)
        return bits

    CodeModel(levels).visit(grid, write)
    form, payload = MODELED, encoder.get_compressed().astype("<u4").tobytes()
    # Each code in the number of bits of the largest code.
    bits = checked.numpy()[..., None] >> np.arange(num_bits(quantizer.codebook_size)) & 1
    packed = np.packbits(bits.astype(bool)).tobytes()
    if len(packed) <= len(payload):
        form, payload = FIXED_LENGTH, packed
    return HEADER.pack(form, *grid, _checksum(form, grid, payload, quantizer)) + payload


def decompress(data: bytes, quantizer: Quantizer) -> Int[Tensor, "j y x *q"]:
    """Inverse of `compress`.

    Returns int64 codes, with a codebook axis if the quantizer has several. Raises `ValueError` if
    the bytes are damaged, truncated, of another version or of a quantizer with another codebook,
    `ImportError` without constriction.
    """
    if len(data) < HEADER_BYTES:
        raise ValueError(
            f"{len(data)} bytes are not compressed codes, which have at least {HEADER_BYTES}"
        )
    form, *grid, checksum = HEADER.unpack_from(data)
    grid, payload = tuple(grid), data[HEADER_BYTES:]
    if form not in (FIXED_LENGTH, MODELED):
        raise ValueError(f"these bytes are not codes compressed by this version (form {form})")
    if checksum != _checksum(form, grid, payload, quantizer):
        raise ValueError(
            "compressed codes are damaged, or of a tokenizer with another codebook: the "
            "checksum does not match"
        )
    if form == FIXED_LENGTH:
        shape = (*grid, quantizer.num_codebooks, num_bits(quantizer.codebook_size))
        bits = np.unpackbits(np.frombuffer(payload, np.uint8), count=math.prod(shape))
        codes = (bits.reshape(shape).astype(np.int64) << np.arange(shape[-1])).sum(axis=-1)
    else:
        decoder = range_coder().queue.RangeDecoder(np.frombuffer(payload, "<u4").astype(np.uint32))
        family = range_coder().model.Bernoulli(perfect=False)

        def read(positions: Positions, digit: int, bit: int, probabilities: Probabilities) -> Bits:
            return decoder.decode(family, probabilities).astype(bool)

        digits = CodeModel(model_levels(quantizer)).visit(grid, read)
        digits = rearrange(digits, "j y x (q d) -> j y x q d", q=quantizer.num_codebooks)
        codes = (digits * place_values(model_levels(quantizer)[0])).sum(axis=-1)
    codes = torch.from_numpy(codes)
    return codes[..., 0] if quantizer.num_codebooks == 1 else codes


def model_levels(quantizer: Quantizer) -> list[tuple[int, ...]]:
    """`modeled_levels` of each codebook; raises `ValueError` for a continuous tokenizer."""
    if quantizer.digit_levels is None:
        raise ValueError("this tokenizer is continuous and has no codes to compress")
    return [modeled_levels(quantizer.digit_levels)] * quantizer.num_codebooks


def _checksum(form: int, grid: LatentGrid, payload: bytes, quantizer: Quantizer) -> int:
    """CRC-32 of form, grid, digit levels and payload."""
    description = f"{form} {grid} {model_levels(quantizer)}"
    return zlib.crc32(payload, zlib.crc32(description.encode()))


def range_coder() -> ModuleType:
    """The range coder of constriction, an optional dependency."""
    try:
        import constriction
    except ImportError as error:
        raise ImportError(
            "entropy coding needs constriction: pip install 'magvit2-pytorch[entropy]'"
        ) from error
    return constriction.stream
