"""A discriminator saved and loaded is the same."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from magvit2_pytorch.discriminators.discriminator import DISCRIMINATORS, build_discriminator
from magvit2_pytorch.discriminators.models import load_discriminator, save_discriminator

OPTIONS = [
    ("frame", dict()),
    ("frame", dict(num_frames=3, head="patch", channels=1)),
    ("frame", dict(head="fixed", input_size=(16, 24), blur_taps=1)),
    ("frame", dict(detail_taps=5)),
    ("video", dict(dim_mults=(2, 1, 3), block_order="paper")),
    ("video", dict(num_frames=4, stride=2, head="patch", blur_taps=4, channels=4)),
    ("video", dict(head="fixed", input_size=(9, 16, 24), dim_mults=(1, 1))),
    ("multiscale", dict()),
    ("multiscale", dict(scales=((2, 1), (3, 4)), head="patch", block_order="paper")),
]


def test_all_are_tried():
    assert {name for name, _ in OPTIONS} == set(DISCRIMINATORS)


@pytest.mark.parametrize(("name", "options"), OPTIONS)
def test_saved_and_loaded_is_the_same(name, options, tmp_path):
    path = tmp_path / "discriminator.safetensors"
    discriminator = build_discriminator(name, **{"dim": 4, "dim_mults": (1, 2), **options})
    save_discriminator(discriminator, path)
    loaded = load_discriminator(str(path))
    assert type(loaded) is type(discriminator)
    assert not loaded.training
    video = torch.rand(2, discriminator.channels, 9, 16, 24)
    picks = [d.pick(video, torch.Generator().manual_seed(1)) for d in (discriminator, loaded)]
    for ours, theirs in zip(*picks, strict=True):
        assert torch.equal(ours, theirs)
    said = [d(d.views(video, picks[0])) for d in (discriminator, loaded)]
    for ours, theirs in zip(said[0].logits, said[1].logits, strict=True):
        assert torch.equal(ours, theirs)
    assert loaded.options == discriminator.options


def saved(tmp_path):
    path = tmp_path / "discriminator.safetensors"
    save_discriminator(build_discriminator("frame", dim=4), path)
    return path


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"discriminator": "no json"}])
def test_a_file_that_does_not_say_what_it_is(metadata, tmp_path):
    path = saved(tmp_path)
    save_file(load_file(path), path, metadata=metadata)
    with pytest.raises(ValueError, match="no options of a discriminator in its header"):
        load_discriminator(path)


def test_options_that_nobody_has(tmp_path):
    path = saved(tmp_path)
    for options in (dict(name="frame", dimm=3), dict(name="frames")):
        save_file(load_file(path), path, metadata={"discriminator": json.dumps(options)})
        with pytest.raises(ValueError, match="did you mean"):
            load_discriminator(path)


def test_weights_of_another_discriminator(tmp_path):
    path = saved(tmp_path)
    options = {"discriminator": json.dumps(dict(name="frame", dim=4))}
    save_file({"network.stem.bias": torch.ones(5)}, path, metadata=options)
    with pytest.raises(ValueError, match=r"does not match its own options: it lacks .*\(5,\), not"):
        load_discriminator(path)


def test_a_damaged_file(tmp_path):
    path = saved(tmp_path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="is damaged"):
        load_discriminator(path)
    with pytest.raises(FileNotFoundError, match="give a file that save_discriminator wrote"):
        load_discriminator(tmp_path / "none.safetensors")
