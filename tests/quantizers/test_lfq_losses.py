import math
import sys
from pathlib import Path

import pytest
import torch
from vector_quantize_pytorch import LFQ as DenseLFQ

from magvit2_pytorch.quantizers.lfq import LFQ
from tests.processes import Started
from tests.quantizers import brute_force


def random_latents(dim, std, dtype=torch.float64):
    return (torch.randn(2, dim, 3, 2, 3, dtype=dtype) * std).requires_grad_()


def values_and_gradients(loss_terms, latents):
    """Each term's value and its gradient alone."""
    terms = loss_terms(latents)
    return {
        name: (term.detach(), *torch.autograd.grad(term, latents, retain_graph=True))
        for name, term in terms.items()
    }


def assert_equal_terms(found, expected, **tolerance):
    assert found.keys() == expected.keys()
    for name in expected:
        for ours, theirs in zip(found[name], expected[name], strict=True):
            torch.testing.assert_close(ours.double(), theirs.double(), **tolerance, msg=name)


@pytest.mark.parametrize("num_bits", [2, 5, 8])
@pytest.mark.parametrize(
    ("temperature", "std", "options"),
    [
        (0.01, 0.01, {}),
        (1.0, 1.0, {}),
        (0.01, 0.01, dict(entropy_eps=1e-5)),
        (0.1, 1.0, dict(spherical=True)),
        (0.1, 0.1, dict(num_codebooks=3)),
    ],
    ids=["sharp", "soft", "eps", "spherical", "several"],
)
def test_terms_are_those_of_the_dense_softmax(num_bits, temperature, std, options):
    lfq = LFQ(2**num_bits, temperature=temperature, **options)
    latents = random_latents(lfq.latent_dim, std)

    def dense(latents):
        names = dict(options)
        names["eps"] = names.pop("entropy_eps", 0.0)
        return brute_force.terms(latents, temperature=temperature, **names)

    assert_equal_terms(
        values_and_gradients(lfq.loss_terms, latents),
        values_and_gradients(dense, latents),
        rtol=1e-6,
        atol=1e-9,
    )


@pytest.mark.parametrize("chunk", [1, 7, 18])
def test_rows_are_summed_chunk_by_chunk(chunk, monkeypatch):
    lfq = LFQ(2**5, num_codebooks=2, temperature=0.1)
    latents = random_latents(10, 0.1)
    whole = values_and_gradients(lfq.loss_terms, latents)
    monkeypatch.setattr("magvit2_pytorch.quantizers.entropy.CHUNK_SIZE", chunk)
    assert_equal_terms(values_and_gradients(lfq.loss_terms, latents), whole, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    "options", [{}, dict(spherical=True), dict(norm="layer"), dict(norm="rms")]
)
def test_gradients_by_finite_differences(options):
    lfq = LFQ(2**3, num_codebooks=2, temperature=0.5, **options).double()
    latents = random_latents(6, 0.5).detach()[:, :, :1].requires_grad_()
    assert torch.autograd.gradcheck(lambda x: tuple(lfq.loss_terms(x).values()), latents)


def test_eighteen_bits_in_float32_are_those_of_float64():
    lfq = LFQ(2**18)
    latents = (torch.randn(1, 18, 2, 12, 12, dtype=torch.float64) * 0.02).requires_grad_()
    expected = values_and_gradients(lfq.loss_terms, latents)
    found = values_and_gradients(lfq.loss_terms, latents.detach().float().requires_grad_())
    for name, (value, gradient) in expected.items():
        torch.testing.assert_close(found[name][0].double(), value, rtol=1e-5, atol=0, msg=name)
        # Against the largest gradient: float32 has 1e-7 of that, and sums over 2^9 products.
        error = (found[name][1].double() - gradient).abs().max() / gradient.abs().max()
        assert error < 2e-5, name


@pytest.mark.parametrize("spherical", [False, True])
@pytest.mark.parametrize("num_codebooks", [1, 3])
def test_entropies_are_those_of_vector_quantize_pytorch(spherical, num_codebooks):
    options = dict(codebook_size=2**4, num_codebooks=num_codebooks, spherical=spherical)
    ours = LFQ(**options, temperature=1.0).train()
    # Its commitment compares with the latents as given, ours too; a weight of 0 would skip it.
    theirs = DenseLFQ(**options, commitment_loss_weight=1.0).train()
    latents = torch.randn(2, 4 * num_codebooks, 3, 4, 4) * 0.3
    _, expected = theirs(latents, inv_temperature=1.0, return_loss_breakdown=True)
    terms = ours.loss_terms(latents)
    torch.testing.assert_close(terms["sample_entropy"], expected.per_sample_entropy)
    torch.testing.assert_close(terms["codebook_entropy"], expected.batch_entropy)
    torch.testing.assert_close(terms["commitment"], expected.commitment)


@pytest.mark.parametrize("num_bits", [1, 9, 18, 20])
def test_codes_used_alike_have_an_entropy_of_d_ln_2(num_bits):
    """To 1e-6 of it in float32, where vector-quantize-pytorch stops at -ln(1e-5) = 11.5."""
    terms = LFQ(2**num_bits).loss_terms(torch.zeros(1, num_bits, 1, 4, 4))
    for name in ("sample_entropy", "codebook_entropy"):
        assert terms[name].item() == pytest.approx(num_bits * math.log(2), rel=1e-6)


def test_every_code_once_has_full_codebook_entropy_and_none_per_sample():
    lfq = LFQ(2**10)
    latents = lfq.decode_codes(torch.arange(2**10).view(1, 4, 16, 16))
    terms = lfq.loss_terms(latents)
    assert terms["codebook_entropy"].item() == pytest.approx(10 * math.log(2), rel=1e-6)
    assert terms["sample_entropy"].item() == 0
    assert terms["commitment"].item() == 0


def test_near_uniform_use_still_has_a_gradient_at_eighteen_bits():
    latents = (torch.randn(1, 18, 1, 8, 8) * 1e-3).requires_grad_()
    LFQ(2**18).loss_terms(latents)["codebook_entropy"].backward()
    assert latents.grad.abs().max() > 1e-4


def test_eps_keeps_large_codebooks_from_their_maximum():
    term = LFQ(2**18, entropy_eps=1e-5).loss_terms(torch.zeros(1, 18, 1, 2, 2))
    expected = -math.log(2**-18 + 1e-5)
    assert term["codebook_entropy"].item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("size", [1e4, 1e6, 1e8, 3e38])
@pytest.mark.parametrize("options", [{}, dict(spherical=True), dict(num_codebooks=2)])
def test_extreme_latents_have_finite_terms_and_gradients(size, options):
    lfq = LFQ(2**9, **options)
    latents = torch.randn(1, lfq.latent_dim, 2, 3, 3).sign() * min(size, 1e18 if options else size)
    latents.requires_grad_()
    for name, (value, gradient) in values_and_gradients(lfq.loss_terms, latents).items():
        if name == "commitment" and size > 1e18:
            continue  # Its square leaves float32, as it should.
        assert value.isfinite(), name
        assert gradient.isfinite().all(), name


def test_groups_are_an_upper_bound_exact_where_bits_are_independent():
    latents = random_latents(6, 0.02)
    exact, two, six = (
        LFQ(2**6, entropy_groups=groups).loss_terms(latents)["codebook_entropy"]
        for groups in (1, 2, 6)
    )
    assert exact < two < six
    # One sample's bits are independent.
    single = latents[:1, :, :1, :1, :1]
    exact, three = (
        LFQ(2**6, entropy_groups=groups).loss_terms(single)["codebook_entropy"] for groups in (1, 3)
    )
    torch.testing.assert_close(exact, three)


def test_a_group_is_a_codebook_of_neighbouring_bits():
    latents = random_latents(7, 0.02)
    parts = (brute_force.terms(part)["codebook_entropy"] for part in latents.split((4, 3), dim=1))
    found = LFQ(2**7, entropy_groups=2).loss_terms(latents)["codebook_entropy"]
    torch.testing.assert_close(found, sum(parts), rtol=1e-9, atol=0)


def test_codebooks_too_large_to_average_say_so_unless_told():
    with pytest.warns(UserWarning, match="sum over 2 groups of bits.*entropy_groups=2"):
        lfq = LFQ(2**36)
    latents = (torch.randn(1, 36, 1, 4, 4) * 0.01).requires_grad_()
    sum(LFQ(2**36, entropy_groups=2).loss_terms(latents).values()).backward()
    assert latents.grad.isfinite().all()
    terms = lfq.loss_terms(torch.zeros(1, 36, 1, 1, 1))
    assert terms["codebook_entropy"].item() == pytest.approx(36 * math.log(2), rel=1e-6)


def test_weights_anneal_linearly_and_then_stay():
    lfq = LFQ(
        2**4,
        entropy_loss_weight=0.1,
        diversity_gamma=0.5,
        entropy_anneal_factor=3.0,
        entropy_anneal_steps=2000,
        commitment_loss_weight=0.25,
    )
    for step, entropy in ((0, 0.3), (1000, 0.2), (1500, 0.15), (2000, 0.1), (10**6, 0.1)):
        weights = lfq.loss_weights(step)
        assert weights == pytest.approx(
            dict(sample_entropy=entropy, codebook_entropy=-entropy / 2, commitment=0.25)
        )
        assert weights.keys() == lfq.loss_terms(torch.zeros(1, 4, 1, 1, 1)).keys()
    still = LFQ(2**4, entropy_loss_weight=0.1, entropy_anneal_steps=0, entropy_anneal_factor=3.0)
    assert still.loss_weights(0)["sample_entropy"] == pytest.approx(0.1)
    assert LFQ(2**4).loss_weights(0) == LFQ(2**4).loss_weights(5000)


def print_peak_memory():
    lfq = LFQ(2**18)

    def step(frames):
        z = (torch.randn(1, 18, frames, 16, 16) * 0.02).requires_grad_()
        sum(lfq.loss_terms(z).values()).backward()

    def kilobytes(name):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(name))

    step(1)  # what torch allocates once
    before = kilobytes("VmRSS")
    step(20)
    # Not getrusage: what it calls the peak counts the process that started this one.
    print((kilobytes("VmHWM") - before) * 1024)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_5120_tokens_at_eighteen_bits_take_less_than_300_megabytes():
    """A dense softmax needs 5.4 GB for each of its tensors."""
    with Started(print_peak_memory) as run:
        assert run.wait() == 0, run.stderr
        # The peak since the start against what is held before: never less than what it took.
        assert 10e6 < int(run.stdout) < 300e6
