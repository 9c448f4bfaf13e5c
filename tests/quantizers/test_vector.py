"""Vector quantizers against vector-quantize-pytorch itself, and their codebooks in training."""

import copy
import sys

import pytest
import torch
from einops import rearrange

from magvit2_pytorch.quantizers.vector import VectorQuantizer, _library
from magvit2_pytorch.tokenizer.model import VideoTokenizer
from magvit2_pytorch.tokenizer.tokenizer_config import TokenizerConfig
from tests.conftest import QUANTIZERS, SMALL, random_video
from tests.processes import run_two_processes
from tests.quantizers import vector_worker as worker

TYPES = ("vq", "simvq", "residual")


def make(vq_type, dim=6, codebook_size=32):
    return VectorQuantizer(dim, codebook_size, vq_type, num_levels=3)


def latents_of(quantizer, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, quantizer.latent_dim, 3, 4, 5, generator=generator)


def moved(quantizer, steps=3):
    """In training mode, after some batches, so that codebooks are not those of the start."""
    quantizer.train()
    for seed in range(steps):
        quantizer.loss_terms(latents_of(quantizer, seed).requires_grad_())
    return quantizer


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("vq_type", TYPES)
def test_values_codes_gradients_and_codebooks_are_the_library_s(vq_type, training):
    quantizer = moved(make(vq_type)).train(training)
    theirs = copy.deepcopy(quantizer.vq)
    for seed in range(10, 13):
        x, y = (latents_of(quantizer, seed).requires_grad_() for _ in range(2))
        quantized, codes = quantizer(x)
        terms = quantizer.loss_terms(x)
        values, indices, loss = theirs(rearrange(y, "b d t h w -> b (t h w) d"))
        assert torch.equal(codes.flatten(1, 3), indices)
        torch.testing.assert_close(quantized, rearrange(values, "b n d -> b d n").view_as(x))
        assert quantizer.codebooks[0].shape == (32, 6)
        if not training:
            continue
        # A weight that differs by position.
        weight = torch.linspace(-1, 1, x.numel()).view_as(x)
        (terms["commitment"] + (quantized * weight).sum()).backward()
        flat = rearrange(weight, "b d t h w -> b (t h w) d")
        (loss.sum() + (values * flat).sum()).backward()
        torch.testing.assert_close(terms["commitment"], loss.sum())
        torch.testing.assert_close(x.grad, y.grad)
        torch.testing.assert_close(quantizer.vq.state_dict(), theirs.state_dict())
        ours, others = (m.parameters() for m in (quantizer.vq, theirs))
        for p, q in zip(ours, others, strict=True):
            torch.testing.assert_close(p.grad, q.grad)


@pytest.mark.parametrize("vq_type", TYPES)
def test_codes_do_not_depend_on_the_rest_of_the_batch(vq_type):
    quantizer = moved(make(vq_type, codebook_size=300)).eval()
    latents = torch.randn(7, 6, 3, 8, 8)
    whole = quantizer(latents)
    for part in (1, 2, 5):
        pieces = [quantizer(piece) for piece in latents.split(part)]
        assert torch.equal(torch.cat([piece.codes for piece in pieces]), whole.codes)
        assert torch.equal(torch.cat([piece.quantized for piece in pieces]), whole.quantized)


def test_the_search_in_pieces_is_the_whole(monkeypatch):
    quantizer = make("residual").eval()
    latents = latents_of(quantizer)
    whole = quantizer(latents)
    monkeypatch.setattr("magvit2_pytorch.quantizers.vector.MAX_DISTANCES", 100)
    assert torch.equal(quantizer(latents).codes, whole.codes)


@pytest.mark.parametrize("vq_type", ["vq", "residual"])
def test_only_losses_in_training_mode_move_the_codebooks(vq_type):
    quantizer = make(vq_type)
    latents = latents_of(quantizer)
    before = copy.deepcopy(quantizer.state_dict())
    quantized, codes = quantizer(latents)
    assert torch.equal(quantizer.decode_codes(codes), quantized)
    quantizer.eval().loss_terms(latents.clone().requires_grad_())
    quantizer.train().loss_terms(latents)  # of a frozen encoder
    torch.testing.assert_close(quantizer.state_dict(), before, rtol=0, atol=0)
    quantizer.loss_terms(latents.clone().requires_grad_())
    assert not torch.equal(quantizer(latents).quantized, quantized)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("vq_type", TYPES)
def test_latents_that_are_not_finite_leave_codebooks_alone(vq_type, bad):
    quantizer = moved(make(vq_type))
    before = copy.deepcopy(quantizer.state_dict())
    latents = latents_of(quantizer)
    latents[1, 2, 0, 1, 3] = bad
    codes = quantizer(latents).codes
    assert codes.min() >= 0
    assert codes.max() < 32
    assert not quantizer.loss_terms(latents.requires_grad_())["commitment"].isfinite()
    torch.testing.assert_close(quantizer.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("vq_type", TYPES)
def test_a_copy_by_state_dict_continues_alike(vq_type):
    quantizer = moved(make(vq_type))
    other = make(vq_type)
    other.load_state_dict(quantizer.state_dict())
    for m in (quantizer, other):
        m.loss_terms(latents_of(m, 20).requires_grad_())
    torch.testing.assert_close(quantizer.state_dict(), other.state_dict(), rtol=0, atol=0)


def test_every_code_of_simvq_gets_gradients_of_one():
    quantizer = make("simvq")
    before = quantizer.codebooks[0].detach().clone()
    quantizer.loss_terms(latents_of(quantizer))["commitment"].backward()
    with torch.no_grad():
        quantizer.vq.code_transform.weight -= quantizer.vq.code_transform.weight.grad
    assert (quantizer.codebooks[0] != before).any(dim=-1).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(vq_type="vq"), "vq_type='vq' needs codebook_size"),
        (dict(vq_type="vq", use_fsq=True, fsq_levels=(5, 5)), "needs codebook_size"),
        (dict(vq_type="vq", continuous_dim=4), "needs codebook_size"),
        (dict(vq_type="rvq", codebook_size=8), "vq_type 'rvq': use 'vq', 'simvq' or 'residual'"),
        (dict(vq_type="vq", codebook_size=8, num_codebooks=2), "use vq_type='residual'"),
        (dict(codebook_size=8, vq_dim=4), "vq_dim has no effect without vq_type"),
        (dict(vq_type="vq", codebook_size=8, vq_num_levels=2), "without vq_type='residual'"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options, message, without_type_checks):
    with pytest.raises(ValueError, match=message):
        TokenizerConfig(**options, layers=("residual",))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(dim=1), "dim is 1"),
        (dict(codebook_size=1), "codebook_size is 1"),
        (dict(vq_type="residual", num_levels=1), "num_levels is 1"),
        (dict(vq_type="rvq"), "vq_type 'rvq'"),
    ],
)
def test_impossible_sizes_are_refused(options, message, without_type_checks):
    with pytest.raises(ValueError, match=message):
        VectorQuantizer(**(dict(dim=4, codebook_size=8) | options))


def test_a_broken_library_is_named_where_it_is_needed(monkeypatch):
    monkeypatch.setitem(sys.modules, "vector_quantize_pytorch", None)
    with pytest.raises(ImportError, match=r"needs vector-quantize-pytorch.*pip install"):
        _library()
    VideoTokenizer(**SMALL, **QUANTIZERS["fsq"], layers=("residual",))


def test_a_tokenizer_has_codes_of_every_level():
    tokenizer = VideoTokenizer(**SMALL, **QUANTIZERS["vq-residual"], layers=("compress_space",))
    codes = tokenizer.eval().tokenize(random_video(3))
    assert codes.dtype == torch.int64
    assert codes.shape == (1, 3, 8, 8, 3)
    assert tokenizer.decode_from_code_indices(codes).shape == (1, 3, 3, 16, 16)


def test_two_processes_move_the_codebooks_as_one(tmp_path):
    first, second = run_two_processes(worker, tmp_path)
    for vq_type in worker.TYPES:
        alone = worker.quantizer(vq_type)
        for step in range(3):
            alone.loss_terms(worker.latents(step))
        torch.testing.assert_close(first[vq_type], alone.state_dict())
        torch.testing.assert_close(first[vq_type], second[vq_type], rtol=0, atol=0)
