"""Converted VidTok checkpoints give VidTok's numbers; exact streams and tiles of every variant.

`data/vidtok_*` holds two small networks of its code with random weights, and their inputs and
outputs (float32, CPU). Other configurations are compared with `tests/vidtok.py`.
"""

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from magvit2_pytorch import VideoTokenizer
from magvit2_pytorch.convert.conversion import (
    convert_checkpoint,
    read_checkpoint,
    tokenizer_from_state,
)
from magvit2_pytorch.convert.vidtok import config
from magvit2_pytorch.tokenizer.presets import PRESETS, preset
from magvit2_pytorch.tokenizer.tokenizer_config import TokenizerConfig
from tests import vidtok as theirs
from tests.conftest import random_video
from tests.vidtok import Shape

DATA = Path(__file__).parent / "data"
STORED = {"1_0": Shape(z=6, version="1.0", linear=False), "1_1": Shape(z=5)}
SMALL = Shape(8, (1, 2, 2), z=3)
NINE = dict(tempo_ds=(0, 1, 2), tempo_us=(1, 2, 3))
"""Time is halved three times: of 9 frames two latents."""
SHAPES = {
    "888": Shape(8, (1, 2, 4, 4), **NINE),
    "288 KL": Shape(8, (1, 2, 4, 4), z=4, kl=True, tempo_ds=(1,), tempo_us=(2,)),
    "41616": Shape(8, (1, 2, 2, 2, 2), z=6),
    "444": Shape(8, spatial_ds=(1, 2), spatial_us=(1, 2), version="1.0", linear=False),
    "groups": Shape(32, (1, 2, 1), group_norm=True),
    "deeper": Shape(8, (1, 3, 2), num_units=3, z=2, kl=True, linear=False),
    "1.0 linear": Shape(8, (1, 2, 2), version="1.0"),
    "other levels": Shape(8, (1, 2, 2, 1), spatial_ds=(0, 2), spatial_us=(2, 3), **NINE),
    "grey image": Shape(8, (1, 2), tempo_ds=(), tempo_us=(), channels=1),
}  # fmt: skip


def options_of(shape, levels=None):
    """What a user has to say."""
    mode = "trilinear" if shape.linear else "nearest"
    options = dict(vidtok_version=shape.version, interpolation_mode=mode)
    return options if shape.kl else options | {"levels": levels or (8,) * shape.z}


@cache
def small():
    """The tokenizer of `SMALL`, which tests leave as it is."""
    return tokenizer_from_state(theirs.made_state(SMALL), **options_of(SMALL))


def assert_close(found, right, atol=1e-4):
    torch.testing.assert_close(found, right, atol=atol, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("version", STORED)
def test_the_numbers_of_the_published_code(version):
    path, shape = DATA / f"vidtok_{version}.safetensors", STORED[version]
    right = load_file(DATA / f"vidtok_{version}_io.safetensors")
    options = dict(levels=(8,) * shape.z, vidtok_version=shape.version)
    tokenizer, state = convert_checkpoint(path, **options), load_file(path)
    assert {name: tuple(x.shape) for name, x in state.items()} == theirs.shapes(shape)
    names = ("input", "moments_or_latents", "quantized", "indices", "reconstruction")
    for num_frames in (1, 5, 17):
        video, latents, quantized, codes, recon = (right[f"{num_frames}.{name}"] for name in names)
        assert_close(tokenizer.encode(video), latents)
        assert torch.equal(tokenizer.tokenize(video), codes)
        assert_close(tokenizer.quantize(latents).quantized, quantized, atol=1e-6)
        assert_close(tokenizer.decode_from_code_indices(codes), recon)
        assert_close(theirs.encode(state, shape, video), latents)
        assert_close(theirs.decode(state, shape, quantized), recon)
        assert torch.equal(theirs.quantize(latents, options["levels"])[1], codes)


FURTHER = ("41616", "deeper", "1.0 linear")
"""Slow: their options are those of others together."""


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=[pytest.mark.slow] * (name in FURTHER)) for name in SHAPES],
)
def network(request):
    """One of the family, in float64, and its converted tokenizer."""
    shape = SHAPES[request.param]
    state = theirs.made_state(shape)
    tokenizer = tokenizer_from_state(state, **options_of(shape)).double()
    return shape, {name: tensor.double() for name, tensor in state.items()}, tokenizer


@torch.no_grad()
def test_other_networks_of_the_family(network):
    shape, state, tokenizer = network
    unused = tuple(f"decoder.up_temporal.{i}.up" for i in shape.tempo_us if i not in shape.up)
    used = sum(x.numel() for name, x in state.items() if not name.startswith(unused or "-"))
    assert sum(p.numel() for p in tokenizer.parameters()) == used
    assert (tokenizer.time_factor, tokenizer.space_factor) == (shape.factor, 2 ** len(shape.down))
    side = tokenizer.space_factor
    for num_frames in (1, 1 + 2 * shape.factor):
        size = (side, 2 * side)
        video = random_video(num_frames, size, 2, shape.channels, torch.float64)
        latents = theirs.encode(state, shape, video)
        assert_close(tokenizer.encode(video), latents, atol=1e-9)
        quantized, codes = tokenizer.quantize(latents)
        if shape.kl:
            right = latents[:, : shape.z]
        else:
            right, indices = theirs.quantize(latents, (8,) * shape.z)
            assert torch.equal(codes, indices)
        assert_close(quantized, right, atol=1e-6)
        assert_close(tokenizer.decode(quantized), theirs.decode(state, shape, quantized), atol=1e-9)


@torch.no_grad()
def test_streams_and_tiles_of_the_family_are_exact(network):
    """Random chunks; a frame that can still change is never given, and no other is held back."""
    (shape, _, tokenizer), generator = network, torch.Generator().manual_seed(1)
    factor, ahead, side = shape.factor, tokenizer.look_ahead, tokenizer.space_factor
    assert ahead == (factor - 1 if shape.linear else 0)
    video = random_video(3 + 3 * factor, (side, 2 * side), 1, shape.channels, torch.float64)
    latents = tokenizer.encode(video)
    recon = tokenizer.decode(latents[:, : shape.z], num_frames=video.shape[2])
    encoder = tokenizer.encode_stream(tile_size=side)
    found, rest = [], video
    while rest.shape[2]:
        size = int(torch.randint(1, 2 * factor + 1, (), generator=generator))
        found.append(encoder.push_quantized(rest[:, :, :size]))
        rest = rest[:, :, size:]
    found.append(encoder.flush_quantized())
    quantized = torch.cat([new.quantized for new in found if new is not None], dim=2)
    assert_close(quantized, tokenizer.quantize(latents).quantized, atol=1e-10)
    for tile_size in (None, side):
        decoder, seen, done = tokenizer.decode_stream(tile_size=tile_size), [], 0
        for piece in latents[:, : shape.z].split([1, 1, latents.shape[2] - 2], dim=2):
            seen.append(decoder.push(piece))
            done += piece.shape[2]
            assert decoder.num_frames == max(1, 1 + (done - 1) * factor - ahead)
        seen += [decoder.flush()] * (ahead > 0)
        assert_close(torch.cat(seen, dim=2)[:, :, : video.shape[2]], recon, atol=1e-10)


@pytest.mark.parametrize("name", [name for name in PRESETS if name.startswith("vidtok")])
def test_published_files_are_presets(name):
    """Of every version, by the name of the file alone."""
    options = TokenizerConfig.from_dict(preset(name))
    published = {
        "vidtok-fsq-488": ("488_262144", Shape(z=6)),
        "vidtok-fsq-888": ("888_32768_v1_1", Shape(z=5, **NINE)),
        "vidtok-fsq-41616": ("41616_262144_v1_1", Shape(z=6)),
        "vidtok-kl-488": ("488_16chn_v1_1", Shape(z=16, kl=True)),
        "vidtok-kl-288": ("288_8chn_v1_1", Shape(z=8, kl=True, tempo_ds=(1,), tempo_us=(2,))),
    }
    end, shape = published[name]
    mults = (1, 2, 4, 4, 4) if "41616" in name else (1, 2, 4, 4)
    shape = replace(shape, ch=128, mults=mults, num_units=2)
    with torch.device("meta"):
        state = {key: torch.empty(size) for key, size in theirs.shapes(shape).items()}
    file = f"checkpoints/vidtok_{'kl' if shape.kl else 'fsq'}_causal_{end}.ckpt"
    assert TokenizerConfig.from_dict(config(state, file)) == options
    if name == "vidtok-fsq-888":
        assert tokenizer_from_state(state, file).config == options


def lightning(shape=SMALL, average=(), **others):
    """A checkpoint as Lightning writes it, with averages of the tensors that begin so."""
    state = theirs.made_state(shape)
    averages = theirs.made_state(shape, seed=1)
    for name, tensor in averages.items():
        if name.startswith(tuple(average)):
            state[f"model_ema.{name.replace('.', '')}"] = tensor
    if average:
        state |= {"model_ema.decay": torch.tensor(0.999), "model_ema.num_updates": torch.tensor(7)}
        state["model_ema.losslogvar"] = torch.zeros(())
    state |= {
        "loss.logvar": torch.zeros(()),
        "loss.discriminator.main.0.weight": torch.ones(4, 3, 4, 4),
        "loss.discriminator.main.0.bias": torch.ones(4),
        "loss.perceptual_loss.lin0.model.1.weight": torch.ones(1, 8, 1, 1),
    }
    moments = {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(3)}}
    optimizers = [{"state": moments, "param_groups": [{"lr": 0.1, "params": [0]}]}]
    return {"epoch": 3, "state_dict": state | others, "optimizer_states": optimizers}


def test_a_lightning_checkpoint_and_what_is_left_of_it(tmp_path):
    path = tmp_path / "vidtok_fsq_causal_444_512_v1_1.ckpt"
    torch.save(lightning(), path)
    checkpoint = read_checkpoint(path)
    assert checkpoint.left_out == {
        "discriminator": 2,
        "perceptual loss (LPIPS)": 1,
        "other weights of the loss": 1,
        "optimizer_states": 2,
    }
    assert not checkpoint.discriminator
    video = random_video(5)
    assert torch.equal(convert_checkpoint(path)(video), small()(video))


@pytest.mark.parametrize("average", [("encoder.", "decoder."), ("decoder.",)])
def test_averages_are_taken_where_there_are_any(average, tmp_path):
    """An encoder that is not trained has none."""
    torch.save(lightning(average=average), tmp_path / "last.ckpt")
    checkpoint = read_checkpoint(tmp_path / "last.ckpt")
    names = [name for name in theirs.shapes(SMALL) if name.startswith(average)]
    assert checkpoint.left_out["weights before averaging"] == len(names)
    assert checkpoint.left_out["counters"] == 2
    assert checkpoint.left_out["averages of other modules"] == 1
    plain, averaged = theirs.made_state(SMALL), theirs.made_state(SMALL, seed=1)
    for name, tensor in checkpoint.tokenizer.items():
        assert torch.equal(tensor, (averaged if name in names else plain)[name])


def test_names_of_a_compiled_model_and_plain_tensors(tmp_path):
    state = theirs.made_state(SMALL)
    compiled = {name.replace("coder.", "coder._orig_mod."): x for name, x in state.items()}
    save_file(compiled, tmp_path / "x.safetensors")
    tokenizer = convert_checkpoint(tmp_path / "x.safetensors", **options_of(SMALL, "8, 8,8"))
    video = random_video(5)
    assert torch.equal(tokenizer(video), small()(video))


def test_what_is_saved_and_not_used_is_counted(tmp_path):
    shape = replace(SMALL, spatial_ds=(1,), spatial_us=(2,), tempo_ds=(1,))
    save_file(theirs.made_state(shape), tmp_path / "x.safetensors")
    assert read_checkpoint(tmp_path / "x.safetensors").left_out == {
        "upsampling that is not used": 3
    }
    tokenizer = convert_checkpoint(tmp_path / "x.safetensors", **options_of(shape))
    assert tokenizer.time_factor == 2


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("last", {}, "levels are not given: give the 3 .* published files 8,8,8"),
        ("last", {"levels": "8,8,8"}, "vidtok_version is None: give 1.0 or 1.1"),
        ("last", {"levels": "8,8", "vidtok_version": "1.0"}, r"levels are \(8, 8\): give the 3"),
        ("last", {"levels": "8,x,8", "vidtok_version": "1.0"}, "whole numbers with commas"),
        ("last", {"bit_order": "msb"}, "bit_order"),
        ("vidtok_fsq_causal_444_1000", {}, "levels are not given"),
        ("vidtok_fsq_noncausal_444_512", {}, "its name says noncausal: only causal"),
    ],
)
def test_what_shapes_do_not_show_is_asked_for(name, options, message, tmp_path):
    torch.save(lightning(), tmp_path / f"{name}.ckpt")
    with pytest.raises(ValueError, match=rf"cannot convert .*{name}\.ckpt: .*{message}"):
        convert_checkpoint(tmp_path / f"{name}.ckpt", **options)


def changed(shape=SMALL, drop="", **tensors):
    state = {
        name: x for name, x in theirs.made_state(shape).items() if not drop or drop not in name
    }
    return state | {name.replace("__", "."): x for name, x in tensors.items()}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (changed(encoder__conv_in__weight=torch.ones(2)), "it is a non-causal VidTok model"),
        (changed(drop="encoder.conv_in"), r"it lacks encoder\.conv_in\.conv\.weight"),
        (changed(drop="up_temporal.1.block.0.conv2"), r"lacks decoder\.up_temporal\.1\.block\.0"),
        (changed(decoder__mid__x=torch.ones(2)), r"it has decoder\.mid\.x too many"),
        (changed(decoder__norm_out__norm__bias=torch.ones(2)), r"is \(2,\), not \(8,\)"),
        (changed(encoder__conv_out__conv__weight=torch.ones(5, 16, 3, 3, 3)), "has 5 output"),
        (changed(replace(SMALL, mults=(2, 2, 2))), r"levels have \[16, 16, 16\] channels"),
        (changed(replace(SMALL, tempo_ds=(0,))), "compress alike"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_an_error(state, message):
    with pytest.raises(ValueError, match=f"cannot convert it: .*{message}"):
        tokenizer_from_state(state, "it", **options_of(SMALL))


@pytest.mark.parametrize(
    "name", ["other.x", "regularization.project_in.weight", "model_ema.encoderx"]
)
def test_tensors_of_no_known_module_are_an_error(name, tmp_path):
    torch.save(lightning(**{name: torch.ones(3)}), tmp_path / "last.ckpt")
    with pytest.raises(
        ValueError, match=r"quantizer with projections|is not a checkpoint of VidTok"
    ):
        read_checkpoint(tmp_path / "last.ckpt")


def test_a_converted_tokenizer_is_saved_whole(tmp_path):
    tokenizer, video = small(), random_video(6)
    tokenizer.save_pretrained(tmp_path)
    again = VideoTokenizer.from_pretrained(tmp_path)
    assert again.config == tokenizer.config
    assert torch.equal(again(video), tokenizer(video))
