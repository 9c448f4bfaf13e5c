"""Super-resolution: it starts as bicubic, is causal, and streams and tiles equal the whole."""

import pytest
import torch
from torch import nn

from magvit2_pytorch import SuperResolution
from magvit2_pytorch.super_resolution import SR_PRESETS
from magvit2_pytorch.tokenizer.layer_spec import LAYERS, Grid, LayerOptions
from magvit2_pytorch.tokenizer.tiling import peak_bytes
from tests.conftest import random_video


def keeps_size(spec):
    grid = spec.after(Grid(8), LayerOptions())
    return grid.time * grid.space == 1 and not (spec.conditional or spec.reads_latents)


SAME_SIZE = [name for name in LAYERS if keeps_size(LAYERS[name]())]


def trained(**options):
    """A small network in float64 whose residual depends clearly on all it sees."""
    torch.manual_seed(0)
    options = dict(dim=32, layers=(("factorized_residual", 2),)) | options
    model = SuperResolution(**options).double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    return model


def cubic(frame, scale):
    """Bicubic enlargement of `h w` written down again: four taps an axis, edges repeated."""

    def weight(x):
        x, a = abs(x), -0.75
        if x < 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0

    def matrix(size):
        rows = torch.zeros(size * scale, size, dtype=torch.float64)
        for out in range(size * scale):
            centre = (out + 0.5) / scale - 0.5
            for tap in range(int(centre // 1) - 1, int(centre // 1) + 3):
                rows[out, min(max(tap, 0), size - 1)] += weight(centre - tap)
        return rows

    return matrix(frame.shape[0]) @ frame @ matrix(frame.shape[1]).T


@pytest.mark.parametrize("name", SR_PRESETS)
@pytest.mark.parametrize("num_frames", [1, 3])
def test_it_starts_as_bicubic_at_exact_sizes(name, num_frames):
    model = SuperResolution.from_preset(name)
    video = random_video(num_frames, (5, 11)).double()
    out = model(video.float()).double()
    scale = int(name[1])
    assert out.shape == (1, 3, num_frames, 5 * scale, 11 * scale)
    for channel in range(3):
        wanted = cubic(video[0, channel, -1], scale)
        torch.testing.assert_close(out[0, channel, -1], wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", SR_PRESETS)
def test_a_preset_trains_with_its_recipe(name):
    from magvit2_pytorch.training.super_resolution_task import SuperResolutionTrainingConfig

    config = SuperResolutionTrainingConfig(**SR_PRESETS.training(name))
    model = SuperResolution.from_preset(name)
    parameters = sum(p.numel() for p in model.parameters())
    text = SR_PRESETS[name].read_text(encoding="utf-8")
    assert f"{parameters / 1e6:.2f} M parameters" in text
    assert config.crop % (8 * model.scale) == config.short_side % (8 * model.scale) == 0


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("scale", [2, 4])
def test_constant_colours_stay_at_the_start(scale, channels):
    model = SuperResolution(scale=scale, channels=channels, dim=8)
    colour = torch.linspace(-0.9, 0.7, channels).view(1, channels, 1, 1, 1)
    out = model(colour.expand(1, channels, 2, 3, 7))
    torch.testing.assert_close(out, colour.expand_as(out), atol=1e-6, rtol=0)


@pytest.mark.parametrize("layer", SAME_SIZE)
def test_no_frame_depends_on_later_ones(layer):
    model = trained(layers=(layer,))
    video = random_video(4, (6, 8)).double()
    out = model(video)
    changed = video.clone()
    changed[:, :, 2:] = 0.3
    assert torch.equal(model(changed)[:, :, :2], out[:, :, :2])
    assert not torch.equal(model(changed)[:, :, 2:], out[:, :, 2:])


@pytest.mark.parametrize("layer", SAME_SIZE)
@pytest.mark.parametrize("tile_size", [None, 5])
def test_streams_and_tiles_equal_the_whole(layer, tile_size):
    model = trained(layers=(layer, "factorized_residual"), scale=4 if layer == "residual" else 2)
    video = random_video(5, (11, 17)).double()
    stream = model.stream(tile_size=tile_size)
    parts = [stream.push(part) for part in video.split((1, 1, 3), dim=2)]
    torch.testing.assert_close(torch.cat(parts, dim=2), model(video), atol=1e-9, rtol=0)
    torch.testing.assert_close(model(video, tile_size), model(video), atol=1e-9, rtol=0)


@pytest.mark.parametrize("scale", [2, 4])
def test_patches_keep_any_size_causality_streams_and_tiles(scale):
    model = trained(patch_size=4, scale=scale, layers=("factorized_residual",))
    video = random_video(4, (11, 17)).double()
    whole = model(video)
    assert whole.shape == (1, 3, 4, 11 * scale, 17 * scale)
    stream = model.stream(tile_size=8)
    parts = [stream.push(part) for part in video.split((1, 3), dim=2)]
    torch.testing.assert_close(torch.cat(parts, dim=2), whole, atol=1e-9, rtol=0)
    torch.testing.assert_close(model(video, 4), whole, atol=1e-9, rtol=0)
    later = video.clone()
    later[:, :, 2:] = 0.3
    assert torch.equal(model(later)[:, :, :2], whole[:, :, :2])
    with pytest.raises(ValueError, match="tile_size 6 is not a multiple of 4"):
        model(video, 6)


def test_auto_takes_tiles_that_fit(monkeypatch):
    model = trained(layers=())
    video = random_video(1, (12, 8)).double()
    bytes_of_tile = peak_bytes(model, model.network, (1, 3, 1, 5, 5))
    monkeypatch.setattr("magvit2_pytorch.tokenizer.tiling.free_memory", lambda _: 2 * bytes_of_tile)
    stream = model.stream(tile_size="auto")
    torch.testing.assert_close(stream.push(video), model(video), atol=1e-9, rtol=0)
    assert stream.tile_size == 5


@pytest.mark.parametrize("pad_mode", ["constant", "replicate", "reflect", "first_frame"])
def test_tiles_of_one_pixel_have_the_edges_of_the_whole(pad_mode):
    # Bicubic taps reach further than this network alone would.
    model = trained(layers=(), kernel_size=1, pad_mode=pad_mode)
    video = random_video(2, (5, 4)).double()
    torch.testing.assert_close(model(video, 1), model(video), atol=1e-12, rtol=0)


def test_an_image_is_a_video_of_one_frame():
    model = trained(channels=1)
    image = torch.rand(2, 1, 6, 9, dtype=torch.float64)
    assert model(image).shape == (2, 1, 12, 18)
    assert torch.equal(model(image), model(image[:, :, None])[:, :, 0])


def test_saved_and_loaded_it_is_the_same(tmp_path):
    model = trained(layers=("residual", ("factorized_residual", 1)), norm="group").float()
    model.save_pretrained(tmp_path)
    loaded = SuperResolution.from_pretrained(tmp_path)
    assert loaded.config == model.config
    video = random_video(2, (6, 6))
    assert torch.equal(loaded(video), model(video))


def test_a_stream_keeps_a_past_of_constant_size():
    model = trained()
    stream = model.stream()

    def held():
        pasts = torch.utils._pytree.tree_leaves(stream.past)
        return sum(x.untyped_storage().nbytes() for x in pasts)

    sizes = [held() for _ in range(4) if stream.push(random_video(3, (8, 8)).double()) is not None]
    assert len(set(sizes)) == 1
    # Two frames for each convolution over time: the first of the network and one of each unit.
    assert sizes[0] == 8 * 8 * 2 * (3 + 2 * 32) * 8


def test_the_memory_of_tiles_does_not_grow_with_the_frame():
    model = SuperResolution.from_preset("x2-tiny")
    whole = peak_bytes(model, model.network, (1, 3, 1, 256, 256))
    assert whole > 10 * peak_bytes(model, model.network, (1, 3, 1, 64, 64))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (dict(scale=3), "scale is 3"),
        (dict(channels=2), "channels is 2"),
        (dict(dim=0), "dim is 0"),
        (dict(layers=("compress_space",)), "keep the size"),
        (dict(layers=("cond_residual",)), "need frames only"),
        (dict(layers=("magvit2_decoder_residual",)), "need frames only"),
        (dict(widht=3), "widht"),
    ],
)
def test_wrong_options(options, text):
    with pytest.raises(ValueError, match=text):
        SuperResolution(**options)


def test_wrong_input():
    model = SuperResolution.from_preset("x2-tiny")
    with pytest.raises(ValueError, match="this model has 3"):
        model(torch.zeros(1, 1, 1, 4, 4))
    with pytest.raises(ValueError, match="not a multiple of 1"):
        model(torch.zeros(1, 3, 1, 4, 4), tile_size=0)
    stream = model.stream()
    stream.push(random_video(1, (4, 4)))
    with pytest.raises(ValueError, match="frames of one size"):
        stream.push(random_video(1, (4, 6)))
