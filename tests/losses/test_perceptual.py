"""The perceptual loss on random weights: no download, no file."""

import socket

import pytest
import torch
from torch.nn import functional as F

from magvit2_pytorch.losses.perceptual import PerceptualLoss
from magvit2_pytorch.losses.perceptual_networks import TRUNKS, FeatureTrunk
from magvit2_pytorch.media.frames import as_channels, to_float


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("this test went to the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def small_trunk():
    """Two layers of a few channels, smooth, so that differences can be taken."""
    layers = [torch.nn.Conv2d(3, 4, 3), torch.nn.Softplus(), torch.nn.Conv2d(4, 5, 3)]
    return FeatureTrunk("small", layers, taps=(1, 2), min_size=5)


def heads_for(trunk):
    return [torch.rand(dim) for dim in trunk.dims]


def built(name, **options):
    """A trunk of random weights that keep the size of what passes, as training's do."""
    trunk = TRUNKS[name]()
    for module in trunk.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
    return PerceptualLoss(trunk, **options)


def smooth_video(size=40, frames=2, channels=3):
    """Blobs, in [-1, 1]: noise would have no detail for a blur to take away slowly."""
    coarse = torch.rand(1, channels, frames, 6, 6) * 2 - 1
    return F.interpolate(coarse, (frames, size, size), mode="trilinear")


@pytest.mark.parametrize("with_heads", [False, True])
def test_closed_form(with_heads):
    trunk = small_trunk()
    heads = heads_for(trunk) if with_heads else None
    loss = PerceptualLoss(trunk, heads).double()
    recon, real = (torch.rand(2, 3, 7, 8, dtype=torch.float64) * 2 - 1 for _ in range(2))
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1).double()
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1).double()
    expected = 0
    features = [trunk((x * 0.5 + 0.5 - mean) / std) for x in (recon, real)]
    for layer, (a, b) in enumerate(zip(*features, strict=True)):
        a, b = (y / y.pow(2).sum(1, keepdim=True).add(1e-8).sqrt() for y in (a, b))
        weight = heads[layer].double() if with_heads else torch.ones(a.shape[1]).double()
        expected += torch.einsum("nchw,c->nhw", (a - b) ** 2, weight).mean()
    torch.testing.assert_close(loss(recon, real), expected, rtol=1e-6, atol=0)


def test_gradient_by_finite_differences():
    trunk = small_trunk()
    loss = PerceptualLoss(trunk, heads_for(trunk)).double()
    recon, real = (torch.rand(1, 3, 6, 5, dtype=torch.float64) * 2 - 1 for _ in range(2))
    assert torch.autograd.gradcheck(lambda x: loss(x, real), recon.requires_grad_())


@pytest.mark.parametrize("name", ["vgg16", "alexnet"])
def test_torchmetrics_says_the_same(name):
    pytest.importorskip("torchvision", exc_type=(ImportError, RuntimeError))
    from torchmetrics.functional.image.lpips import _LPIPS

    theirs = _LPIPS(
        pretrained=True, net=name.removesuffix("16").removesuffix("net"), pnet_rand=True
    )
    trunk = TRUNKS[name]()
    keys = (key.split(".", 1)[1] for key in theirs.net.state_dict())
    state = zip(keys, theirs.net.state_dict().values(), strict=True)
    trunk.load_state_dict({f"features.{key}": value for key, value in state})
    weights = [lin.model[-1].weight for lin in theirs.lins]
    recon, real = (torch.rand(2, 3, 48, 40) * 2 - 1 for _ in range(2))
    for with_heads in (True, False):
        if not with_heads:
            for weight in weights:
                weight.fill_(1)
        heads = [weight.flatten() for weight in weights] if with_heads else None
        expected = theirs(recon, real).mean()
        assert expected > 0
        torch.testing.assert_close(PerceptualLoss(trunk, heads)(recon, real), expected)


@pytest.mark.parametrize("name", TRUNKS)
def test_what_is_equal_has_no_distance_and_noise_and_blur_have_the_more(name):
    loss, real = built(name), smooth_video()
    assert loss(real, real) == 0
    noise = torch.randn_like(real)
    noisy = [float(loss(real + amount * noise, real)) for amount in (0.02, 0.1, 0.5)]
    assert 0 < noisy[0] < noisy[1] < noisy[2]

    def blur(times):
        x = real[:, :, 0]
        for _ in range(times):
            x = F.avg_pool2d(F.pad(x, (2, 2, 2, 2), mode="replicate"), 5, stride=1)
        return float(loss(x, real[:, :, 0]))

    assert 0 < blur(1) < blur(3) < blur(9)


def test_a_video_is_the_mean_of_its_frames():
    loss = built("alexnet")
    recon, real = smooth_video(frames=3), smooth_video(frames=3)
    frames = [loss(recon[:, :, i], real[:, :, i]) for i in range(3)]
    torch.testing.assert_close(loss(recon, real), sum(frames) / 3)
    assert frames[0] != frames[1]


def test_only_recon_gets_a_gradient_and_nothing_is_trained():
    loss = built("alexnet")
    recon, real = (smooth_video().requires_grad_() for _ in range(2))
    loss(recon, real).backward()
    assert recon.grad.isfinite().all()
    assert recon.grad.ne(0).any()
    assert real.grad is None
    assert not any(p.requires_grad for p in loss.parameters())
    assert all(p.grad is None for p in loss.parameters())


def test_a_flat_picture_has_a_finite_gradient():
    """Where relus are silent the feature is 0, whose length has no derivative."""
    trunk = TRUNKS["alexnet"]()
    with torch.no_grad():
        for parameter in trunk.parameters():
            parameter.zero_()
    recon = smooth_video().requires_grad_()
    loss = PerceptualLoss(trunk)(recon, smooth_video())
    loss.backward()
    assert loss == 0
    assert recon.grad.isfinite().all()


def test_it_stays_frozen_and_in_eval_mode():
    loss = built("alexnet").train()
    assert not loss.training
    assert not any(module.training for module in loss.modules())


def test_grey_is_its_own_rgb():
    loss = built("alexnet")
    recon, real = smooth_video(channels=1), smooth_video(channels=1)
    rgb = [x.expand(-1, 3, -1, -1, -1) for x in (recon, real)]
    torch.testing.assert_close(loss(recon, real), loss(*rgb))


def test_opacity_is_laid_over_black_as_the_package_does_elsewhere():
    trunk, size = small_trunk(), (6, 6, 4)
    loss = PerceptualLoss(trunk)
    bytes_of = [torch.randint(256, size, dtype=torch.uint8) for _ in range(2)]
    with_opacity = [to_float(x)[None] for x in bytes_of]
    over_black = [to_float(torch.from_numpy(as_channels(x.numpy(), 3)))[None] for x in bytes_of]
    # Bytes are rounded once more on the second way.
    torch.testing.assert_close(loss(*with_opacity), loss(*over_black), rtol=0.02, atol=0)
    opaque = [torch.cat((x, torch.ones_like(x[:, :1])), dim=1) for x in over_black]
    torch.testing.assert_close(loss(*opaque), loss(*over_black))


def test_autocast_changes_the_trunk_and_not_the_distance():
    loss = built("vgg16")
    recon, real = smooth_video().requires_grad_(), smooth_video()
    exact = loss(recon, real)
    with torch.autocast("cpu", torch.bfloat16):
        found = loss(recon, real)
    assert found.dtype == torch.float32
    assert found != exact
    torch.testing.assert_close(found, exact, rtol=0.05, atol=0)
    found.backward()
    assert recon.grad.dtype == torch.float32
    assert recon.grad.isfinite().all()
    assert all(p.dtype == torch.float32 for p in loss.parameters())
    half = loss(recon.detach().bfloat16(), real.bfloat16())
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, exact, rtol=0.05, atol=0)


@pytest.mark.parametrize(("before", "after"), [((32, 24), (64, 48)), ((72, 96), (48, 64))])
def test_resize_to_brings_the_shorter_edge_to_size(before, after):
    plain = built("alexnet")
    resized = PerceptualLoss(plain.trunk, resize_to=48)
    recon, real = (torch.rand(1, 3, *before) * 2 - 1 for _ in range(2))
    fitting = [F.interpolate(x, after, mode="bilinear", antialias=True) for x in (recon, real)]
    torch.testing.assert_close(resized(recon, real), plain(*fitting), rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", TRUNKS)
def test_frames_too_small_are_refused_with_advice(name):
    loss = built(name)
    size = loss.trunk.min_size
    tiny = torch.zeros(1, 3, size, size - 1)
    with pytest.raises(ValueError, match=f"{size}x{size - 1} are too small for {name}.*resize_to"):
        loss(tiny, tiny)
    assert PerceptualLoss(loss.trunk, resize_to=32)(tiny, tiny) == 0


def test_mistakes_are_told(without_type_checks):
    trunk = small_trunk()
    loss = PerceptualLoss(trunk)
    with pytest.raises(ValueError, match="differ"):
        loss(torch.zeros(2, 3, 8, 8), torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match="2 channels"):
        loss(torch.zeros(1, 2, 8, 8), torch.zeros(1, 2, 8, 8))
    with pytest.raises(ValueError, match=r"\[4, 4\] weights, but small has \[4, 5\]"):
        PerceptualLoss(trunk, [torch.ones(4), torch.ones(4)])
    with pytest.raises(ValueError, match="resize_to is 3: small needs 5"):
        PerceptualLoss(trunk, resize_to=3)


@pytest.mark.parametrize(
    ("name", "without_heads", "with_heads"),
    [
        ("vgg16", "vgg16 features", "LPIPS (vgg16)"),
        ("alexnet", "alexnet features", "LPIPS (alexnet)"),
        ("st_vgg16", "st_vgg16 features", "ST-LPIPS (vgg16)"),
        ("st_alexnet", "st_alexnet features", "ST-LPIPS (alexnet)"),
    ],
)
def test_the_name_tells_the_score(name, without_heads, with_heads):
    trunk = TRUNKS[name]()
    assert PerceptualLoss(trunk).name == without_heads
    assert PerceptualLoss(trunk, heads_for(trunk)).name == with_heads
