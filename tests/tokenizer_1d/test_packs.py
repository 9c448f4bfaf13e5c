"""A sample's codes and pixels are its own, whatever it is packed with."""

from itertools import accumulate

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention as plain

from magvit2_pytorch.layers.transformer import attend_masked, attend_spans
from magvit2_pytorch.tokenizer_1d import patches
from magvit2_pytorch.tokenizer_1d.patches import group_packs
from tests.tokenizer_1d.narrow import narrow, random_clip

EXACT = dict(atol=1e-12, rtol=1e-12)
SIZES = [(5, 17, 30), (1, 8, 8), (8, 16, 16), (5, 17, 30), (9, 3, 40), (8, 16, 16)]
COUNTS = [3, 4, 16, 5, 1, 16]


def mask_of(lengths):
    sample = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    return sample[:, None] == sample


@pytest.mark.parametrize("lengths", [[5], [3, 1, 3, 4, 3], [2, 2, 2]])
def test_packed_attention_equals_a_mask(lengths):
    spans = [(stop - n, stop) for stop, n in zip(accumulate(lengths), lengths, strict=True)]
    q, k, v = torch.randn(3, 1, 2, sum(lengths), 4, dtype=torch.float64)
    wanted = attend_masked(mask_of(lengths))(q, k, v)
    torch.testing.assert_close(
        attend_spans([*zip(spans, spans, strict=True)])(q, k, v), wanted, **EXACT
    )


def test_spans_see_the_keys_of_other_spans():
    q, k, v = torch.randn(3, 2, 2, 9, 4, dtype=torch.float64)
    out = attend_spans([((0, 4), (0, 4)), ((4, 9), (2, 7))])(q, k, v)
    torch.testing.assert_close(out[:, :, :4], plain(*(x[:, :, :4] for x in (q, k, v))), **EXACT)
    wanted = plain(q[:, :, 4:], k[:, :, 2:7], v[:, :, 2:7])
    torch.testing.assert_close(out[:, :, 4:], wanted, **EXACT)


@pytest.mark.filterwarnings("ignore:.*largest size of training")
@pytest.mark.parametrize("kind", ["anchored", "learned", "vector", "blocks-of-8"])
def test_packed_equals_alone_in_any_order(kind, monkeypatch):
    tokenizer = narrow(kind)
    videos = [random_clip(*size, channels=tokenizer.config.channels) for size in SIZES]
    codes = tokenizer.tokenize(videos, COUNTS)
    recons = tokenizer.decode(codes, SIZES)
    order = [4, 0, 3, 5, 1, 2]
    again = tokenizer.tokenize([videos[i] for i in order], [COUNTS[i] for i in order])
    for place, number in enumerate(order):
        alone = tokenizer.tokenize(videos[number][None], COUNTS[number])
        assert torch.equal(alone[0], codes[number])
        assert torch.equal(again[place], codes[number])
        recon = tokenizer.decode(alone, SIZES[number])[0]
        torch.testing.assert_close(recon, recons[number], **EXACT)
    monkeypatch.setattr(patches, "MAX_POSITIONS", 30)
    for one, other in zip(tokenizer.tokenize(videos, COUNTS), codes, strict=True):
        assert torch.equal(one, other)


def test_packs_are_bounded_and_hold_equal_keys_together():
    keys = ["a", "b", "a", "c", "a", "b"]
    packs = list(group_packs(keys, [2**12, 2**13, 2**12, 2**15, 2**12, 2**13]))
    assert packs == [[[0, 2, 4]], [[1, 5]], [[3]]]
    assert list(group_packs(keys, [1] * 6)) == [[[0, 2, 4], [1, 5], [3]]]
