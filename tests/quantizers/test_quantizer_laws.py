"""What holds for every quantizer."""

import pytest
import torch

from magvit2_pytorch.quantizers.continuous import Continuous
from magvit2_pytorch.quantizers.fsq import FSQ
from magvit2_pytorch.quantizers.lfq import LFQ
from magvit2_pytorch.quantizers.quantizer import QUANTIZERS
from magvit2_pytorch.quantizers.residual_scalar import ResidualFSQ, ResidualLFQ
from magvit2_pytorch.quantizers.vector import VectorQuantizer
from tests.processes import Started

MAKE = {
    "lfq": lambda: LFQ(2**6),
    "lfq-lsb": lambda: LFQ(2**6, bit_order="lsb"),
    "lfq-several": lambda: LFQ(2**4, num_codebooks=3),
    "lfq-spherical": lambda: LFQ(2**6, spherical=True),
    "lfq-layer": lambda: LFQ(2**6, norm="layer"),
    "lfq-rms": lambda: LFQ(2**4, num_codebooks=2, norm="rms"),
    "fsq": lambda: FSQ((8, 5, 5)),
    "fsq-several": lambda: FSQ((4, 4), num_codebooks=2),
    "fsq-norm": lambda: FSQ((8, 5, 5), norm="rms"),
    "lfq-residual": lambda: ResidualLFQ(2**4, residual_levels=3, norm="rms", bit_order="lsb"),
    "fsq-residual": lambda: ResidualFSQ((4, 5, 2), residual_levels=3, level_dropout=0.5),
    "vq": lambda: VectorQuantizer(4, 50),
    "vq-sim": lambda: VectorQuantizer(4, 50, "simvq"),
    "vq-residual": lambda: VectorQuantizer(4, 16, "residual", num_levels=3),
    "continuous": lambda: Continuous(4),
    "continuous-kl": lambda: Continuous(4, kl=True),
}
_TESTED = {type(make()) for make in MAKE.values()}
MAKE |= {name: cls for name, cls in QUANTIZERS.items() if cls not in _TESTED}
"""Every registered quantizer; one that is newly registered by its defaults."""

DISCRETE = [name for name in MAKE if not name.startswith("continuous")]


@pytest.fixture(params=MAKE)
def quantizer(request):
    return MAKE[request.param]().eval()


@pytest.fixture(params=DISCRETE)
def discrete(request):
    return MAKE[request.param]().eval()


def random_latents(quantizer, dtype=torch.float32):
    return torch.randn(2, quantizer.latent_dim, 3, 4, 5).to(dtype)


def test_every_registered_quantizer_is_here():
    assert {type(make()) for make in MAKE.values()} == set(QUANTIZERS.values())


def test_shapes_and_round_trip(discrete):
    quantized, codes = discrete(random_latents(discrete))
    books = () if discrete.num_codebooks == 1 else (discrete.num_codebooks,)
    assert quantized.shape == (2, discrete.quantized_dim, 3, 4, 5)
    assert codes.shape == (2, 3, 4, 5, *books)
    assert torch.equal(discrete.decode_codes(codes), quantized)
    # A codebook axis of one is welcome, and so are small integers.
    assert torch.equal(discrete.decode_codes(codes.view(2, 3, 4, 5, -1)), quantized)
    assert torch.equal(discrete.decode_codes(codes.short()), quantized)


def test_terms_and_weights_have_the_same_names(quantizer):
    terms = quantizer.loss_terms(random_latents(quantizer))
    assert terms.keys() == quantizer.loss_weights(0).keys()
    assert all(term.ndim == 0 for term in terms.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_everything_runs_in_float32_under_autocast(quantizer, dtype):
    latents = random_latents(quantizer, dtype)
    plain = quantizer(latents.float())
    terms = quantizer.loss_terms(latents.float())
    with torch.autocast("cpu", torch.bfloat16):
        quantized, codes = quantizer(latents)
        under = quantizer.loss_terms(latents)
    assert quantized.dtype == torch.float32
    assert torch.equal(quantized, plain.quantized)
    assert codes is plain.codes is None or torch.equal(codes, plain.codes)
    for name, term in terms.items():
        assert under[name].dtype == torch.float32
        assert torch.equal(under[name], term), name


def test_gradients_are_float32s_under_autocast(quantizer):
    def gradient(latents):
        latents.requires_grad_()
        out = quantizer(latents).quantized.square().sum()
        (out + sum(quantizer.loss_terms(latents).values())).backward()
        return latents.grad

    latents = random_latents(quantizer)
    plain = gradient(latents.clone())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(gradient(latents.clone()), plain)
    assert plain.abs().max() > 0


def test_float64_stays_float64(quantizer):
    latents = random_latents(quantizer, torch.float64)
    assert quantizer(latents).quantized.dtype == torch.float64
    assert all(term.dtype == torch.float64 for term in quantizer.loss_terms(latents).values())


def test_every_parameter_gets_a_gradient(quantizer):
    quantizer.train()
    latents = random_latents(quantizer)
    out = quantizer(latents).quantized.square().sum()
    total = out + sum(quantizer.loss_terms(latents).values())
    if total.requires_grad:
        total.backward()
    assert all(p.grad is not None for p in quantizer.parameters())


@pytest.mark.parametrize("name", MAKE)
def test_building_and_running_on_meta(name):
    with torch.device("meta"):
        quantizer = MAKE[name]()
        latents = torch.randn(2, quantizer.latent_dim, 3, 4, 5)
    quantized, codes = quantizer(latents)
    assert quantized.is_meta
    assert quantized.shape == (2, quantizer.quantized_dim, 3, 4, 5)
    assert all(term.is_meta for term in quantizer.loss_terms(latents).values())
    if codes is not None:
        assert quantizer.decode_codes(codes).shape == quantized.shape


@pytest.mark.parametrize("name", MAKE)
def test_a_state_dict_fills_what_was_built_on_meta(name):
    with torch.device("meta"):
        quantizer = MAKE[name]().eval()
    original = MAKE[name]().eval()
    quantizer.to_empty(device="cpu").load_state_dict(original.state_dict())
    latents = random_latents(original)
    assert torch.equal(quantizer(latents).quantized, original(latents).quantized)


def test_latents_of_the_wrong_shape_are_refused(quantizer):
    dim = quantizer.latent_dim
    for method in (quantizer, quantizer.loss_terms):
        with pytest.raises(ValueError, match=rf"takes b d t h w with d = {dim}"):
            method(torch.randn(1, dim + 1, 2, 3, 3))
    # An image without its time axis.
    with pytest.raises(ValueError, match=rf"\(1, {dim}, 3, 3\), but .* with d = {dim}"):
        quantizer.check_latents(torch.randn(1, dim, 3, 3))


def test_codes_out_of_range_are_refused(discrete):
    codes = discrete(random_latents(discrete)).codes
    size = discrete.codebook_size
    for wrong in (-1, size):
        codes.flatten()[3] = wrong
        edge = f"from {wrong}" if wrong < 0 else f"to {wrong}"
        with pytest.raises(ValueError, match=rf"codes range .*{edge}.*codebook has {size}"):
            discrete.decode_codes(codes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool, torch.complex64])
def test_codes_that_are_no_integers_are_refused(discrete, dtype):
    codes = discrete(random_latents(discrete)).codes
    with pytest.raises(ValueError, match=f"codes are {dtype}: give integers, as tokenize does"):
        discrete.decode_codes(codes.to(dtype))


def test_codes_of_the_wrong_shape_are_refused(discrete):
    codes = discrete(random_latents(discrete)).codes
    books = discrete.num_codebooks
    axes = "b t h w" if books == 1 else f"b t h w {books}"
    for wrong in (codes[0, 0], codes.flatten(), codes.view(2, 3, 4, 5, books, 1)):
        shape = rf"\({', '.join(map(str, wrong.shape))},?\)"
        with pytest.raises(ValueError, match=rf"codes have shape {shape}: give {axes}$"):
            discrete.decode_codes(wrong)
    with pytest.raises(ValueError, match="codes have shape"):
        discrete.decode_codes(codes.view(2, 3, 4, 5, books).repeat(1, 1, 1, 1, 2))


def compile_and_compare(name):
    """Compiled against eager, in a process of its own: the tests' type checks do not compile."""
    torch.manual_seed(0)
    quantizer = MAKE[name]().eval()

    def step(latents):
        return quantizer(latents).quantized, quantizer.loss_terms(latents)

    latents = random_latents(quantizer)
    results, gradients = [], []
    for function in (step, torch.compile(step, fullgraph=True)):
        x = latents.clone().requires_grad_()
        quantized, terms = function(x)
        (quantized.square().sum() + sum(terms.values())).backward()
        results.append((quantized.detach(), {k: v.detach() for k, v in terms.items()}))
        gradients.append(x.grad)
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lfq", "fsq"])
def test_compiles_in_one_graph(name):
    with Started(compile_and_compare, name) as run:
        assert run.wait() == 0, run.stderr[-3000:]


@pytest.mark.parametrize("training", [False, True])
def test_a_batch_of_nothing_gives_nothing(quantizer, training):
    quantizer.train(training)
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    latents = random_latents(quantizer)[:0].requires_grad_()
    quantized, codes = quantizer(latents)
    assert quantized.shape == (0, quantizer.quantized_dim, 3, 4, 5)
    if codes is not None:
        assert (codes.shape[:4], codes.dtype) == ((0, 3, 4, 5), torch.long)
        assert quantizer.decode_codes(codes).shape == quantized.shape
    for name, value in quantizer.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_meta_tensors_give_shapes(quantizer):
    quantizer.to("meta")
    quantized, codes = quantizer(random_latents(quantizer).to("meta"))
    assert quantized.shape == (2, quantizer.quantized_dim, 3, 4, 5)
    if codes is not None:
        assert quantizer.decode_codes(codes).shape == quantized.shape
