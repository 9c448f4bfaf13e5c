"""Lossless compression of codes by a generator's probabilities."""

import struct
import zlib
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from magvit2_pytorch.codes.entropy_coding import range_coder
from magvit2_pytorch.generators.autoregressive import AutoregressiveGenerator

HEADER = struct.Struct("<IHHI")
"""Latent frames, rows, columns, checksum of the rest and of the generator's options."""


@torch.no_grad()
def compress_codes(codes: Int[Tensor, "j y x *q"], generator: AutoregressiveGenerator) -> bytes:
    """Bytes of one video's codes: the generator's exact bits and a header.

    1-D tokens are `j 1 k`, parts of k tokens. Raises `ValueError` if the codes are not of the
    generator's code space, and `ImportError` without constriction.
    """
    coder = range_coder()
    encoder, family = coder.queue.RangeEncoder(), coder.model.Categorical(perfect=False)
    codes = generator.code_space.check(codes[None]).to(generator.device)
    grid = codes.shape[1:4]
    order = generator.order_of(grid[1:])
    state = generator.begin(1, grid[1:])
    for frame in codes.split(1, dim=1):
        values = order.to_sequence(generator.code_space.to_sub_tokens(frame))[0]

        def choose(cells: slice, number: int, logits: Tensor, values: Tensor = values) -> Tensor:
            chosen = values[cells, number]
            encoder.encode(chosen.cpu().numpy().astype(np.int32), family, _probabilities(logits))
            return chosen[None]

        _, state, _ = generator.draw_frame(state, choose)
    payload = encoder.get_compressed().astype("<u4").tobytes()
    return HEADER.pack(*grid, _checksum(payload, grid, generator)) + payload


@torch.no_grad()
def decompress_codes(data: bytes, generator: AutoregressiveGenerator) -> Int[Tensor, "j y x *q"]:
    """Inverse of `compress_codes`, bit for bit.

    Both need the same generator on the same kind of device, with the same version of PyTorch and
    number of threads: another order of additions changes a probability's last digits, and with them
    what the bytes mean. Raises `ValueError` for other bytes, or bytes of another generator.
    """
    if len(data) < HEADER.size:
        raise ValueError(f"{len(data)} bytes are not compressed codes: too few")
    *grid, checksum = HEADER.unpack_from(data)
    payload = data[HEADER.size :]
    if checksum != _checksum(payload, grid, generator):
        raise ValueError("these bytes are damaged, or not codes compressed with this generator")
    coder = range_coder()
    decoder = coder.queue.RangeDecoder(np.frombuffer(payload, "<u4").astype(np.uint32))
    family = coder.model.Categorical(perfect=False)

    def choose(cells: slice, number: int, logits: Tensor) -> Tensor:
        values = decoder.decode(family, _probabilities(logits))
        return torch.from_numpy(values.astype(np.int64))[None].to(generator.device)

    state, frames = generator.begin(1, grid[1:]), []
    for _ in range(grid[0]):
        frame, state, _ = generator.draw_frame(state, choose)
        frames.append(frame)
    return torch.cat(frames, dim=1)[0].cpu()


def _probabilities(logits: Tensor) -> np.ndarray:
    # Never 0: every code can be written.
    return logits[0].double().softmax(dim=-1).clamp(min=2.0**-20).float().cpu().numpy()


def _checksum(payload: bytes, grid: Sequence[int], generator: AutoregressiveGenerator) -> int:
    description = f"{tuple(grid)} {sorted(generator.config.to_dict().items())}"
    return zlib.crc32(payload, zlib.crc32(description.encode()))
