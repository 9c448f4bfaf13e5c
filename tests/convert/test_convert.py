"""Checkpoints by O2-MAGVIT2's names, of many shapes, against its functions written down again."""

import builtins
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from safetensors.torch import save_file

from magvit2_pytorch import VideoTokenizer
from magvit2_pytorch.convert.conversion import (
    convert_checkpoint,
    read_checkpoint,
    split_checkpoint,
    tokenizer_from_state,
)
from magvit2_pytorch.convert.o2_magvit2 import config as read_config
from magvit2_pytorch.convert.o2_magvit2 import names
from magvit2_pytorch.convert.project import convert
from magvit2_pytorch.quantizers.lfq import convert_bit_order
from magvit2_pytorch.tokenizer.presets import preset
from magvit2_pytorch.tokenizer.tokenizer_config import TokenizerConfig
from tests.conftest import build, random_video
from tests.o2_magvit2 import RELEASE, Shape, decode, encode, made_state, mask, tokenizer_shapes

SMALL = Shape(32, (1, 1), (True,), 1, 6)
PREFIXES = ("", "tokenizer.", "module.", "module.tokenizer.")
PLAIN = (False, False)
SHAPES = [
    Shape(32, (1,), (), 1, 4),
    Shape(32, (1, 1), (False,), 1, 7, channels=1),
    Shape(32, (1, 2, 4), (False, True), 2, 8, misnamed=False),
    Shape(32, (1, 3, 2), PLAIN, 2, 12, is_video=False),
    Shape(32, (1, 2, 1, 2), (True, False, True), 2, 6),
]
FURTHER_SHAPES = [
    Shape(32, (1,), (), 3, 5, is_video=False),
    Shape(32, (1, 1), (True,), 2, 20),
    Shape(32, (1, 2, 4), (False, False), 1, 18),
    Shape(32, (1, 2, 4), (True, False), 2, 9),
    Shape(64, (1, 1, 1), (True, True), 1, 10, misnamed=False),
    Shape(32, (1, 3, 2), (False, True), 3, 11),
    Shape(64, (1, 2), (False,), 1, 13, channels=1, is_video=False, misnamed=False),
]
SHAPES += [pytest.param(shape, marks=pytest.mark.slow) for shape in FURTHER_SHAPES]


def state_of(shape=SMALL, seed=0):
    return made_state(tokenizer_shapes(shape), seed)


def input_of(shape, batch=2):
    """A small video that fits, or images."""
    side = 2 ** len(shape.mults)
    video = random_video(1 + 2 * 2 ** sum(shape.halve_time), (side, side + side // 2), batch)
    video = video[:, : shape.channels]
    return video if shape.is_video else video[:, :, 0]


@torch.no_grad()
def assert_same_functions(tokenizer, state, shape):
    """Encoder and decoder do what theirs do."""
    x = input_of(shape)
    latents = encode(state, shape, x)
    found = tokenizer.encode(x)
    torch.testing.assert_close(found.view_as(latents), latents, atol=1e-4, rtol=0)
    codes = torch.where(latents > 0, 1.0, -1.0)
    found = tokenizer.decode(codes if shape.is_video else codes[:, :, None])
    recon = decode(state, shape, codes)
    torch.testing.assert_close(found.view_as(recon), recon, atol=1e-4, rtol=0)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_any_shape_gives_its_tokenizer(shape):
    state = state_of(shape)
    tokenizer = tokenizer_from_state({**state, "quantize.mask": mask(shape.bits)})
    config = tokenizer.config
    assert (config.init_dim, config.channels) == (shape.filters, shape.channels)
    assert config.codebook_size == 2**shape.bits
    assert [grid.dim for grid in config.grids[1:-2]] == shape.widths
    times = [grid.time for grid in config.grids[1:-2]]
    assert [b == 2 * a for a, b in pairwise(times)] == list(shape.halve_time)
    assert config.space_factor == 2 ** (len(shape.mults) - 1)
    assert config.image_size == 16 * config.space_factor
    assert config.residual_conv_kernel_size == (3 if shape.is_video else (1, 3, 3))
    assert (config.lfq_entropy_eps, config.lfq_bit_order) == (1e-5, "msb")
    assert sum(p.numel() for p in tokenizer.parameters()) == sum(x.numel() for x in state.values())
    assert_same_functions(tokenizer, state, shape)


def test_what_comes_out_is_ready_to_use(tmp_path):
    before = torch.get_rng_state()
    state = state_of()
    tokenizer = tokenizer_from_state(state)
    assert torch.equal(torch.get_rng_state(), before)
    assert not tokenizer.training
    assert all(p.requires_grad and p.dtype == torch.float32 for p in tokenizer.parameters())
    convs = [p for p in tokenizer.parameters() if p.ndim == 5]
    assert all(p.is_contiguous(memory_format=torch.channels_last_3d) for p in convs)
    tokenizer.save_pretrained(tmp_path)
    video = input_of(SMALL)
    assert torch.equal(VideoTokenizer.from_pretrained(tmp_path)(video), tokenizer(video))
    for tensor in state.values():
        tensor.fill_(7)
    assert torch.equal(VideoTokenizer.from_pretrained(tmp_path)(video), tokenizer(video))


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("o2", RELEASE),
        ("o2-image", replace(RELEASE, halve_time=(False,) * 4, is_video=False)),
        ("magvit2", replace(RELEASE, mults=(1, 2, 2, 4), halve_time=(False, True, True))),
    ],
)
def test_the_release_and_its_like_are_presets(name, shape):
    with torch.device("meta"):
        state = {key: torch.empty(size) for key, size in tokenizer_shapes(shape).items()}
    found = TokenizerConfig.from_dict(read_config(state))
    assert found == TokenizerConfig.from_dict({**preset(name), "lfq_entropy_eps": 1e-5})
    tokenizer = tokenizer_from_state(state)
    assert sum(p.numel() for p in tokenizer.parameters()) == sum(x.numel() for x in state.values())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(dtype):
    state = {name: tensor.to(dtype) for name, tensor in state_of().items()}
    tokenizer = tokenizer_from_state({**state, "quantize.mask": mask(6)})
    assert_same_functions(tokenizer, {n: x.float() for n, x in state.items()}, SMALL)


def test_codes_have_the_order_of_the_mask_or_the_one_asked_for():
    state, video = state_of(), input_of(SMALL)
    msb, lsb = ({**state, "quantize.mask": mask(6, order)} for order in ("msb", "lsb"))
    codes = tokenizer_from_state(msb).tokenize(video)
    places = 2 ** torch.arange(5, -1, -1)
    bits = (tokenizer_from_state(msb).encode(video) > 0).movedim(1, -1)
    assert torch.equal(codes, (bits * places).sum(-1))
    assert torch.equal(tokenizer_from_state(state).tokenize(video), codes)
    reversed_codes = convert_bit_order(codes, 6)
    assert not torch.equal(reversed_codes, codes)
    assert torch.equal(tokenizer_from_state(lsb).tokenize(video), reversed_codes)
    asked = tokenizer_from_state(msb, bit_order="lsb")
    assert torch.equal(asked.tokenize(video), reversed_codes)
    assert torch.equal(tokenizer_from_state(lsb, bit_order="msb").tokenize(video), codes)
    torch.testing.assert_close(
        asked.decode_from_code_indices(reversed_codes),
        tokenizer_from_state(msb).decode_from_code_indices(codes),
    )


@pytest.mark.parametrize(
    "wrong", [mask(6) + 1, mask(5), mask(6) * 2, mask(6).roll(1), torch.zeros(6, dtype=torch.long)]
)
def test_another_mask_is_an_error(wrong):
    with pytest.raises(ValueError, match=r"its quantize\.mask is \[.*powers of two below 2\^6"):
        tokenizer_from_state({**state_of(), "quantize.mask": wrong})


@pytest.mark.parametrize("prefix", PREFIXES)
def test_all_writers_prefixes(prefix):
    state = {**state_of(), "quantize.mask": mask(6)}
    root = prefix.removesuffix("tokenizer.")
    found = split_checkpoint(
        {
            **{f"{prefix}{name}": tensor for name, tensor in state.items()},
            f"{root}discriminator.conv_in.bias": torch.ones(3),
            f"{root}perceptual_model.features.0.bias": torch.ones(3),
            "num_updates": torch.tensor(5),
            "initted": torch.tensor([True]),
        },
        "it",
    )
    assert found.tokenizer.keys() == state.keys()
    assert all(found.tokenizer[name] is state[name] for name in state)
    assert list(found.discriminator) == ["conv_in.bias"]
    assert found.left_out == {"counters": 2, "perceptual_model": 1}


@pytest.mark.parametrize("prefix", PREFIXES[1:])
def test_a_file_of_two_models_is_not_half_read(prefix):
    state = {**state_of(), **{f"{prefix}{name}": x for name, x in state_of().items()}}
    with pytest.raises(ValueError, match=rf"has {prefix}decoder.* and \d+ more too many"):
        tokenizer_from_state(split_checkpoint(state, "it").tokenizer, "it")


def test_a_name_outside_of_the_prefix_is_an_error():
    state = {f"tokenizer.{name}": x for name, x in state_of().items()}
    state["optimizer.step_size"] = torch.ones(3)
    with pytest.raises(ValueError, match=r"of O2-MAGVIT2: it has optimizer\.step_size, which"):
        split_checkpoint(state, "it")


def save_bin(state, path):
    torch.save(state, path)


def save_wrapped(state, path):
    torch.save({"state_dict": state, "epoch": 3, "note": "text"}, path)


def save_legacy(state, path):
    torch.save(state, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize(
    ("save", "name"),
    [
        (save_file, "model.safetensors"),
        (save_bin, "pytorch_model.bin"),
        (save_wrapped, "iter_5.ckpt"),
        (save_legacy, "iter_5_ema.ckpt"),
    ],
)
def test_files_of_all_kinds(save, name, tmp_path):
    state = {**state_of(), "quantize.mask": mask(6)}
    save(state, tmp_path / name)
    places = [tmp_path / name, str(tmp_path / name)]
    if not name.endswith("ckpt"):
        places.append(tmp_path)  # the folder of a checkpoint
    for place in places:
        assert_same_functions(convert_checkpoint(place), state, SMALL)


def test_of_two_files_in_a_folder_the_one_without_a_pickle_is_read(tmp_path):
    torch.save(state_of(seed=1), tmp_path / "pytorch_model.bin")
    save_file(state_of(seed=2), tmp_path / "model.safetensors")
    assert_same_functions(convert_checkpoint(tmp_path), state_of(seed=2), SMALL)


@pytest.mark.parametrize("name", ["none.bin", "folder"])
def test_a_file_or_folder_that_is_not_there(name, tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(FileNotFoundError, match="give a checkpoint of O2-MAGVIT2"):
        convert_checkpoint(tmp_path / name)


def test_every_tensor_is_missed():
    whole = state_of(replace(SMALL, mults=(1, 2)))
    tokenizer = tokenizer_from_state(whole)
    network = torch.nn.ModuleDict({"encoder": tokenizer.encoder, "decoder": tokenizer.decoder})

    def convert_state(state):
        assert read_config(state) == read_config(whole)
        return convert(state, names(state), network)

    assert convert_state(whole).keys() == network.state_dict().keys()
    for key in whole:
        with pytest.raises(ValueError, match=r"^its? ") as caught:
            convert_state({name: tensor for name, tensor in whole.items() if name != key})
        stem = key.rpartition(".")[0].removesuffix(".conv")
        assert stem in str(caught.value) or "residual units" in str(caught.value)


def changed(shape=SMALL, drop="", **tensors):
    """A state dict with some tensors more, others, or less; `__` stands for a dot."""
    state = {name: x for name, x in state_of(shape).items() if not drop or drop not in name}
    return state | {name.replace("__", "."): x for name, x in tensors.items()}


UP = "decoder__conv_upsample_blocks__conv_upsample_0__conv1__conv__weight"


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (changed(quantize__codebook=torch.ones(2)), r"it has quantize\.codebook too many"),
        (changed(encoder__res_blocks__x=torch.ones(2)), r"it has encoder\.res_blocks\.x too many"),
        (
            changed(encoder__final_norm__norm_fn__bias=torch.ones(33)),
            r"it encoder\.final_norm\.norm_fn\.bias is \(33,\), not \(32,\)",
        ),
        (
            changed(decoder__cond_norm_layers__cond_norm_1__beta__weight=torch.ones(32, 7)),
            r"cond_norm_1\.beta\.weight is \(32, 7\), not \(32, 6\)",
        ),
        (
            changed(decoder__conv_last__conv__weight=torch.ones(3, 32, 1, 1, 1)),
            r"conv_last\.conv\.weight is \(3, 32, 1, 1, 1\), not \(3, 32, 3, 3, 3\)",
        ),
        (
            changed(encoder__conv_first__conv__bias=torch.ones(32, dtype=torch.long)),
            r"floating-point numbers, but encoder\.conv_first\.conv\.bias is torch\.int64",
        ),
        (
            changed(**{UP: torch.ones(96, 32, 3, 3, 3)}),
            r"has 96 output channels for 32 input channels: 4 times",
        ),
        (
            changed(**{UP: torch.ones(512, 32, 3, 3, 3)}),
            r"has 512 output channels for 32 input channels: 4 times",
        ),
        (changed(**{UP: torch.ones(3)}), r"has shape \(3,\), which is not"),
        (changed(Shape(32, (2, 2), (True,))), r"levels have \[64, 64\] .* convolution's 32"),
        (changed(Shape(48, (1, 2), (True,))), r"levels have \[48, 96\] .* multiples of 32"),
        (changed(Shape(channels=2)), "channels is 2"),
        (changed(drop="res_block_pre"), "encoder has 1 residual units per level and its decoder 0"),
        (
            changed(Shape(num_units=3), drop="res_block_0_2"),
            r"it lacks decoder\.res_blocks\.res_block_0\.res_block_0_2.* and \d+ more",
        ),
    ],
)
def test_what_does_not_fit_is_an_error(state, message, without_type_checks):
    with pytest.raises(ValueError, match=f"cannot convert it: .*{message}"):
        tokenizer_from_state(state, "it")


@pytest.mark.parametrize(
    ("names", "looks_like"),
    [
        (["encoder.conv_in.weight", "encoder.mid.block_1.norm1.weight"], "latent diffusion"),
        (["encoder.down.0.block.0.conv1.weight", "encoder.mid_block.0.conv1.weight"], "Open-MAGV"),
        (["first_stage_model.encoder.mid.block_1.norm1.weight"], "latent diffusion"),
        (["encoder.down_blocks.0.resnets.0.conv1.weight"], "autoencoder of diffusers"),
        (["conv_in.conv.weight", "encoder_layers.0.fn.0.conv.weight"], "magvit2-pytorch"),
        (list(build("residual").state_dict()), "tokenizer of this library"),
        (["features.0.weight"], None),
    ],
)
def test_checkpoints_of_other_projects_are_named(names, looks_like, tmp_path):
    save_file({name: torch.ones(1) for name in names}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"other\.safetensors is not a checkpoint of O2") as caught:
        convert_checkpoint(tmp_path / "other.safetensors")
    assert ("but looks like" in str(caught.value)) == (looks_like is not None)
    assert (looks_like or "") in str(caught.value)
    assert "give a checkpoint of O2-MAGVIT2" in str(caught.value)


class Exploit:
    """Unpickled, it would call `open`."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return builtins.open, (self.path, "w")


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path):
    torch.save({**state_of(), "config": Exploit(tmp_path / "trace")}, tmp_path / "iter_5.ckpt")
    with pytest.raises(ValueError, match=r"iter_5\.ckpt was refused: it contains \w*\.open beside"):
        read_checkpoint(tmp_path / "iter_5.ckpt")
    assert not (tmp_path / "trace").exists()
