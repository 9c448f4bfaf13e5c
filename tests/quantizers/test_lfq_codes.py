import math

import pytest
import torch
from vector_quantize_pytorch import LFQ as DenseLFQ

from magvit2_pytorch.quantizers.lfq import LFQ, convert_bit_order
from tests.quantizers.brute_force import codebook


def random_latents(dim, batch=2, dtype=torch.float32):
    return torch.randn(batch, dim, 3, 4, 4, dtype=dtype)


def test_a_code_is_the_signs_of_its_latent_and_zero_counts_as_minus():
    latents = torch.tensor([0.3, -2.0, 0.0, 1e-30]).view(1, 4, 1, 1, 1)
    quantized, codes = LFQ(2**4)(latents)
    assert quantized.flatten().tolist() == [1, -1, -1, 1]
    assert codes.shape == (1, 1, 1, 1)
    assert codes.dtype == torch.int64
    assert codes.item() == 0b1001


@pytest.mark.parametrize("bit_order", ["msb", "lsb"])
def test_codes_number_the_rows_of_the_codebook(bit_order):
    lfq = LFQ(2**5, bit_order=bit_order)
    values = lfq.decode_codes(torch.arange(32).view(1, 32, 1, 1))
    rows = values[0, :, :, 0, 0].T.double()
    assert torch.equal(rows if bit_order == "msb" else rows.flip(-1), codebook(5))


@pytest.mark.parametrize("spherical", [False, True])
@pytest.mark.parametrize("num_codebooks", [1, 3])
@pytest.mark.parametrize("training", [False, True])
def test_codes_and_values_are_those_of_vector_quantize_pytorch(spherical, num_codebooks, training):
    options = dict(codebook_size=2**4, num_codebooks=num_codebooks, spherical=spherical)
    ours, theirs = LFQ(**options).train(training), DenseLFQ(**options).train(training)
    latents = random_latents(4 * num_codebooks)
    quantized, codes = ours(latents)
    expected = theirs(latents)
    assert torch.equal(codes, expected.indices.long())
    torch.testing.assert_close(quantized, expected.quantized, rtol=0, atol=1e-6)


@pytest.mark.parametrize("num_bits", [1, 2, 7, 18, 36, 63])
@pytest.mark.parametrize("bit_order", ["msb", "lsb"])
@pytest.mark.parametrize("num_codebooks", [1, 2])
def test_codes_round_trip_at_any_size(num_bits, bit_order, num_codebooks):
    groups = math.ceil(num_bits / 20)
    lfq = LFQ(2**num_bits, num_codebooks, bit_order=bit_order, entropy_groups=groups)
    quantized, codes = lfq(random_latents(num_bits * num_codebooks))
    assert codes.dtype == torch.int64
    assert codes.min() >= 0
    assert torch.equal(lfq.decode_codes(codes), quantized)
    assert torch.equal(lfq(quantized).codes, codes)


def test_the_largest_code_is_all_ones():
    lfq = LFQ(2**36, entropy_groups=2)
    assert lfq(torch.ones(1, 36, 1, 1, 1)).codes.item() == 2**36 - 1
    assert lfq.bits_per_position == 36


def test_bit_order_reverses_the_digits():
    codes = torch.randint(2**18, (2, 3, 4, 4))
    reversed_codes = convert_bit_order(codes, 18)
    expected = [int(f"{code:018b}"[::-1], 2) for code in codes.flatten().tolist()]
    assert reversed_codes.flatten().tolist() == expected
    assert torch.equal(convert_bit_order(reversed_codes, 18), codes)
    latents = random_latents(18)
    msb, lsb = LFQ(2**18), LFQ(2**18, bit_order="lsb")
    assert torch.equal(convert_bit_order(msb(latents).codes, 18), lsb(latents).codes)


def test_spherical_codes_lie_on_the_unit_sphere():
    quantized, _ = LFQ(2**9, num_codebooks=2, spherical=True)(random_latents(18))
    norms = quantized.unflatten(1, (2, 9)).norm(dim=2)
    torch.testing.assert_close(norms, torch.ones_like(norms))


@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_the_norm_comes_before_the_sign(norm):
    lfq = LFQ(2**6, num_codebooks=2, norm=norm)
    latents = random_latents(12) + 1.0
    z = latents.unflatten(1, (2, 6))
    expected = z > (z.mean(dim=2, keepdim=True) if norm == "layer" else 0)
    assert torch.equal(lfq(latents).quantized > 0, expected.flatten(1, 2))
    # Whatever the encoder's scale, the losses see the same latents.
    for name, term in lfq.loss_terms(latents).items():
        torch.testing.assert_close(term, lfq.loss_terms(latents * 50)[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("norm", "names"), [("layer", {"gain", "bias"}), ("rms", {"gain"})])
def test_norm_parameters_learn_and_look_like_gains_to_an_optimizer(norm, names):
    lfq = LFQ(2**6, num_codebooks=2, norm=norm)
    lfq.loss_terms(random_latents(12))["commitment"].backward()
    parameters = dict(lfq.norm.named_parameters())
    assert set(parameters) == names
    for parameter in parameters.values():
        assert parameter.shape == (12,)
        assert parameter.grad.abs().min() > 0


def test_gradients_pass_straight_through():
    for training in (True, False):
        latents = (random_latents(6) * 100).requires_grad_()
        quantized = LFQ(2**6).train(training)(latents).quantized
        weight = torch.randn_like(quantized)
        (quantized * weight).sum().backward()
        assert torch.equal(latents.grad, weight)


def test_training_values_are_exactly_the_codes():
    lfq = LFQ(2**6).train()
    latents = (random_latents(6) * 1e7).requires_grad_()
    assert set(lfq(latents).quantized.unique().tolist()) == {-1.0, 1.0}


def test_soft_clamp_bounds_the_latents_and_keeps_the_codes():
    latents = random_latents(6) * 100
    clamped, free = LFQ(2**6, soft_clamp_input_value=2.0), LFQ(2**6)
    assert torch.equal(clamped(latents).codes, free(latents).codes)
    assert clamped.loss_terms(latents)["commitment"] < 9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(codebook_size=1000), "1000 is not a power of two.* use 512 or 1024"),
        (dict(codebook_size=1), "1 is not a power of two.* use 2 or 4"),
        (dict(codebook_size=0), "0 is not a power of two.* use 2 or 4"),
        (dict(codebook_size=2**64), "64 bits do not fit int64"),
        (dict(codebook_size=16, num_codebooks=0), "num_codebooks is 0: give at least 1"),
        (dict(codebook_size=16, temperature=0.0), "temperature is 0.0: it must be above 0"),
        (dict(codebook_size=16, entropy_eps=-1.0), "entropy_eps -1.0.* must not be negative"),
        (dict(codebook_size=16, entropy_groups=5), "4 bits cannot form 5 groups: use 1 to 4"),
        (dict(codebook_size=16, soft_clamp_input_value=0.5), "soft_clamp_input_value is 0.5"),
        (dict(codebook_size=4, norm="layer"), "layer norm over 2 channels.*use 'rms'"),
    ],
)
def test_wrong_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        LFQ(**options)


@pytest.mark.parametrize("num_bits", [0, 64])
def test_bit_order_of_impossible_codes_is_refused(num_bits):
    with pytest.raises(ValueError, match=f"num_bits is {num_bits}: codes have 1 to 63"):
        convert_bit_order(torch.zeros(1, dtype=torch.long), num_bits)
