import math
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml

from magvit2_pytorch import VideoTokenizer
from magvit2_pytorch.tokenizer.presets import (
    PRESETS,
    magvit2_options,
    preset,
    recipe,
    vidtok_options,
)
from magvit2_pytorch.tokenizer.tokenizer_config import TokenizerConfig
from magvit2_pytorch.training.training_config import TrainingConfig
from tests.conftest import EVERY_PRESET, random_video

FACTORS = {
    "small": (4, 8, math.log2(64_000)),
    "tiny": (2, 4, 10),
    "magvit2": (4, 8, 18),
    "magvit2-small": (4, 8, 18),
    "o2": (4, 16, 18),
    "o2-small": (4, 16, 18),
    "o2-image": (1, 16, 18),
    "o2-image-small": (1, 16, 18),
    "walt": (4, 8, None),
    "walt-small": (4, 8, None),
    "vidtok-fsq-488": (4, 8, 18),
    "vidtok-fsq-888": (8, 8, 15),
    "vidtok-fsq-41616": (4, 16, 18),
    "vidtok-kl-488": (4, 8, None),
    "vidtok-kl-288": (2, 8, None),
}
PUBLISHED = {
    "magvit2": (144_865_426, 225_682_051),
    "o2": (148_848_914, 230_997_891),
    "o2-image": (49_751_570, 65_376_387),
    "vidtok-fsq-488": (69_230_472, 88_221_189),
    "vidtok-fsq-888": (69_659_144, 95_285_766),
    "vidtok-fsq-41616": (89_494_152, 109_473_797),
    "vidtok-kl-488": (69_589_922, 88_359_429),
    "vidtok-kl-288": (62_290_321, 86_479_108),
}
"""Parameters of encoder and decoder, as counted in the modules of O2-MAGVIT2 and VidTok."""
FULL, REDUCED = dict(init_dim=128, num_units=4), dict(init_dim=64, num_units=2)
COMPRESS_8X = dict(dim_mults=(1, 2, 2, 4), halve_time=(False, True, True))
COMPRESS_16X = dict(dim_mults=(1, 1, 2, 2, 4), halve_time=(False, False, True, True))
IMAGE = COMPRESS_16X | dict(halve_time=(False,) * 4, kernel_size=(1, 3, 3))
NETWORKS = {"magvit2": COMPRESS_8X, "o2": COMPRESS_16X, "o2-image": IMAGE, "walt": COMPRESS_8X}
FAMILY = {
    name + suffix: network | size
    for name, network in NETWORKS.items()
    for suffix, size in (("", FULL), ("-small", REDUCED))
}
"""MAGVIT-v2's networks, as arguments of `magvit2_options`."""


def count(module):
    return sum(p.numel() for p in module.parameters())


def head(name):
    """The comment at the top of a preset's file."""
    return PRESETS[name].read_text(encoding="utf-8").partition("\n\n")[0]


@cache
def weightless(name, **options):
    """Large ones take neither memory nor time."""
    with torch.device("meta"):
        return VideoTokenizer.from_preset(name, **options).eval()


@pytest.mark.parametrize("name", PRESETS)
def test_it_compresses_as_its_file_says(name):
    tokenizer = weightless(name)
    time, space, bits = FACTORS[name]
    assert (tokenizer.time_factor, tokenizer.space_factor) == (time, space)
    said = head(name)
    assert f"{time} x {space} x {space}" in said
    if bits is None:
        assert tokenizer.bits_per_pixel is None
        assert f"{tokenizer.config.continuous_dim} continuous channels" in said
    else:
        assert tokenizer.bits_per_pixel == bits / (time * space**2)
        assert f"{round(bits, 2):g} bits" in said


@pytest.mark.parametrize("name", EVERY_PRESET)
def test_it_takes_frames_of_its_size(name):
    tokenizer = weightless(name)
    size = tokenizer.config.image_size
    video = random_video(1 + tokenizer.time_factor, (size, size)).to("meta")
    assert tokenizer(video).shape == video.shape


@pytest.mark.parametrize("name", PRESETS)
def test_it_has_the_parameters_that_its_file_says(name):
    (millions,) = re.findall(r"([\d.]+) M parameters", head(name))
    assert float(millions) == pytest.approx(count(weightless(name)) / 1e6, abs=0.051)


@pytest.mark.parametrize("name", PUBLISHED)
def test_it_has_as_many_parameters_as_the_published_network(name):
    tokenizer = weightless(name)
    assert (count(tokenizer.encoder), count(tokenizer.decoder)) == PUBLISHED[name]
    assert count(tokenizer) == sum(PUBLISHED[name])


def test_half_the_units_make_the_published_number_too():
    options = magvit2_options(128, (1, 2, 2, 4), (False, True, True), num_units=2)
    with torch.device("meta"):
        tokenizer = VideoTokenizer(**options, codebook_size=2**18)
    assert (count(tokenizer.encoder), count(tokenizer.decoder)) == (72_303_762, 153_120_387)


@pytest.mark.parametrize("name", FAMILY)
def test_the_family_is_one_network_in_two_sizes(name):
    options = preset(name)
    own = {"image_size", "continuous_dim" if "walt" in name else "codebook_size"}
    assert {n: v for n, v in options.items() if n not in own} == magvit2_options(**FAMILY[name])
    assert own < set(options)


VIDTOK = {
    "vidtok-fsq-488": dict(linear=False, repeat_start=False),
    "vidtok-fsq-888": dict(time_down=(0, 1, 2), time_up=(1, 2, 3)),
    "vidtok-fsq-41616": dict(dim_mults=(1, 2, 4, 4, 4)),
    "vidtok-kl-488": {},
    "vidtok-kl-288": dict(time_down=(1,), time_up=(2,)),
}
"""Where a network differs from the first of its family, as arguments of `vidtok_options`."""


@pytest.mark.parametrize("name", VIDTOK)
def test_vidtok_is_one_network_with_one_recipe(name):
    options = preset(name)
    quantizer = {"use_fsq", "fsq_levels", "continuous_dim", "use_kl"}
    network = {n: v for n, v in options.items() if n not in {*quantizer, "image_size"}}
    assert network == vidtok_options(128, **VIDTOK[name])
    assert recipe(name) == recipe("vidtok-fsq-488")


def test_levels_that_do_not_exist_are_refused():
    with pytest.raises(
        ValueError, match=r"levels \[0, 1, 2, 5\] of resampling must be among 0 to 2"
    ):
        vidtok_options(8, (1, 2, 2), time_up=(5,))


@pytest.mark.parametrize("name", FAMILY)
def test_the_family_has_one_recipe(name):
    kind = "frame" if "image" in name else "video"
    theirs = recipe(name)
    discriminator = theirs.pop(f"{kind}_discriminator")
    assert discriminator["dim"] == FAMILY[name]["init_dim"]
    assert theirs.pop(f"{kind}_adversarial_weight") == 0.1
    assert theirs.get("num_frames") == (None if kind == "frame" else 17)
    own = {"batch_size", "num_frames", "video_discriminator", "video_adversarial_weight"}
    shared = {n: v for n, v in recipe("magvit2").items() if n not in own}
    assert {n: v for n, v in theirs.items() if n not in own} == shared


def test_a_network_needs_a_step_between_any_two_levels():
    with pytest.raises(ValueError, match="one entry less than dim_mults"):
        magvit2_options(32, (1, 2), (True, True), 1)
    with pytest.raises(ValueError, match="first entry of dim_mults must be 1"):
        magvit2_options(32, (2, 2), (True,), 1)


@pytest.mark.parametrize("name", PRESETS)
def test_options_can_be_changed_and_names_are_checked(name):
    config = TokenizerConfig.from_dict(preset(name) | dict(lfq_entropy_eps=0.5))
    assert config.lfq_entropy_eps == 0.5
    with pytest.raises(ValueError, match=f"did you mean '{name}'"):
        VideoTokenizer.from_preset(name + "x")


def test_a_change_does_not_reach_the_next_tokenizer():
    assert VideoTokenizer.from_preset("tiny", codebook_size=2**7).codebook_size == 2**7
    assert VideoTokenizer.from_preset("tiny").codebook_size == 2**10


@pytest.mark.parametrize("name", PRESETS)
def test_recipes_fit_their_presets(name):
    config = TrainingConfig(**recipe(name))
    tokenizer = weightless(name)
    assert (config.num_frames - 1) % tokenizer.time_factor == 0
    recipe(name)["batch_size"] = 10_000
    assert recipe(name)["batch_size"] != 10_000


@pytest.mark.parametrize("name", PRESETS)
def test_a_file_holds_a_model_and_its_training(name):
    assert name.replace("-", "_").isidentifier()
    file = yaml.safe_load(PRESETS[name].read_text(encoding="utf-8"))
    assert list(file) == ["preset", "model", "training"]
    assert file["preset"] == name


def test_a_preset_without_a_recipe_trains_with_the_defaults(tmp_path, monkeypatch):
    (tmp_path / "bare.yaml").write_text("model: {codebook_size: 1024}\n", encoding="utf-8")
    monkeypatch.setitem(PRESETS._entries, "bare", tmp_path / "bare.yaml")
    assert (preset("bare"), recipe("bare")) == ({"codebook_size": 1024}, {})


def test_the_files_are_installed_with_the_package(tmp_path):
    root = Path(__file__).parents[2]
    command = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(tmp_path)]
    subprocess.run(command, cwd=root, check=True, capture_output=True)
    folder = tmp_path / "magvit2_pytorch" / "tokenizer" / "presets"
    assert sorted(path.stem for path in folder.iterdir()) == sorted(PRESETS)


def test_an_untrained_small_decoder_starts_calm():
    tokenizer = VideoTokenizer.from_preset("small").eval()
    recon = tokenizer(random_video(5, (64, 64)))
    assert recon.isfinite().all()
    assert recon.square().mean() < 4
    assert torch.equal(tokenizer.tokenize(recon), tokenizer.tokenize(recon))
