import math

import pytest
import torch
from vector_quantize_pytorch import FSQ as TheirFSQ

from magvit2_pytorch.quantizers.fsq import FSQ

LEVELS = [(3,), (4, 4), (8, 5, 5, 5), (8, 8, 8, 5, 5, 5), (7, 3, 1000)]


def random_latents(dim, dtype=torch.float32, std=2.0):
    return (torch.randn(2, dim, 3, 8, 8, dtype=torch.float32) * std).to(dtype)


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("num_codebooks", [1, 2])
@pytest.mark.parametrize("training", [False, True])
def test_codes_round_trip(levels, num_codebooks, training):
    fsq = FSQ(levels, num_codebooks).train(training)
    quantized, codes = fsq(random_latents(fsq.latent_dim))
    assert codes.dtype == torch.int64
    assert codes.shape == ((2, 3, 8, 8) if num_codebooks == 1 else (2, 3, 8, 8, 2))
    assert torch.equal(fsq.decode_codes(codes), quantized)
    assert fsq.codebook_size == math.prod(levels)
    assert fsq.bits_per_position == pytest.approx(math.log2(math.prod(levels)) * num_codebooks)


@pytest.mark.parametrize("levels", LEVELS[:4])
@pytest.mark.parametrize("num_codebooks", [1, 2])
def test_codes_and_values_are_those_of_vector_quantize_pytorch(levels, num_codebooks):
    ours = FSQ(levels, num_codebooks)
    theirs = TheirFSQ(list(levels), num_codebooks=num_codebooks)
    latents = random_latents(ours.latent_dim)
    expected, indices = theirs(latents)
    quantized, codes = ours(latents)
    assert torch.equal(codes, indices.long())
    torch.testing.assert_close(quantized, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("level", [3, 4, 5, 8, 17, 999, 1000])
def test_every_level_is_reached_and_none_beyond(level):
    sweep = torch.linspace(-9, 9, 40_000).view(1, 1, -1, 1, 1)
    ends = torch.tensor([-1e30, -1e8, 1e8, 1e30]).view(1, 1, -1, 1, 1)
    quantized, codes = FSQ([level])(torch.cat((sweep, ends), dim=2))
    assert codes.unique().tolist() == list(range(level))
    assert codes.flatten()[-4:].tolist() == [0, 0, level - 1, level - 1]
    assert quantized.min() == -1


@pytest.mark.parametrize("levels", LEVELS)
def test_bf16_loses_no_codes(levels):
    fsq = FSQ(levels)
    rounded = random_latents(len(levels), torch.bfloat16)
    plain = fsq(rounded.float())
    assert torch.equal(fsq(rounded).codes, plain.codes)
    with torch.autocast("cpu", torch.bfloat16):
        for latents in (rounded, rounded.float()):
            quantized, codes = fsq(latents)
            assert torch.equal(codes, plain.codes)
            assert torch.equal(quantized, plain.quantized)
    latents = random_latents(len(levels))
    codes = fsq(latents).codes
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fsq(latents).codes, codes)


def test_gradients_are_those_of_the_bounded_latents():
    latents = random_latents(3, std=0.5).requires_grad_()
    FSQ((5, 5, 5))(latents).quantized.sum().backward()
    # tanh's slope within the rounding's own bound of (L - 1) (1 + 1e-3) / 2, over L // 2.
    slope = (1 - latents.detach().tanh().square()) * (4 * 1.001 / 2) / 2
    torch.testing.assert_close(latents.grad, slope)


@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_the_norm_comes_first(norm):
    fsq = FSQ((5, 5, 5, 5), num_codebooks=2, norm=norm)
    latents = random_latents(8)
    assert torch.equal(fsq(latents).codes, fsq(latents * 64).codes)
    fsq(latents).quantized.square().sum().backward()
    assert all(p.ndim == 1 and p.grad.abs().min() > 0 for p in fsq.parameters())


@pytest.mark.parametrize(
    ("levels", "num_codebooks", "message"),
    [
        ((), 1, r"fsq levels \(\): give 3 to 1000"),
        ((8, 2), 1, r"fsq levels \(8, 2\): give 3 to 1000"),
        ((8, 1001), 1, r"fsq levels \(8, 1001\): give 3 to 1000"),
        ((1000,) * 7, 1, "product must fit 63 bits"),
        ((8, 8), 0, "num_codebooks is 0: give at least 1"),
    ],
)
def test_wrong_arguments_are_refused(levels, num_codebooks, message):
    with pytest.raises(ValueError, match=message):
        FSQ(levels, num_codebooks)
