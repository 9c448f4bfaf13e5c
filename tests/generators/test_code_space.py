import math
from itertools import product

import pytest
import torch

from magvit2_pytorch.generators import CodeSpace
from magvit2_pytorch.quantizers import build_quantizer

SPACES = {
    "fsq": CodeSpace(((8, 8, 8, 5, 5, 5),)),
    "lfq 2^16": CodeSpace(((2,) * 16,)),
    "lfq 2^36": CodeSpace(((2,) * 36,)),
    "two codebooks": CodeSpace(((2,) * 6, (3, 3)), group=10),
    "vector": CodeSpace(((1000,),)),
}


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_digits_and_sub_tokens_are_inverse(space):
    if space.num_codebooks == 1 and math.prod(space.levels[0]) <= 2**16:
        codes = torch.arange(math.prod(space.levels[0]))
    elif space.num_codebooks == 1:
        codes = torch.randint(math.prod(space.levels[0]), (1000,))
        codes = torch.cat((codes, torch.tensor([0, math.prod(space.levels[0]) - 1])))
    else:
        codes = torch.tensor(list(product(*(range(math.prod(x)) for x in space.levels))))
    for split, join in (
        (space.to_digits, space.from_digits),
        (space.to_sub_tokens, space.from_sub_tokens),
    ):
        parts = split(codes)
        assert torch.equal(join(parts), codes)
        assert len(parts.unique(dim=0)) == len(codes.unique(dim=0))
    sizes = torch.tensor([part.size for part in space.digits])
    assert (space.to_digits(codes) < sizes).all()
    assert (space.to_digits(codes).amax(0) == sizes - 1).all()


def test_sub_tokens_join_digits_up_to_the_group():
    sizes = {name: [part.size for part in space.sub_tokens] for name, space in SPACES.items()}
    assert sizes["fsq"] == [8, 8, 8, 5, 5, 5]
    assert sizes["lfq 2^16"] == [8, 8, 8, 8, 8, 2]
    assert sizes["two codebooks"] == [8, 8, 9]
    assert [part.size for part in CodeSpace(((2,) * 18,), 512).sub_tokens] == [512, 512]


@pytest.mark.parametrize(
    ("name", "options"),
    [("fsq", dict(levels=(8, 5, 5))), ("lfq", dict(codebook_size=2**10, num_codebooks=2))],
)
def test_digits_are_those_of_the_quantizer(name, options):
    quantizer = build_quantizer(name, **options)
    space = CodeSpace.of(quantizer)
    assert space.num_codebooks == quantizer.num_codebooks
    assert space.bits == pytest.approx(quantizer.bits_per_position)
    # A digit of FSQ and a bit of LFQ is a channel: it alone changes with its digit.
    codes = torch.zeros(1, 1, 1, 1, space.num_codebooks, dtype=torch.long)
    codes = codes[..., 0] if space.num_codebooks == 1 else codes
    digits = space.to_digits(codes)
    channels = []
    for number in range(len(space.digits)):
        other = digits.clone()
        other[..., number] += 1
        changed = quantizer.decode_codes(space.from_digits(other)) != quantizer.decode_codes(codes)
        channels += changed.flatten().nonzero().flatten().tolist()
    assert sorted(channels) == list(range(len(space.digits)))


def test_features_tell_digits_and_unknown_ones_apart():
    space = SPACES["two codebooks"]
    digits = space.to_digits(torch.tensor([[5, 7]]))
    features = space.one_hot(digits, torch.float32)
    assert features.shape == (1, space.num_features)
    assert features.sum() == len(space.digits)
    hidden = space.one_hot(space.hide(digits, torch.tensor([False])), torch.float32)
    assert (hidden * features).sum() == 0
    assert torch.equal(hidden, space.one_hot(space.unknown(1), torch.float32))


def test_neighbours_stay_in_range_and_unknown_digits_unknown():
    space = SPACES["fsq"]
    digits = torch.stack((space.to_digits(torch.tensor(0)), space.unknown()))
    for move in (-1, 1):
        moved = space.neighbours_of(digits, torch.full_like(digits, move))
        assert moved[0].tolist() == [max(move, 0)] * 6
        assert torch.equal(moved[1], digits[1])


@pytest.mark.parametrize(
    ("levels", "text"),
    [(((1, 5),), "2 or more values"), (((2,) * 64,), "63 bits"), (((2**15,),), "FSQ or LFQ")],
)
def test_what_cannot_be_modeled_is_refused(levels, text):
    with pytest.raises(ValueError, match=text):
        CodeSpace(levels)


@pytest.mark.parametrize(
    ("codes", "text"),
    [
        (torch.zeros(1, 2, 2, 2), "integers"),
        (torch.zeros(1, 2, 2, dtype=torch.long), "give b j y x"),
        (torch.full((1, 1, 2, 2), 64000), "another tokenizer"),
    ],
)
def test_wrong_codes_are_named(codes, text):
    with pytest.raises(ValueError, match=text):
        SPACES["fsq"].check(codes)
