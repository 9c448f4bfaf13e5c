import pytest
import torch

from magvit2_pytorch.generators.compression import HEADER, compress_codes, decompress_codes
from tests.generators.models import generator, random_codes

LEVELS = {"fsq": ((8, 5, 3),), "bits": ((2,) * 9,), "two codebooks": ((4, 4), (3, 3))}


@pytest.mark.parametrize("levels", LEVELS.values(), ids=LEVELS)
def test_codes_come_back_in_as_many_bytes_as_the_exact_bits(levels):
    model = generator(levels=levels, dtype=torch.float32, window=2)
    codes = random_codes(model, 1, 3, 6, 7)
    data = compress_codes(codes[0], model)
    assert torch.equal(decompress_codes(data, model), codes[0])
    bits = float(model.bits(codes)[0].sum())
    # A range coder needs up to two words at its end; probabilities have 24 bits.
    assert bits <= 8 * (len(data) - HEADER.size) <= bits * 1.001 + 64


def test_damage_and_other_generators_are_noticed():
    model = generator(levels=((8, 5),), dtype=torch.float32)
    data = compress_codes(random_codes(model, 1, 2, 3, 3)[0], model)
    other = generator(levels=((8, 5),), dtype=torch.float32, window=1)
    for wrong, with_model in (
        (data[:-1] + bytes([data[-1] ^ 1]), model),
        (data[:5], model),
        (b"", model),
        (data, other),
    ):
        with pytest.raises(ValueError, match="bytes are"):
            decompress_codes(wrong, with_model)
