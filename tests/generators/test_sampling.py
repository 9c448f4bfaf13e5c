import pytest
import torch

from magvit2_pytorch.generators import Sampling
from magvit2_pytorch.generators.sampling import cell_noise

CELLS = torch.cartesian_prod(torch.arange(16), torch.arange(16))


def test_noise_is_uniform_and_has_no_pattern():
    noise = cell_noise(3, torch.arange(8), 5, CELLS, 6)
    assert noise.shape == (8, 256, 6)
    assert noise.min() > 0
    assert noise.max() < 1
    # Five standard deviations of the means of 12,288 numbers.
    assert float(noise.mean()) == pytest.approx(0.5, abs=5 * 12**-0.5 / 12288**0.5)
    counts = torch.histc(noise, 16, 0, 1)
    assert float(((counts - 768) ** 2 / 768).sum()) < 45  # chi squared, 15 degrees: p = 1e-4
    flat = noise.flatten(0, 1) - 0.5
    assert (flat.T.cov().tril(-1).abs() < 5 / 12 / 2048**0.5).all()


def test_noise_belongs_to_seed_sample_frame_cell_and_place():
    base = cell_noise(3, torch.tensor([4]), 5, CELLS[7:8], 3)
    assert torch.equal(cell_noise(3, torch.arange(8), 5, CELLS, 6)[4:5, 7:8, :3], base)
    others = [
        cell_noise(2, torch.tensor([4]), 5, CELLS[7:8], 3),
        cell_noise(3, torch.tensor([5]), 5, CELLS[7:8], 3),
        cell_noise(3, torch.tensor([4]), 6, CELLS[7:8], 3),
        cell_noise(3, torch.tensor([4]), 5, CELLS[8:9], 3),
        cell_noise(3, torch.tensor([4]), 5, CELLS[7:8], 3, purpose="order"),
    ]
    assert all((other != base).all() for other in others)
    hours = cell_noise(3, torch.tensor([4]), 10**6, CELLS[7:8], 3)
    assert ((hours > 0) & (hours < 1)).all()


LOGITS = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()


@pytest.mark.parametrize(
    ("options", "allowed"),
    [
        ({}, {0, 1, 2, 3}),
        (dict(top_k=2), {0, 1}),
        (dict(top_p=0.7), {0, 1}),
        (dict(top_p=0.71), {0, 1, 2}),
        (dict(min_p=0.6), {0, 1}),
        (dict(temperature=0.0), {0}),
        (dict(top_k=3, top_p=0.5), {0, 1}),
    ],
)
def test_cuts_leave_the_likely_values_in_proportion(options, allowed):
    uniform = (torch.arange(1000) + 0.5) / 1000
    logits = LOGITS[[2, 0, 3, 1]].expand(1000, -1)  # not in order
    drawn = torch.tensor([2, 0, 3, 1])[Sampling(**options).choose(logits, uniform)]
    assert set(drawn.tolist()) == allowed
    shares = LOGITS.exp()[sorted(allowed)]
    counts = drawn.bincount(minlength=4)[sorted(allowed)] / 1000
    torch.testing.assert_close(counts, shares / shares.sum(), atol=0.0011, rtol=0)


@pytest.mark.parametrize(
    "options", [dict(temperature=-1.0), dict(top_k=0), dict(top_p=0.0), dict(min_p=1.0)]
)
def test_options_out_of_range(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        Sampling(**options)
