import dataclasses
import json

import pytest

from magvit2_pytorch import VideoTokenizer
from magvit2_pytorch.tokenizer.config import TRAINING_OPTIONS, TokenizerConfig
from magvit2_pytorch.tokenizer.layer_spec import LAYERS, parse_layer
from magvit2_pytorch.tokenizer.presets import PRESETS, preset
from tests.conftest import DIM_COND, QUANTIZERS, SMALL

PARAMETERS = {
    "consecutive_residual": (2,),
    "factorized_residual": (1, 2),
    "compress_space": (24,),
    "compress_time": (24,),
    "attend_time": ({"window": 3},),
    "cond_attend_time": ({"window": 3},),
}


def configs():
    """One configuration of every layer, bare and with parameters, quantizer and preset."""
    for name, spec in LAYERS.items():
        cond = dict(dim_cond=DIM_COND) if spec.conditional else {}
        for entry in (name, (name, *PARAMETERS.get(name, ()))):
            yield dict(**SMALL, **cond, codebook_size=2**6, layers=("residual", entry))
    for quantizer in QUANTIZERS.values():
        yield dict(**SMALL, **quantizer)
    for name in PRESETS:
        yield preset(name)


@pytest.mark.parametrize("options", list(configs()))
def test_json_and_back_is_the_same(options):
    config = TokenizerConfig.from_dict(options)
    assert TokenizerConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert config.to_dict() == json.loads(json.dumps(config.to_dict()))


def test_parameters_reach_the_layer():
    assert parse_layer(("compress_space", 24)).dim_out == 24
    assert parse_layer(("attend_time", {"window": 3})).window == 3
    assert parse_layer("compress_space").dim_out is None


def test_it_is_frozen():
    config = TokenizerConfig(codebook_size=64)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.init_dim = 3


@pytest.mark.parametrize("name", TRAINING_OPTIONS)
def test_training_options_say_where_they_live(name):
    with pytest.raises(ValueError, match=rf"'{name}' is no option of the tokenizer: .+") as error:
        VideoTokenizer(codebook_size=64, **{name: 1})
    assert str(error.value).endswith(TRAINING_OPTIONS[name])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(codebook_sise=64), "did you mean codebook_size"),
        (dict(), "no quantizer chosen.*codebook_size.*use_fsq.*continuous_dim"),
        (dict(codebook_size=64, continuous_dim=4), "choose one"),
        (dict(codebook_size=63), "63 is no power of two.*32 or 64"),
        (dict(use_fsq=True), r"fsq_levels, e\.g\."),
        (dict(codebook_size=64, fsq_levels=(8, 8)), "fsq_levels without use_fsq"),
        (dict(use_fsq=True, fsq_levels=(2, 8)), "3 to 1000"),
        (dict(codebook_size=64, use_kl=True), "continuous_dim"),
        (dict(codebook_size=64, channels=2), r"1 \(grey\), 3 \(RGB\) or 4"),
        (dict(codebook_size=64, dim_cond=4), "no layer is conditional"),
        (dict(codebook_size=64, layers=("cond_residual",)), "'cond_residual' needs.*dim_cond"),
        (dict(codebook_size=64, layers=("compres_space",)), "did you mean 'compress_space'"),
        (dict(codebook_size=64, layers=(("residual", 3),)), "parameters of 'residual' are: none"),
        (dict(codebook_size=64, layers=(("attend_time", {"wide": 3}),)), "are: window"),
        (dict(codebook_size=64, layers=((3, 4),)), "is no layer: write"),
        (dict(codebook_size=64, image_size=18, layers=("compress_space",) * 2), "stride of 4"),
    ],
)
def test_mistakes_are_named_where_they_are_made(options, words):
    with pytest.raises(ValueError, match=words):
        VideoTokenizer(**options)


def test_infinite_max_dim_of_other_implementations_means_none():
    assert TokenizerConfig(codebook_size=64, max_dim=float("inf")).max_dim is None


def test_max_dim_bounds_the_channels():
    config = TokenizerConfig(
        codebook_size=64, init_dim=8, max_dim=24, layers=("compress_space",) * 3
    )
    assert [grid.dim for grid in config.grids] == [8, 16, 24, 24]
