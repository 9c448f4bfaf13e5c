import dataclasses
import json

import pytest
import torch

from magvit2_pytorch import VideoTokenizer
from magvit2_pytorch.quantizers import QUANTIZERS as REGISTERED_QUANTIZERS
from magvit2_pytorch.quantizers import build_quantizer
from magvit2_pytorch.tokenizer.layer_spec import LAYERS, parse_layer
from magvit2_pytorch.tokenizer.presets import PRESETS, preset
from magvit2_pytorch.tokenizer.tokenizer_config import TRAINING_OPTIONS, TokenizerConfig
from tests.conftest import DIM_COND, EVERY_PRESET, QUANTIZERS, SMALL

PARAMETERS = {
    "consecutive_residual": (2,),
    "factorized_residual": (1, 2),
    "compress_space": (24,),
    "compress_time": (24,),
    "attend_time": ({"window": 3},),
    "cond_attend_time": ({"window": 3},),
}


def configs():
    """One configuration of every layer, bare and with parameters, and of every quantizer."""
    for name, spec in LAYERS.items():
        cond = dict(dim_cond=DIM_COND) if spec.conditional else {}
        for entry in (name, *((name, *p) for p in [PARAMETERS.get(name)] if p)):
            yield dict(**SMALL, **cond, codebook_size=2**6, layers=("residual", entry))
    for quantizer in QUANTIZERS.values():
        yield dict(**SMALL, **quantizer)


@pytest.mark.parametrize("options", [*configs(), *map(preset, PRESETS)])
def test_json_and_back_is_the_same(options):
    config = TokenizerConfig.from_dict(options)
    assert TokenizerConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert config.to_dict() == json.loads(json.dumps(config.to_dict()))


def test_every_registered_quantizer_can_be_asked_for():
    configs = [TokenizerConfig(**options) for options in QUANTIZERS.values()]
    assert {c.quantizer_options["name"] for c in configs} == set(REGISTERED_QUANTIZERS)


@pytest.mark.parametrize("options", QUANTIZERS.values(), ids=QUANTIZERS)
def test_short_options_are_those_of_the_quantizer(options):
    short = TokenizerConfig(**options)
    full = TokenizerConfig(quantizer=short.quantizer_options)
    assert full.quantizer_options == short.quantizer_options
    assert TokenizerConfig.from_dict(json.loads(json.dumps(full.to_dict()))) == full
    with torch.device("meta"):
        one, other = (build_quantizer(**config.quantizer_options) for config in (short, full))
    assert type(one) is type(other)
    assert one.latent_dim == other.latent_dim


def test_an_option_reaches_the_quantizer():
    options = dict(codebook_size=64, lfq_soft_clamp_input_value=2.0, lfq_bit_order="lsb")
    quantizer = VideoTokenizer(**options).quantizer
    assert (quantizer.soft_clamp_input_value, quantizer.bit_order) == (2.0, "lsb")
    grouped = dict(name="lfq", codebook_size=64, entropy_groups=3)
    assert VideoTokenizer(quantizer=grouped).quantizer.entropy_groups == 3


def test_parameters_reach_the_layer():
    assert parse_layer(("compress_space", 24)).dim_out == 24
    assert parse_layer(("attend_time", {"window": 3})).window == 3
    assert parse_layer("compress_space").dim_out is None


def test_lists_become_tuples():
    config = TokenizerConfig.from_dict(
        dict(
            codebook_size=64,
            image_size=[16, 32],
            patch_size=[1, 2],
            input_conv_kernel_size=[3, 5, 5],
            layers=[["compress_space", 24], ["residual"], ["attend_time", {"window": 3}]],
        )
    )
    assert config.image_size == (16, 32)
    assert config.patch_size == (1, 2)
    assert config.input_conv_kernel_size == (3, 5, 5)
    assert config.layers == (("compress_space", 24), "residual", ("attend_time", {"window": 3}))


MODELS = [pytest.param(preset(param.values[0]), marks=param.marks) for param in EVERY_PRESET]


@pytest.mark.parametrize("options", [*configs(), *MODELS])
def test_a_model_and_its_config_say_the_same(options):
    with torch.device("meta"):  # presets are large
        tokenizer = VideoTokenizer(**options)
        again = VideoTokenizer.from_config(tokenizer.config)
    assert again.config == tokenizer.config
    shapes = [{k: v.shape for k, v in t.state_dict().items()} for t in (tokenizer, again)]
    assert shapes[0] == shapes[1]


def test_it_is_frozen():
    config = TokenizerConfig(codebook_size=64)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.init_dim = 3


@pytest.mark.parametrize("name", TRAINING_OPTIONS)
def test_training_options_say_where_they_live(name):
    with pytest.raises(ValueError, match=rf"'{name}' is not an option of the tokenizer") as error:
        VideoTokenizer(codebook_size=64, **{name: 1})
    assert str(error.value).endswith(TRAINING_OPTIONS[name])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(codebook_sise=64), "did you mean codebook_size"),
        (dict(), "no quantizer chosen.*codebook_size.*use_fsq.*continuous_dim"),
        (dict(codebook_size=64, continuous_dim=4), "choose one"),
        (dict(codebook_size=63), "63 is not a power of two.*32 or 64"),
        (dict(use_fsq=True), r"fsq_levels, e\.g\."),
        (dict(codebook_size=64, fsq_levels=(8, 8)), "fsq_levels has no effect"),
        (dict(use_fsq=True, fsq_levels=(2, 8)), "3 to 1000"),
        (dict(codebook_size=64, use_kl=True), "continuous_dim"),
        (dict(codebook_size=64, channels=2), r"1 \(grey\), 3 \(RGB\) or 4"),
        (dict(codebook_size=64, dim_cond=4), "no layer is conditional"),
        (dict(codebook_size=64, layers=("cond_residual",)), "'cond_residual' needs.*dim_cond"),
        (dict(codebook_size=64, layers=("compres_space",)), "did you mean 'compress_space'"),
        (dict(codebook_size=64, layers=(("compress_space", 0),)), "0 is not a positive integer"),
        (
            dict(codebook_size=64, layers=(("compress_space", "x"),)),
            "'x' is not a positive integer",
        ),
        (
            dict(codebook_size=64, layers=(("consecutive_residual", -1),)),
            "-1 is not a positive integer",
        ),
        (dict(codebook_size=64, max_dim=12.5), "max_dim is 12.5: give a whole number"),
        (dict(codebook_size=64, layers=(("residual", 3),)), "parameters of 'residual' are: none"),
        (dict(codebook_size=64, layers=(("attend_time", {"wide": 3}),)), "are: window"),
        (dict(codebook_size=64, layers=((3, 4),)), "is not a layer: write"),
        (dict(codebook_size=64, image_size=18, layers=("compress_space",) * 2), "stride of 4"),
        (
            dict(codebook_size=64, layers=("compress_time",), decoder_layers=("compress_space",)),
            "layers compress 2 x 1 x 1 and decoder_layers 1 x 2 x 2: they must compress alike",
        ),
        (
            dict(codebook_size=64, separate_first_frame_encoding=True, repeat_first_frame=True),
            "separate_first_frame_encoding needs a first latent of one frame",
        ),
        (
            dict(codebook_size=64, patch_size=(2, 2), repeat_first_frame=True),
            r"patch_size=\(2, 2\) needs a first latent of one frame",
        ),
        (dict(codebook_size=64, image_size=(16, 17), patch_size=4), r"\(16, 17\) .* stride of 4"),
        (dict(codebook_size=64, image_size=(16, 16, 16)), r"one number or \(height, width\)"),
        (dict(codebook_size=64, patch_size=(4, 4, 4)), r"pixels to a side, or \(frames, pixels\)"),
        (dict(codebook_size=64, patch_size=0), "patch_size 0"),
        (dict(codebook_size=64, init_dim=0), "init_dim is 0: give a whole number, 1 or more"),
        (dict(codebook_size=64, layers="residual"), r"layers is 'residual': give a tuple"),
        (dict(codebook_size=64, pad_mode="zeros"), "pad_mode 'zeros': use one of"),
        (dict(codebook_size=64, residual_conv_kernel_size=2), "must be odd"),
        (dict(codebook_size=64, input_conv_kernel_size=(3, 3)), r"size \(3, 3\): give one"),
        (dict(codebook_size=64, attn_dim_head=6, layers=("attend_time",)), "multiple of 4"),
        (dict(codebook_size=64, layers=(("attend_time", 0),)), "0 is not a positive integer"),
        (dict(codebook_size=64, lfq_norm="batch"), "use 'layer', 'rms' or None"),
        (dict(continuous_dim=4, num_codebooks=2), "continuous latents have no codes"),
        (
            dict(quantizer=dict(name="fsqq", levels=(5, 5))),
            "no quantizer 'fsqq': did you mean 'fsq'",
        ),
        (dict(quantizer=dict(name="fsq", level=(5, 5))), "no option 'level': did you mean levels"),
        (dict(quantizer=dict(levels=(5, 5))), "give a name too, one of .*'fsq'"),
        (dict(quantizer=dict(name="fsq", levels=(5, 5)), codebook_size=25), "choose one"),
        (dict(quantizer=dict(name="fsq", levels=(5, 5)), num_codebooks=2), "among those of"),
        (dict(quantizer=dict(name="fsq", levels=(5, 5)), vq_type="vq"), "no other quantizer"),
    ],
)
def test_mistakes_are_named_where_they_are_made(options, words, without_type_checks):
    with pytest.raises(ValueError, match=words):
        VideoTokenizer(**options)


def test_infinite_max_dim_of_other_implementations_means_none():
    assert TokenizerConfig(codebook_size=64, max_dim=float("inf")).max_dim is None


def test_max_dim_bounds_the_channels():
    config = TokenizerConfig(
        codebook_size=64, init_dim=8, max_dim=24, layers=("compress_space",) * 3
    )
    assert [grid.dim for grid in config.grids] == [8, 16, 24, 24]
