"""Weights of perceptual losses: what is read, what is refused, and that nothing is run."""

import builtins
import pickle
import sys
import urllib.error
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from magvit2_pytorch.losses.perceptual import build_perceptual
from magvit2_pytorch.losses.perceptual_networks import TRUNKS, load_heads, load_trunk

SLICES = {
    # LPIPS cuts a trunk after each layer that it listens to.
    name: TRUNKS[name]().taps
    for name in TRUNKS
}


@pytest.fixture(scope="module")
def trunks():
    torch.manual_seed(0)
    return {name: TRUNKS[name]() for name in TRUNKS}


def as_lpips(trunk, heads=True):
    """The names that LPIPS and ST-LPIPS give the same tensors."""
    state = {"scaling_layer.shift": torch.zeros(1, 3, 1, 1)}
    for key, value in trunk.state_dict().items():
        _, layer, kind = key.split(".")
        number = 1 + sum(int(layer) > tap for tap in SLICES[trunk.name])
        state[f"net.slice{number}.{layer}.{kind}"] = value
    if heads:
        for layer, dim in enumerate(trunk.dims):
            state[f"lin{layer}.model.1.weight"] = torch.rand(1, dim, 1, 1)
    return state


def as_torchvision(trunk):
    """Its own names, and a classifier that is no concern of ours."""
    return {**trunk.state_dict(), "classifier.0.weight": torch.zeros(2, 2)}


def assert_same(found, trunk):
    assert found.name == trunk.name
    torch.testing.assert_close(found.state_dict(), trunk.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["vgg16", "alexnet"])
@pytest.mark.parametrize("kind", ["pth", "safetensors", "nested"])
def test_torchvisions_files_are_trunks_without_heads(name, kind, trunks, tmp_path):
    state, path = as_torchvision(trunks[name]), tmp_path / f"weights.{kind}"
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": state} if kind == "nested" else state, path)
    loss = build_perceptual(path)
    assert_same(loss.trunk, trunks[name])
    assert loss.heads is None
    assert not any(p.requires_grad for p in loss.parameters())
    assert loss.name == f"{name} features"


@pytest.mark.parametrize("name", TRUNKS)
def test_lpips_files_bring_their_heads(name, trunks, tmp_path):
    state, path = as_lpips(trunks[name]), tmp_path / "weights.pth"
    torch.save(state, path)
    loss = build_perceptual(path, resize_to=32)
    assert_same(loss.trunk, trunks[name])
    for layer, head in enumerate(loss.heads):
        torch.testing.assert_close(head.data, state[f"lin{layer}.model.1.weight"].flatten())
    assert loss.name.startswith("ST-LPIPS" if name.startswith("st_") else "LPIPS")
    assert loss.resize_to == 32
    assert not any(p.requires_grad for p in loss.parameters())
    x = torch.rand(1, 3, 32, 32)
    assert loss(x, 1 - x) > 0


def test_half_precision_files_become_float32(trunks, tmp_path):
    path = tmp_path / "half.safetensors"
    save_file({k: v.half() for k, v in as_torchvision(trunks["alexnet"]).items()}, path)
    trunk, _ = load_trunk(path)
    assert {p.dtype for p in trunk.parameters()} == {torch.float32}


def test_loading_draws_no_random_number(trunks, tmp_path):
    torch.save(as_torchvision(trunks["alexnet"]), tmp_path / "a.pth")
    before = torch.get_rng_state()
    build_perceptual(tmp_path / "a.pth")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", ["vgg16", "alexnet"])
def test_heads_may_come_from_elsewhere(name, trunks, tmp_path):
    torch.save(as_torchvision(trunks[name]), tmp_path / "trunk.pth")
    heads = {k: v for k, v in as_lpips(trunks[name]).items() if k.startswith("lin")}
    save_file(heads, tmp_path / "heads.safetensors")
    loss = build_perceptual(tmp_path / "trunk.pth", tmp_path / "heads.safetensors")
    assert loss.name == f"LPIPS ({name})"
    torch.testing.assert_close(loss.heads[4].data, heads["lin4.model.1.weight"].flatten())


@pytest.mark.parametrize("name", ["vgg16", "alexnet"])
def test_torchmetrics_brings_the_heads_of_lpips(name, trunks):
    heads = load_heads("torchmetrics", trunks[name])
    assert [len(head) for head in heads] == trunks[name].dims
    assert all(head.ge(0).all() and head.sum() > 0 for head in heads)
    with pytest.raises(ValueError, match=f"no heads for st_{name}"):
        load_heads("torchmetrics", trunks[f"st_{name}"])


def test_heads_of_another_trunk_are_refused(trunks, tmp_path):
    heads = {k: v for k, v in as_lpips(trunks["alexnet"]).items() if k.startswith("lin")}
    torch.save(heads, tmp_path / "heads.pth")
    with pytest.raises(ValueError, match=r"heads\.pth contains no LPIPS heads for vgg16.*192"):
        load_heads(tmp_path / "heads.pth", trunks["vgg16"])
    del heads["lin2.model.1.weight"]
    torch.save(heads, tmp_path / "heads.pth")
    with pytest.raises(ValueError, match="no LPIPS heads for alexnet"):
        load_heads(tmp_path / "heads.pth", trunks["alexnet"])


class Exploit:
    """Unpickled, it would call `open`."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return builtins.open, (self.path, "w")


@pytest.mark.parametrize("bare", [False, True])
def test_a_pickle_with_code_is_refused_and_not_run(bare, tmp_path):
    path, trace = tmp_path / "evil.pth", tmp_path / "trace"
    if bare:
        path.write_bytes(pickle.dumps({"features.0.weight": Exploit(trace)}))
    else:
        torch.save({"features.0.weight": Exploit(trace)}, path)
    with pytest.raises(ValueError, match=r"evil\.pth was refused.*might run code"):
        build_perceptual(path)
    assert not trace.exists()
    # It is what it claims to be: whoever unpickles it, runs it.
    if bare:
        pickle.loads(path.read_bytes())["features.0.weight"].close()
        assert trace.exists()


@pytest.mark.parametrize("kind", ["pth", "safetensors"])
@pytest.mark.parametrize("content", [b"", b"not weights at all", b"PK\x03\x04" + bytes(99)])
def test_damaged_files_are_refused(kind, content, tmp_path):
    path = tmp_path / f"damaged.{kind}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"damaged\."):
        build_perceptual(path)


def test_other_archives_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "some.pth", "w") as archive:
        archive.writestr("readme", "hello")
    with pytest.raises(ValueError, match=r"some\.pth was refused"):
        build_perceptual(tmp_path / "some.pth")


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*nowhere"):
        build_perceptual(tmp_path / "nowhere.pth")


def without(state, key):
    return {k: v for k, v in state.items() if k != key}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: without(s, "features.17.weight"),
            r"not a vgg16: it lacks features\.17",
        ),
        (lambda s: s | {"features.16.weight": torch.ones(1)}, r"has features\.16\.weight too many"),
        (lambda s: s | {"features.2.bias": torch.ones(3)}, r"2\.bias is \(3,\), not \(64,\)"),
        (lambda s: s | {"features.0.weight": torch.ones(32, 3, 3, 3)}, r"is \(32, 3, 3, 3\)"),
        (lambda s: without(s, "features.0.weight"), r"features\.0\.weight is missing"),
        (lambda s: {}, r"contains no trunk"),
        (lambda s: {"conv1.weight": torch.ones(64, 3, 7, 7)}, r"contains no trunk"),
        (lambda s: {"epoch": 3}, r"no named tensors"),
        (lambda s: [1, 2], r"no named tensors"),
    ],
)
def test_wrong_files_are_refused_with_what_is_wrong(change, message, trunks, tmp_path):
    path = tmp_path / "wrong.pth"
    torch.save(change(dict(trunks["vgg16"].state_dict())), path)
    with pytest.raises(ValueError, match=message) as caught:
        build_perceptual(path)
    assert "wrong.pth" in str(caught.value)
    assert "torchvision's vgg16 or alexnet" in str(caught.value)


@pytest.mark.parametrize("error", [None, ImportError("none here"), RuntimeError("nms")])
def test_a_download_without_torchvision_says_what_else_to_do(error, monkeypatch):
    if error is None:
        monkeypatch.setitem(sys.modules, "torchvision", None)
    else:
        monkeypatch.delitem(sys.modules, "torchvision", raising=False)
        true_import = builtins.__import__

        def broken(name, *rest):
            if name == "torchvision":
                raise error
            return true_import(name, *rest)

        monkeypatch.setattr(builtins, "__import__", broken)
    with pytest.raises(ImportError, match=r"torchvision does not work here.*path of a file"):
        build_perceptual("torchvision:vgg16")


@pytest.fixture
def models(monkeypatch, tmp_path):
    models = pytest.importorskip("torchvision.models", exc_type=(ImportError, RuntimeError))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return models


def test_a_download_without_network_says_what_else_to_do(models, monkeypatch):
    def offline(*_, **__):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torch.hub, "urlopen", offline)
    with pytest.raises(ConnectionError, match=r"cannot download https.*vgg16.*path of a file"):
        build_perceptual("torchvision:vgg16")


@pytest.mark.parametrize("heads", [None, "torchmetrics"])
def test_what_torchvision_downloads_is_used(heads, models, monkeypatch, trunks):
    asked = {}

    def downloaded(weights, **options):
        asked.update(options, url=weights.url)
        return as_torchvision(trunks["alexnet"])

    monkeypatch.setattr(models.AlexNet_Weights, "get_state_dict", downloaded)
    loss = build_perceptual("torchvision:alexnet", heads)
    assert_same(loss.trunk, trunks["alexnet"])
    assert loss.name == ("alexnet features" if heads is None else "LPIPS (alexnet)")
    assert asked["weights_only"]
    assert asked["check_hash"]
    assert "alexnet" in asked["url"]


def test_other_networks_are_not_downloaded():
    with pytest.raises(ValueError, match="torchvision:resnet50 is not available: use vgg16"):
        build_perceptual("torchvision:resnet50")
