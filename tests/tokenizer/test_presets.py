import re

import pytest
import torch

from magvit2_pytorch import VideoTokenizer
from magvit2_pytorch.tokenizer.presets import PRESETS
from magvit2_pytorch.training.config import TrainingConfig
from magvit2_pytorch.training.recipes import RECIPES, recipe
from tests.conftest import random_video

FACTORS = {"small": (4, 8, 16), "tiny": (2, 4, 10)}


@pytest.mark.parametrize("name", PRESETS)
def test_it_compresses_as_its_docstring_says(name):
    tokenizer = VideoTokenizer.from_preset(name).eval()
    time, space, bits = FACTORS[name]
    assert (tokenizer.time_factor, tokenizer.space_factor) == (time, space)
    assert tokenizer.bits_per_pixel == bits / (time * space**2)
    said = PRESETS[name].__doc__
    assert f"{time} x {space} x {space}" in said
    assert f"{bits} bits" in said
    size = tokenizer.config.image_size
    video = random_video(1 + time, (size, size))
    assert tokenizer(video).shape == video.shape


@pytest.mark.parametrize("name", PRESETS)
def test_it_has_the_parameters_that_its_docstring_says(name):
    count = sum(p.numel() for p in VideoTokenizer.from_preset(name).parameters())
    for millions in re.findall(r"([\d.]+) M parameters", PRESETS[name].__doc__):
        assert float(millions) == pytest.approx(count / 1e6, rel=0.02)


@pytest.mark.parametrize("name", PRESETS)
def test_options_can_be_changed_and_names_are_checked(name):
    tokenizer = VideoTokenizer.from_preset(name, codebook_size=2**7)
    assert tokenizer.codebook_size == 128
    with pytest.raises(ValueError, match=f"did you mean '{name}'"):
        VideoTokenizer.from_preset(name + "x")


def test_a_change_does_not_reach_the_next_tokenizer():
    VideoTokenizer.from_preset("tiny", codebook_size=2**7)
    assert VideoTokenizer.from_preset("tiny").codebook_size == 2**10


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_of_presets_and_fit_them(name):
    config = TrainingConfig(**recipe(name))
    tokenizer = VideoTokenizer.from_preset(name)
    assert (config.num_frames - 1) % tokenizer.time_factor == 0
    recipe(name)["batch_size"] = 10_000
    assert recipe(name)["batch_size"] != 10_000


def test_an_untrained_small_decoder_starts_calm():
    tokenizer = VideoTokenizer.from_preset("small").eval()
    recon = tokenizer(random_video(5, (64, 64)))
    assert recon.isfinite().all()
    assert recon.square().mean() < 4
    assert torch.equal(tokenizer.tokenize(recon), tokenizer.tokenize(recon))
