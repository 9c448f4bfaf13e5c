"""Laws that hold for every layer a user can name, alone and among others."""

from itertools import cycle, pairwise, product
from typing import get_args

import pytest
import torch

from magvit2_pytorch.layers.conv import PadMode
from magvit2_pytorch.layers.stateful import Chain
from magvit2_pytorch.tokenizer.layer_spec import LAYERS, Grid, LayerOptions, parse_layer
from magvit2_pytorch.types import Context
from tests.conftest import build, cond_of, layer_params, random_video

EVERY_LAYER = sorted(LAYERS)
NUMBERS = [
    ("consecutive_residual", 2),
    ("factorized_residual", 2, 1),
    ("compress_space", 12),
    ("compress_time", 12),
]
"""Slow: more units or channels of a layer that stands in LAYERS without them."""
PARAMETERS = [
    ("factorized_residual", {"group_width": 4}),
    ("attend_time", {"window": 2}),
    ("cond_attend_time", 2),
]


def layers_with(*others):
    """Parameters of a test over all layers, each with values of `others`."""
    names = EVERY_LAYER + PARAMETERS
    yield from layer_params(names, *others)
    for values in zip(NUMBERS, *others, strict=False):
        yield pytest.param(*values, marks=pytest.mark.slow)


every_layer = pytest.mark.parametrize("layer", list(layers_with()), ids=str)
VARIANTS = [pytest.param(layer, marks=pytest.mark.slow) for layer in PARAMETERS + NUMBERS]
every_plain_layer = pytest.mark.parametrize(
    "layer", [*layer_params(EVERY_LAYER), *VARIANTS], ids=str
)
"""Of laws of types, memory and sizes alone, for which parameters are no other way."""


def around(layer):
    """The layer amid changes of time and space, so that every kind of past is in play."""
    return "compress_space", layer, "compress_time", layer, "compress_time"


def reach(function, x, cond):
    """How far each output frame moves (o) when input frame i is negated: a matrix `i o`.

    Both runs hold a row for every input frame, for rounding may differ between rows of a batch.
    """
    num_frames = x.shape[2]
    same = x.expand(num_frames, -1, -1, -1, -1)
    flipped = same.clone()
    for frame in range(num_frames):
        flipped[frame, :, frame].neg_()
    cond = cond if cond is None else cond.expand(num_frames, -1)
    return (function(flipped, cond) - function(same, cond)).abs().amax(dim=(1, 3, 4))


@torch.no_grad()
@every_layer
def test_latents_depend_on_the_past_and_the_present_exactly(layer):
    tokenizer = build(*around(layer), "attend_time")
    factor = tokenizer.time_factor
    moved = reach(tokenizer.encode, random_video(1 + 2 * factor), cond_of(tokenizer))
    for frame in range(len(moved)):
        first = -(-frame // factor)
        assert moved[frame, :first].eq(0).all(), f"frame {frame} reached a latent before {first}"
        assert moved[frame, first] > 0, f"frame {frame} does not reach latent {first}"


@torch.no_grad()
@every_layer
def test_frames_depend_on_the_past_and_the_present_exactly(layer):
    tokenizer = build(*around(layer), "attend_time")
    factor = tokenizer.time_factor
    latents = torch.randn(1, tokenizer.quantizer.quantized_dim, 4, 2, 2)
    moved = reach(tokenizer.decode, latents, cond_of(tokenizer))
    for latent in range(len(moved)):
        first = max(1, 1 + (latent - 1) * factor - tokenizer.look_ahead) if latent else 0
        assert moved[latent, :first].eq(0).all(), f"latent {latent} reached frames before {first}"
        assert moved[latent, first] > 0, f"latent {latent} does not reach frame {first}"


@every_layer
def test_chunks_equal_the_whole(layer):
    """Chunks in latent frames: the first holds one frame, and `time_factor` for each more."""
    tokenizer = build(*around(layer)).double()
    cond, factor, ahead = cond_of(tokenizer), tokenizer.time_factor, tokenizer.look_ahead
    video = random_video(1 + 3 * factor, dtype=torch.float64)
    whole = tokenizer.encode(video, cond)
    recon = tokenizer.decode(whole, cond)
    for chunks in ((1, 2, 1), (3, 1)):
        sizes = [1 + (chunks[0] - 1) * factor] + [n * factor for n in chunks[1:]]
        past, parts = None, []
        for frames in video.split(sizes, dim=2):
            latents, past = tokenizer.encode_chunk(frames, past, cond)
            parts.append(latents)
        torch.testing.assert_close(torch.cat(parts, dim=2), whole, atol=1e-10, rtol=0)

        # The end of a stream may come without latents.
        past, parts, pieces = None, [], whole.split((*chunks, *[0] * (chunks == (3, 1))), dim=2)
        for number, latents in enumerate(pieces, 1):
            last = number == len(pieces)
            frames, past = tokenizer.decode_chunk(latents, past, cond, last=last)
            parts.append(frames)
            if not last:
                num_final = sum(part.shape[2] for part in parts)
                assert num_final == max(1, 1 + (sum(chunks[:number]) - 1) * factor - ahead)
        torch.testing.assert_close(torch.cat(parts, dim=2), recon, atol=1e-10, rtol=0)


# Modes take turns; `test_conv` tries each on every shape of kernel and stride.
PADDED = list(layers_with(cycle(get_args(PadMode))))


@torch.no_grad()
@pytest.mark.parametrize(("layer", "pad_mode"), PADDED, ids=str)
def test_an_image_is_the_first_frame_of_a_video(layer, pad_mode):
    tokenizer = build(*around(layer), pad_mode=pad_mode).double()
    cond = cond_of(tokenizer)
    video = random_video(1 + tokenizer.time_factor, dtype=torch.float64)
    image = video[:, :, 0]
    latents = tokenizer.encode(image, cond)
    torch.testing.assert_close(latents, tokenizer.encode(image[:, :, None], cond), atol=0, rtol=0)
    torch.testing.assert_close(latents, tokenizer.encode(video, cond)[:, :, :1], atol=1e-10, rtol=0)
    frame = tokenizer.decode(latents, cond)
    assert frame.shape == image[:, :, None].shape
    whole = tokenizer.decode(tokenizer.encode(video, cond), cond)
    torch.testing.assert_close(frame, whole[:, :, :1], atol=1e-10, rtol=0)


@pytest.mark.parametrize("layer", [*EVERY_LAYER, *VARIANTS], ids=str)
def test_every_parameter_gets_a_gradient(layer):
    tokenizer = build(*around(layer), quantizer="lfq-several").train()
    video, cond = random_video(1 + tokenizer.time_factor, batch=2), cond_of(tokenizer, 2)
    optimizer = torch.optim.SGD(tokenizer.parameters(), lr=1.0)
    for _ in range(2):  # a layer that starts at zero passes gradients on from the second step
        optimizer.zero_grad()
        (tokenizer(video, cond) - video).square().mean().backward()
        optimizer.step()
    for name, parameter in tokenizer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


@torch.no_grad()
@every_plain_layer
def test_bf16_is_finite_and_close(layer):
    tokenizer = build(*around(layer))
    video, cond = random_video(1 + tokenizer.time_factor), cond_of(tokenizer)
    latents = tokenizer.encode(video, cond)
    with torch.autocast("cpu", torch.bfloat16):
        low = tokenizer.encode(video, cond).float()
    assert low.isfinite().all()
    assert (low - latents).norm() / latents.norm() < 0.05


@torch.no_grad()
@pytest.mark.parametrize("layer", EVERY_LAYER)
def test_a_first_latent_of_many_frames_suits_a_layer_or_is_refused(layer):
    """Copies of the first frame change nothing but the first latent's own frames."""
    layers = ("compress_space", layer, "vidtok_compress_time_linear", "vidtok_compress_time")
    layers = tuple(name for name in layers if not LAYERS[layer].one_frame_start or name == layer)
    if LAYERS[layer].one_frame_start:
        with pytest.raises(ValueError, match=f"repeat_first_frame: {layer} needs a first latent"):
            build(*layers, repeat_first_frame=True)
        return
    tokenizer = build(*layers, repeat_first_frame=True).double()
    cond, factor = cond_of(tokenizer), tokenizer.time_factor
    video = random_video(1 + 2 * factor, dtype=torch.float64)
    latents, recon = tokenizer.encode(video, cond), tokenizer(video, cond)
    assert latents.shape[2] == 3
    assert recon.shape == video.shape
    close = dict(atol=1e-10, rtol=0)
    # Frames of their own instead of copies, which the model without the option puts nowhere.
    filled = torch.cat((video[:, :, :1].expand(-1, -1, factor - 1, -1, -1), video), dim=2)
    layers = [tokenizer.encoder.layers[0].layers[1], *tokenizer.encoder.layers[1:]]
    context = Context(cond=tokenizer._embed("encoder", cond), last=True)
    inner, _ = Chain(layers)(filled, None, context)
    torch.testing.assert_close(inner, latents, **close)
    first, past = tokenizer.encode_chunk(video[:, :, :1], None, cond)
    rest, _ = tokenizer.encode_chunk(video[:, :, 1:], past, cond)
    torch.testing.assert_close(torch.cat((first, rest), dim=2), latents, **close)
    torch.testing.assert_close(tokenizer(video[:, :, :1], cond), recon[:, :, :1], **close)


AHEAD = [name for name in EVERY_LAYER if parse_layer(name).look_ahead(Grid(8))]
READING = [name for name in EVERY_LAYER if parse_layer(name).reads_latents]


def chains():
    """Few tuples of layers in which each layer follows each other one and itself."""
    grid, options = Grid(8), LayerOptions()
    rest = [name for name in EVERY_LAYER if name not in AHEAD]
    plain = [name for name in rest if parse_layer(name).after(grid, options) == grid]
    steps = [name for name in rest if name not in plain]
    for layer in AHEAD:
        yield (layer, layer)
        yield from ((layer, name) if name in READING else (layer, name, layer) for name in rest)
    for number, layer in enumerate(plain):
        # To each of those that come later in the list, and back.
        yield (layer, *(name for other in plain[number:] + steps for name in (other, layer)))
    # Of those that shrink the grid not many fit into one network.
    for number, layer in enumerate(steps):
        yield (layer, layer)
        yield from ((layer, other, layer) for other in steps[number + 1 :])


CHAINS = list(chains())


def test_the_chains_hold_every_pair():
    pairs = {pair for chain in CHAINS for pair in pairwise(chain)}
    assert pairs == set(product(EVERY_LAYER, repeat=2)) - set(product(READING, AHEAD))


@pytest.mark.parametrize(("reading", "ahead"), product(READING, AHEAD))
def test_what_reads_latents_cannot_follow_a_delay(reading, ahead):
    with pytest.raises(ValueError, match=f"'{reading}' reads the latents of its frames, which"):
        build(reading, "residual", ahead)


@torch.no_grad()
@pytest.mark.parametrize("layers", CHAINS, ids=lambda layers: f"{layers[0]}-{layers[1]}")
def test_any_two_layers_go_together(layers):
    """With values: without them, on the meta device, it takes twice the time."""
    tokenizer = build(*layers, max_dim=16)
    video = random_video(1 + tokenizer.time_factor)
    recon = tokenizer(video, cond_of(tokenizer))
    assert recon.shape == video.shape
    assert recon.isfinite().all()


@torch.no_grad()
@every_plain_layer
def test_channels_stay_last_in_memory(layer):
    """Convolutions run fastest so, and a layout lost on the way is a copy at each of them."""
    tokenizer = build(*around(layer))
    inputs = []  # large ones: PyTorch has another kernel for small inputs

    def keep(module, args):
        inputs.append(args[0])

    for module in tokenizer.modules():
        if isinstance(module, torch.nn.Conv3d):
            module.register_forward_pre_hook(keep)
    tokenizer(random_video(9, (32, 32), batch=2), cond_of(tokenizer, 2))
    assert inputs
    for x in inputs:
        assert x.stride(1) == 1, (x.shape, x.stride())


@pytest.mark.parametrize(
    ("layer", "norm"), layer_params(EVERY_LAYER, cycle(["layer", "group"])), ids=str
)
def test_a_batch_of_nothing_gives_nothing(layer, norm):
    """Whole, in a stream, in tiles and with gradients."""
    tokenizer = build(*around(layer), norm=norm, norm_groups=4)
    factor, cond = tokenizer.time_factor, cond_of(tokenizer, batch=0)
    nothing = random_video(1 + factor, batch=0)
    codes = tokenizer.tokenize(nothing, cond)
    assert codes.shape == (0, *tokenizer.code_shape(1 + factor, 16, 16))
    assert tokenizer.decode_from_code_indices(codes, cond).shape == nothing.shape
    assert tokenizer.encode(nothing, cond, tile_size=8).shape[0] == 0
    encoder, decoder = tokenizer.encode_stream(cond), tokenizer.decode_stream(cond)
    parts = [decoder.push(encoder.push(chunk)) for chunk in (nothing, nothing[:, :, 1:])]
    assert encoder.flush() is None
    # A decoder that looks ahead gives its last frames at the end.
    parts = [part for part in (*parts, decoder.flush()) if part is not None]
    assert sum(part.shape[2] for part in parts) == 1 + 2 * factor
    assert {part[:, :, :1].shape for part in parts} == {nothing[:, :, :1].shape}
    tokenizer.train()(nothing, cond).sum().backward()
    assert all(not p.grad.any() for p in tokenizer.parameters() if p.grad is not None)


@every_plain_layer
def test_meta_tensors_give_shapes(layer):
    tokenizer = build(*around(layer)).to("meta")
    video = random_video(1 + tokenizer.time_factor, batch=2).to("meta")
    cond = cond_of(tokenizer, batch=2)
    cond = None if cond is None else cond.to("meta")
    codes = tokenizer.tokenize(video, cond)
    assert codes.shape == (2, *tokenizer.code_shape(1 + tokenizer.time_factor, 16, 16))
    assert tokenizer.decode_from_code_indices(codes, cond).shape == video.shape
    assert tokenizer.encode_stream(cond).push(video).shape == codes.shape
