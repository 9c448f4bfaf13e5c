"""Generators of residual levels: one exact distribution, levels in order, streams as the whole."""

import math
from itertools import product

import pytest
import torch

from magvit2_pytorch.generators import ResidualGenerator, Sampling, load_generator

LEVELS = ((2, 2), (2, 2))


def make(depth_layers=1, levels=LEVELS, **options):
    torch.manual_seed(0)
    options = dict(dim=16, depth=1, heads=2) | options
    generator = ResidualGenerator(levels=levels, depth_layers=depth_layers, **options)
    for name, weight in generator.named_parameters():
        # As after training: an untrained head gives all codes nearly one probability.
        if "to_logits" in name and weight.ndim == 2:
            torch.nn.init.normal_(weight, std=0.3)
    return generator.double().eval()


def random_codes(generator, batch=2, grid=(2, 3, 4)):
    digits = [torch.randint(part.size, (batch, *grid)) for part in generator.code_space.digits]
    return generator.code_space.from_digits(torch.stack(digits, dim=-1))


@pytest.mark.parametrize("depth_layers", [0, 1, 2])
@pytest.mark.parametrize("group", [2, 8])
def test_probabilities_of_all_codes_sum_to_one(depth_layers, group):
    generator = make(depth_layers, group=group)
    codes = torch.tensor(list(product(range(4), repeat=4))).view(-1, 1, 1, 2, 2)
    bits, _ = generator.bits(codes)
    probabilities = 2 ** -bits.sum(dim=(1, 2, 3))
    assert len(probabilities) == 256
    assert probabilities.sum().item() == pytest.approx(1, abs=1e-12)
    assert probabilities.max() > 3 / 256


@pytest.mark.parametrize("depth_layers", [0, 2])
def test_a_level_depends_on_those_before_it_only(depth_layers):
    generator = make(depth_layers, ((3, 3), (3, 3), (3, 3)), group=3)
    x = torch.randn(5, 16).double()
    sub_tokens = torch.randint(3, (5, 6))
    nll = generator.head.nll(x, sub_tokens)
    for changed in range(6):
        other = sub_tokens.clone()
        other[:, changed] = (other[:, changed] + 1) % 3
        after = generator.head.nll(x, other)
        assert torch.equal(after[:, :changed], nll[:, :changed])
        assert (after[:, changed:] != nll[:, changed:]).all()


@pytest.mark.parametrize("depth_layers", [0, 2])
def test_codes_are_drawn_from_the_probabilities_that_are_trained(depth_layers):
    generator = make(depth_layers, ((3, 3), (3, 3), (3, 3)), group=3)
    x, drawn = torch.randn(2, 5, 16).double(), []

    def choose(number, logits):
        assert number == len(drawn)
        assert logits.shape == (2, 5, 3)
        value = torch.randint(3, (2, 5))
        drawn.append(-logits.log_softmax(-1).gather(-1, value[..., None])[..., 0])
        return value

    values = generator.head.draw(x, choose)
    nll = generator.head.nll(x, values)
    torch.testing.assert_close(torch.stack(drawn, dim=-1), nll, atol=1e-12, rtol=0)


def test_a_stream_equals_the_whole_and_argmax_its_own_likeliest_codes():
    generator = make(2)
    codes = random_codes(generator)
    loss, terms = generator.loss(codes)
    bits, state = generator.bits(codes)
    assert loss.item() / math.log(2) == pytest.approx(bits.mean().item(), abs=1e-12)
    assert terms.shape == (len(generator.code_space.sub_tokens),)
    frames = [generator.next_frame(state, Sampling(seed=seed))[0] for seed in (0, 0, 1)]
    assert torch.equal(frames[0], frames[1])
    assert (frames[0] != frames[2]).any()


def test_no_depth_is_the_chain_over_all_levels():
    depth, chain = make(0), make(1)
    assert type(depth.head).__name__ == "CodeHead"
    assert type(chain.head).__name__ == "DepthHead"


@pytest.mark.parametrize("depth_layers", [0, 2])
def test_gradients_and_saving(depth_layers, tmp_path):
    generator = make(depth_layers).float().train()
    codes = random_codes(generator)
    generator.loss(codes)[0].backward()
    assert [name for name, p in generator.named_parameters() if p.grad is None] == []
    generator.save_pretrained(tmp_path)
    loaded = load_generator(tmp_path)
    assert loaded.config == generator.config
    assert torch.equal(loaded.bits(codes)[0], generator.eval().bits(codes)[0])


def test_an_untrained_model_has_the_bits_of_equal_codes():
    generator = ResidualGenerator(levels=((2,) * 18, (2,) * 18), dim=32, depth=1, heads=2)
    bits, _ = generator.eval().bits(random_codes(generator))
    assert bits.mean().item() == pytest.approx(36, abs=0.05)
    assert max(max(p.shape) for p in generator.parameters()) < 2**11


def test_one_level_has_no_depth(without_type_checks):
    assert type(make(1, ((4, 4),)).head).__name__ == "CodeHead"
    with pytest.raises(ValueError, match="depth_layers is -1"):
        make(-1)
