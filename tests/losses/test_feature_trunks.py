"""The trunks against the same networks written out once more, and against torchvision's."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from magvit2_pytorch.losses.perceptual_networks import TRUNKS, PaddedBlurPool

CONVS = {
    # Layers with weights, as torchvision and ST-LPIPS number them.
    "vgg16": (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
    "st_vgg16": (0, 2, 6, 8, 12, 14, 16, 20, 22, 24, 28, 30, 32),
    "alexnet": (0, 3, 6, 8, 10),
    "st_alexnet": (0, 5, 9, 11, 13),
}


def blurred(x):
    """[1, 2, 1] x [1, 2, 1] / 16 at every second pixel, of a map reflected by 2."""
    x = F.pad(x, (2, 2, 2, 2), mode="reflect")
    rows = (x[..., :-2, :] + 2 * x[..., 1:-1, :] + x[..., 2:, :]) / 4
    both = (rows[..., :-2] + 2 * rows[..., 1:-1] + rows[..., 2:]) / 4
    return both[..., ::2, ::2]


def vgg(x, weights, pool):
    outputs, blocks = [], (2, 2, 3, 3, 3)
    for block, num_convs in enumerate(blocks):
        x = pool(x) if block else x
        for _ in range(num_convs):
            x = F.conv2d(x, *next(weights), padding=1).clamp(min=0)
        outputs.append(x)
    return outputs


def alex(x, weights, pool, first):
    outputs = [first(x, *next(weights)).clamp(min=0)]
    for num, padding in enumerate((2, 1, 1, 1)):
        x = pool(outputs[-1]) if num < 2 else outputs[-1]
        outputs.append(F.conv2d(x, *next(weights), padding=padding).clamp(min=0))
    return outputs


REFERENCES = {
    "vgg16": lambda x, w: vgg(x, w, lambda y: F.max_pool2d(y, 2)),
    "st_vgg16": lambda x, w: vgg(x, w, lambda y: blurred(F.max_pool2d(y, 2, 1))),
    "alexnet": lambda x, w: alex(
        x,
        w,
        lambda y: F.max_pool2d(y, 3, 2),
        lambda y, weight, bias: F.conv2d(y, weight, bias, stride=4, padding=2),
    ),
    "st_alexnet": lambda x, w: alex(
        x,
        w,
        lambda y: blurred(F.max_pool2d(y, 3, 1)),
        lambda y, weight, bias: blurred(F.conv2d(y, weight, bias, padding=2)),
    ),
}


def test_every_trunk_has_its_reference():
    assert set(REFERENCES) == set(CONVS) == set(TRUNKS)


@pytest.mark.parametrize("name", TRUNKS)
def test_equals_the_network_written_out(name):
    trunk, x = TRUNKS[name](), torch.randn(2, 3, 40, 37)
    state = trunk.state_dict()
    keys = [f"features.{n}.{kind}" for n in CONVS[name] for kind in ("weight", "bias")]
    assert [key for key in state if not key.endswith(".filt")] == keys
    weights = iter([(state[w], state[b]) for w, b in zip(keys[::2], keys[1::2], strict=True)])
    with torch.no_grad():
        found, expected = trunk(x), REFERENCES[name](x, weights)
    assert [y.shape[1] for y in found] == trunk.dims
    for ours, theirs in zip(found, expected, strict=True):
        assert theirs.std() > 0
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", TRUNKS)
def test_the_smallest_frame_is_the_smallest(name):
    trunk = TRUNKS[name]()
    with torch.no_grad():
        assert all(y.numel() for y in trunk(torch.zeros(1, 3, trunk.min_size, trunk.min_size)))
        with pytest.raises(RuntimeError):
            trunk(torch.zeros(1, 3, trunk.min_size, trunk.min_size - 1))


@pytest.mark.parametrize("name", ["vgg16", "alexnet"])
def test_torchvision_has_the_same_names_and_numbers(name):
    models = pytest.importorskip("torchvision.models", exc_type=(ImportError, RuntimeError))
    with torch.device("meta"):
        theirs = getattr(models, name)(weights=None).features
    ours = TRUNKS[name]()
    expected = {f"features.{key}": value.shape for key, value in theirs.state_dict().items()}
    assert {key: value.shape for key, value in ours.state_dict().items()} == expected
    theirs.to_empty(device="cpu").load_state_dict(ours.features.state_dict())
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        # Theirs has one pooling more at its end.
        expected = nn.Sequential(*list(theirs)[: ours.taps[-1] + 1])(x)
        torch.testing.assert_close(ours(x)[-1], expected)


def test_blurring_keeps_what_is_flat_and_knows_no_other_channel():
    flat = torch.tensor([2.0, -3.0])[None, :, None, None].expand(1, 2, 7, 6)
    found = PaddedBlurPool(2)(flat)
    torch.testing.assert_close(found, flat[..., :5, :4])
