"""Residual levels: sums of levels, prefixes, dropped levels, and another library's values."""

import pytest
import torch
from einops import rearrange

from magvit2_pytorch.quantizers.fsq import FSQ
from magvit2_pytorch.quantizers.lfq import LFQ
from magvit2_pytorch.quantizers.residual_scalar import ResidualFSQ, ResidualLFQ
from tests.conftest import build, random_video

MAKE = {
    "fsq": lambda **options: ResidualFSQ((8, 5, 3), residual_levels=3, **options),
    "lfq": lambda **options: ResidualLFQ(2**4, residual_levels=3, **options),
    "lfq-lsb": lambda **options: ResidualLFQ(2**4, residual_levels=3, bit_order="lsb", **options),
}


@pytest.fixture(params=MAKE)
def make(request):
    return MAKE[request.param]


def latents_of(quantizer, scale=1.0):
    return torch.randn(2, quantizer.latent_dim, 3, 4, 5) * scale


def positions(x):
    return rearrange(x, "b d t h w -> b (t h w) d")


@pytest.mark.parametrize("levels", [(8, 5, 3), (4, 4), (2, 7, 6, 5)])
@pytest.mark.parametrize("scale", [0.3, 1.0, 4.0])
def test_values_and_codes_of_fsq_are_those_of_the_library(levels, scale):
    library = pytest.importorskip("vector_quantize_pytorch")
    theirs = library.ResidualFSQ(levels=list(levels), num_quantizers=3, dim=len(levels)).eval()
    ours = ResidualFSQ(levels, residual_levels=3).eval()
    latents = latents_of(ours, scale)
    quantized, codes = ours(latents)
    wanted, indices = theirs(positions(latents))
    assert torch.equal(rearrange(codes, "b t h w q -> b (t h w) q"), indices.long())
    torch.testing.assert_close(positions(quantized), wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize("scale", [0.3, 1.0, 4.0])
def test_values_and_codes_of_lfq_are_those_of_the_library(scale):
    library = pytest.importorskip("vector_quantize_pytorch")
    theirs = library.ResidualLFQ(dim=6, codebook_size=2**6, num_quantizers=3).eval()
    ours = ResidualLFQ(2**6, residual_levels=3).eval()
    latents = latents_of(ours, scale)
    quantized, codes = ours(latents)
    wanted, indices, _ = theirs(positions(latents))
    assert torch.equal(rearrange(codes, "b t h w q -> b (t h w) q"), indices.long())
    assert torch.equal(positions(quantized), wanted)


def test_a_prefix_of_levels_decodes_to_its_partial_sum(make):
    quantizer = make().eval()
    quantized, codes = quantizer(latents_of(quantizer))
    # Each level by itself, by its definition.
    parts = []
    for number, code in enumerate(codes.unbind(-1)):
        zeros = torch.stack([code] * 3, dim=-1)
        alone = quantizer.decode_codes(zeros[..., :1])
        levels = torch.tensor(quantizer.levels).view(-1, 1, 1, 1)
        parts.append(alone / levels**number)
        partial = quantizer.decode_codes(codes[..., : number + 1])
        torch.testing.assert_close(partial, sum(parts), atol=1e-6, rtol=0)
    assert torch.equal(partial, quantized)


def test_each_level_comes_closer(make):
    quantizer = make().eval()
    latents = latents_of(quantizer, 0.5)
    codes = quantizer(latents).codes
    z = quantizer._bound(rearrange(latents, "b d t h w -> b t h w d")).movedim(-1, 1)
    errors = [(quantizer.decode_codes(codes[..., :r]) - z).square().mean() for r in (1, 2, 3)]
    assert errors[1] < 0.4 * errors[0]
    assert errors[2] < 0.4 * errors[1]


def test_one_level_of_odd_fsq_and_of_lfq_is_that_of_the_plain_one():
    latents = torch.randn(1, 3, 2, 3, 3)
    levels = (5, 7, 3)
    digits = FSQ(levels).decode_codes(torch.arange(105).view(1, 1, 1, 105))
    first = ResidualFSQ(levels).decode_codes(torch.arange(105).view(1, 1, 1, 105, 1))
    torch.testing.assert_close(digits, first)
    for order in ("msb", "lsb"):
        plain = LFQ(2**3, bit_order=order).eval()(latents)
        first = ResidualLFQ(2**3, bit_order=order).eval()
        codes = first(latents).codes[..., :1]
        assert torch.equal(codes[..., 0], plain.codes)
        assert torch.equal(first.decode_codes(codes), plain.quantized)


def test_dropped_levels_are_a_prefix_of_each_sample(make):
    quantizer = make(level_dropout=1.0).train()
    latents = torch.randn(60, quantizer.latent_dim, 1, 2, 2)
    quantized, codes = quantizer(latents)
    counts = []
    for sample in range(60):
        partials = [quantizer.decode_codes(codes[sample, None, ..., :r])[0] for r in (1, 2, 3)]
        counts += [r for r, x in enumerate(partials) if torch.equal(x, quantized[sample])]
    assert len(counts) == 60
    assert min(counts.count(r) for r in (0, 1, 2)) > 10
    # Codes of all levels are there; outside of training none is dropped.
    assert torch.equal(quantizer.eval()(latents).codes, codes)
    assert torch.equal(quantizer(latents).quantized, quantizer.decode_codes(codes))
    kept = make(level_dropout=0.0).train()
    assert torch.equal(kept(latents).quantized, kept.decode_codes(codes))


def test_the_gradient_is_that_of_the_bounded_latents(make):
    quantizer = make().train()
    latents = latents_of(quantizer).requires_grad_()
    weights = torch.randn_like(latents)
    (quantizer(latents).quantized * weights).sum().backward()
    same = latents.detach().clone().requires_grad_()
    bounded = quantizer._bound(rearrange(same, "b d t h w -> b t h w d")).movedim(-1, 1)
    (bounded * weights).sum().backward()
    torch.testing.assert_close(latents.grad, same.grad)


def test_losses_are_those_of_each_level():
    quantizer = ResidualLFQ(2**4, residual_levels=2).eval()
    latents = latents_of(quantizer)
    second = (latents - latents.sign()) * 2
    terms = [LFQ(2**4).eval().loss_terms(x) for x in (latents, second)]
    for name, value in quantizer.loss_terms(latents).items():
        torch.testing.assert_close(value, (terms[0][name] + terms[1][name]) / 2)
    assert quantizer.loss_weights(0) == LFQ(2**4).loss_weights(0)


def test_a_tokenizer_decodes_the_first_levels():
    tokenizer = build("residual", quantizer="fsq-residual")
    codes = tokenizer.tokenize(random_video(3))
    assert codes.shape[-1] == tokenizer.num_codebooks == 2
    first = tokenizer.decode(tokenizer.decode_codes(codes[..., :1]))
    assert first.shape == (1, 3, 3, 16, 16)
    assert (first != tokenizer.decode_from_code_indices(codes)).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(codebook_size=16, level_dropout=0.5), "level_dropout has no effect"),
        (dict(continuous_dim=4, residual_levels=2), "is for LFQ and FSQ"),
        (dict(codebook_size=16, num_codebooks=2, residual_levels=2), "does not work with num_co"),
        (dict(codebook_size=16, residual_levels=0), "residual_levels is 0"),
        (dict(codebook_size=16, residual_levels=2, level_dropout=2.0), "level_dropout is 2"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build("residual", **(dict(codebook_size=None) | options))
