import math
import re

import pytest
import torch

from magvit2_pytorch import VideoTokenizer
from magvit2_pytorch.tokenizer.presets import PRESETS, magvit2_options
from magvit2_pytorch.training.recipes import RECIPES, recipe
from magvit2_pytorch.training.training_config import TrainingConfig
from tests.conftest import random_video

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
}
PUBLISHED = {
    "magvit2": (144_865_426, 225_682_051),
    "o2": (148_848_914, 230_997_891),
    "o2-image": (49_751_570, 65_376_387),
}
"""Parameters of encoder and decoder, as counted in O2-MAGVIT2's modules."""


def count(module):
    return sum(p.numel() for p in module.parameters())


def weightless(name, **options):
    """Large ones take neither memory nor time."""
    with torch.device("meta"):
        return VideoTokenizer.from_preset(name, **options).eval()


@pytest.mark.parametrize("name", PRESETS)
def test_it_compresses_as_its_docstring_says(name):
    tokenizer = weightless(name)
    time, space, bits = FACTORS[name]
    assert (tokenizer.time_factor, tokenizer.space_factor) == (time, space)
    said = PRESETS[name].__doc__
    assert f"{time} x {space} x {space}" in said
    if bits is None:
        assert tokenizer.bits_per_pixel is None
        assert f"{tokenizer.config.continuous_dim} continuous channels" in said
    else:
        assert tokenizer.bits_per_pixel == bits / (time * space**2)
        assert f"{round(bits, 2):g} bits" in said
    size = tokenizer.config.image_size
    video = random_video(1 + time, (size, size)).to("meta")
    assert tokenizer(video).shape == video.shape


@pytest.mark.parametrize("name", PRESETS)
def test_it_has_the_parameters_that_its_docstring_says(name):
    said = re.findall(r"([\d.]+) M parameters", PRESETS[name].__doc__)
    for millions in said:
        assert float(millions) == pytest.approx(count(weightless(name)) / 1e6, abs=0.051)
    assert said or name == "tiny"


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


def test_a_network_needs_a_step_between_any_two_levels():
    with pytest.raises(ValueError, match="one entry less than dim_mults"):
        magvit2_options(32, (1, 2), (True, True), 1)
    with pytest.raises(ValueError, match="first entry of dim_mults must be 1"):
        magvit2_options(32, (2, 2), (True,), 1)


@pytest.mark.parametrize("name", PRESETS)
def test_options_can_be_changed_and_names_are_checked(name):
    assert weightless(name, lfq_entropy_eps=0.5).config.lfq_entropy_eps == 0.5
    with pytest.raises(ValueError, match=f"did you mean '{name}'"):
        VideoTokenizer.from_preset(name + "x")


def test_a_change_does_not_reach_the_next_tokenizer():
    VideoTokenizer.from_preset("tiny", codebook_size=2**7)
    assert VideoTokenizer.from_preset("tiny").codebook_size == 2**10


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_of_presets_and_fit_them(name):
    config = TrainingConfig(**recipe(name))
    tokenizer = weightless(name)
    assert (config.num_frames - 1) % tokenizer.time_factor == 0
    recipe(name)["batch_size"] = 10_000
    assert recipe(name)["batch_size"] != 10_000


def test_an_untrained_small_decoder_starts_calm():
    tokenizer = VideoTokenizer.from_preset("small").eval()
    recon = tokenizer(random_video(5, (64, 64)))
    assert recon.isfinite().all()
    assert recon.square().mean() < 4
    assert torch.equal(tokenizer.tokenize(recon), tokenizer.tokenize(recon))
