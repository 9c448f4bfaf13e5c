"""The discriminators of O2-MAGVIT2, number for number.

`data/` holds inputs and logits of its modules (float32, CPU, random weights, seeds 1325 and 1600).
The picture's weights are stored. The clip's are made by recipe from their names, and its input is
rounded to float16, which moves the logit by less than 1e-7.
"""

import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from magvit2_pytorch.discriminators import FrameDiscriminator, VideoDiscriminator
from magvit2_pytorch.losses import r1_penalty

DATA = Path(__file__).parent / "data"
RECIPE_SEED = 1600 + 1000
ROOMS = {"stem": "conv_in", "head.to_logit.0": "linear0", "head.to_logit.2": "linear1"}
CONVS = {"conv_in": "conv1", "shortcut": "conv2", "conv_out": "conv3"}


def their_name(name):
    room, leaf = name.removeprefix("network.").rsplit(".", 1)
    if room.startswith("blocks."):
        _, number, conv = room.split(".")
        return f"res_blocks.{number}.{CONVS[conv]}.{leaf}"
    return f"{ROOMS.get(room, room)}.{leaf}"


def made(name, shape):
    """Weights from a name and a seed."""
    seed = (zlib.crc32(name.encode()) + RECIPE_SEED) & 0xFFFFFFFF
    values = np.random.RandomState(seed).standard_normal(tuple(shape))
    return 0.1 * values if name.endswith("bias") else values / np.sqrt(np.prod(shape[1:]))


def load(discriminator, weight):
    state = discriminator.state_dict()
    discriminator.load_state_dict(
        {name: torch.tensor(weight(their_name(name), x.shape)).float() for name, x in state.items()}
    )


@torch.no_grad()
def test_logits_of_a_picture():
    stored = dict(np.load(DATA / "o2_2d.npz"))
    view = torch.tensor(stored.pop("input"))[:, :, None]
    right = torch.tensor(stored.pop("logits"))
    discriminator = FrameDiscriminator(dim=8, dim_mults=(2, 2), head="fixed", input_size=(32, 32))
    load(discriminator, lambda name, shape: stored.pop(name))
    assert not stored, "every weight of theirs has a place"
    torch.testing.assert_close(discriminator((view,)).logits[0], right, atol=1e-6, rtol=0)


def test_the_r1_penalty_of_a_picture():
    """Theirs is 10 * (1e-6 + R1)."""
    stored = dict(np.load(DATA / "o2_2d.npz"))
    view = torch.tensor(stored.pop("input"))[:, :, None].requires_grad_()
    discriminator = FrameDiscriminator(dim=8, dim_mults=(2, 2), head="fixed", input_size=(32, 32))
    load(discriminator, lambda name, shape: stored[name])
    penalty = r1_penalty((view,), discriminator((view,)).logits)
    assert 10 * (1e-6 + float(penalty.detach())) == pytest.approx(0.00892119948, rel=1e-5)


@torch.no_grad()
def test_logits_of_a_clip():
    stored = np.load(DATA / "o2_3d_full_topology.npz")
    discriminator = VideoDiscriminator(
        dim=8, dim_mults=(2, 4, 4, 4, 4), head="fixed", input_size=(17, 32, 32)
    )
    load(discriminator, made)
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
