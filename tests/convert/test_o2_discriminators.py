"""The discriminators of O2-MAGVIT2, number for number.

`data/` holds inputs and logits of its modules (float32, CPU, random weights, seeds 1325 and 1600).
The picture's weights are stored. The clip's are made by recipe from their names, and its input is
rounded to float16, which moves the logit by less than 1e-7.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from magvit2_pytorch.convert.o2_magvit2 import convert_discriminator
from magvit2_pytorch.discriminators.models import FrameDiscriminator, VideoDiscriminator
from magvit2_pytorch.losses.adversarial import r1_penalty
from tests.o2_magvit2 import discriminator_shapes, made_state

DATA = Path(__file__).parent / "discriminator_data"
RECIPE_SEED = 1600 + 1000
CLIP = discriminator_shapes(8, (2, 4, 4, 4, 4), (1, 1, 1))


def picture():
    """Input, logits, and the discriminator."""
    stored = {name: torch.tensor(value) for name, value in np.load(DATA / "o2_2d.npz").items()}
    view, right = stored.pop("input")[:, :, None], stored.pop("logits")
    return view, right, convert_discriminator(stored)


@torch.no_grad()
def test_logits_of_a_picture():
    view, right, discriminator = picture()
    assert isinstance(discriminator, FrameDiscriminator)
    assert discriminator.network.head.input_size == (32, 32)
    torch.testing.assert_close(discriminator((view,)).logits[0], right, atol=1e-6, rtol=0)


def test_the_r1_penalty_of_a_picture():
    """Theirs is 10 * (1e-6 + R1)."""
    view, _, discriminator = picture()
    view.requires_grad_()
    penalty = r1_penalty((view,), discriminator((view,)).logits)
    assert 10 * (1e-6 + float(penalty.detach())) == pytest.approx(0.00892119948, rel=1e-5)


@torch.no_grad()
def test_logits_of_a_clip():
    stored = np.load(DATA / "o2_3d_full_topology.npz")
    discriminator = convert_discriminator(made_state(CLIP, RECIPE_SEED))
    assert isinstance(discriminator, VideoDiscriminator)
    assert discriminator.network.head.input_size == (17, 32, 32)
    logits = discriminator((torch.tensor(stored["input"]).float(),)).logits[0]
    torch.testing.assert_close(logits, torch.tensor(stored["logits"])[0], atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("kind", "dim_mults", "input_size", "num_parameters"),
    [
        (VideoDiscriminator, (2, 4, 4, 4, 4), (17, 256, 256), 73_924_481),
        (VideoDiscriminator, (2, 4, 4, 4, 4), (17, 128, 128), 61_341_569),
        (FrameDiscriminator, (2, 2, 4, 4, 4), (256, 256), 32_727_681),
    ],
)
def test_parameters_are_as_many(kind, dim_mults, input_size, num_parameters):
    with torch.device("meta"):
        discriminator = kind(dim=128, dim_mults=dim_mults, head="fixed", input_size=input_size)
    assert sum(p.numel() for p in discriminator.parameters()) == num_parameters


@pytest.mark.parametrize(
    ("mults", "map_size", "input_size"),
    [
        ((2, 4, 4, 4, 4), (1, 4, 4), (17, 128, 128)),
        ((2, 2), (3, 4, 4), (9, 16, 16)),
        ((2, 2), (5, 4, 4), (17, 16, 16)),
        ((1, 3, 2), (3, 2, 2), (17, 16, 16)),
        ((2, 2, 4), (2, 2), (16, 16)),
        ((4,), (3, 3), (6, 6)),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_sizes_are_told_from_shapes(mults, map_size, input_size, channels):
    state = made_state(discriminator_shapes(4, mults, map_size, channels), 0)
    before = torch.get_rng_state()
    discriminator = convert_discriminator(state)
    assert torch.equal(torch.get_rng_state(), before)
    assert not discriminator.training
    network = discriminator.network
    assert network.head.input_size == input_size
    assert network.head.map_size == map_size
    weights = {n: x for n, x in state.items() if not n.endswith("filt")}
    assert sum(p.numel() for p in network.parameters()) == sum(x.numel() for x in weights.values())
    view = torch.rand(2, channels, *input_size[-3:-2] or (1,), *input_size[-2:])
    assert discriminator((view,)).logits[0].shape[0] == 2


def test_a_size_may_be_given():
    state = made_state(discriminator_shapes(4, (2, 2), (3, 2, 4)), 0)
    assert convert_discriminator(state, (9, 8, 16)).network.head.map_size == (3, 2, 4)
    assert convert_discriminator(state).network.head.map_size == (6, 2, 2)
    with pytest.raises(
        ValueError, match=r"input_size \(9, 16, 16\) does not fit.* of 24 positions"
    ):
        convert_discriminator(state, (9, 16, 16))
    state = made_state(discriminator_shapes(4, (2, 2), (2, 3)), 0)
    assert convert_discriminator(state, (7, 12)).network.head.map_size == (2, 3)
    with pytest.raises(ValueError, match="6 positions, which is not a square: give the input"):
        convert_discriminator(state)


def test_half_precision_becomes_float32_and_the_blur_may_be_left_out():
    state = made_state(CLIP, 0)
    half = {name: tensor.half() for name, tensor in state.items()}
    bare = {name: x for name, x in half.items() if not name.endswith("filt")}
    one, other = convert_discriminator(half), convert_discriminator(bare)
    assert {p.dtype for p in one.parameters()} == {torch.float32}
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


BLUR = "res_blocks.0.blur.filt"


@pytest.mark.parametrize("key", sorted(set(CLIP) - {k for k in CLIP if k.endswith("filt")}))
def test_every_tensor_is_missed(key):
    state = made_state(CLIP, 0)
    del state[key]
    with pytest.raises(ValueError, match="discriminator lacks") as caught:
        convert_discriminator(state)
    assert key in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {BLUR: torch.ones(8, 1, 3, 3, 3) / 27},
            "0.blur.filt of the discriminator is not the filter",
        ),
        (
            {BLUR: torch.ones(8, 1, 4, 4, 4) / 64},
            "0.blur.filt of the discriminator is not the filter",
        ),
        ({"norm_fn.norm_fn.weight": torch.ones(32)}, "has norm_fn.norm_fn.weight too many"),
        ({"conv_out.bias": torch.ones(31)}, r"conv_out.bias is \(31,\), not \(32,\)"),
        ({"conv_in.weight": torch.ones(8, 3)}, "not those of a discriminator"),
        ({"conv_in.weight": torch.ones(8)}, r"has shape \(8,\), which .*: give 2 axes"),
        (
            {"res_blocks.1.conv3.weight": torch.ones(12, 16, 3, 3, 3)},
            "not those of a discriminator",
        ),
        ({"conv_in.weight": torch.ones(8, 2, 3, 3, 3)}, "2 channels"),
    ],
)
def test_what_does_not_fit_is_an_error(changes, message):
    with pytest.raises(ValueError, match=message):
        convert_discriminator({**made_state(CLIP, 0), **changes})


def test_a_discriminator_without_blocks_is_none():
    with pytest.raises(ValueError, match="not those of a discriminator"):
        convert_discriminator({n: x for n, x in made_state(CLIP, 0).items() if "blocks" not in n})
