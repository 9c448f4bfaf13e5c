"""Tiles: any cut of the frame gives what the whole gives, for every layer there is."""

from itertools import cycle

import pytest
import torch
from torch import nn

from magvit2_pytorch.tokenizer.layer_spec import LAYERS
from magvit2_pytorch.tokenizer.tiling import fit_tile_size, peak_bytes
from tests.conftest import (
    EVERY_PRESET,
    QUANTIZERS,
    build,
    cond_of,
    layer_params,
    narrow,
    random_video,
)

LAYERS_TO_TRY = [*sorted(LAYERS), ("attend_time", {"window": 2})]
GRID = (5, 3)
"""Rows and columns of latents, of which 1, 2 or 4 make a tile: some do not divide."""


def with_lively_norms(tokenizer):
    """Gains and shifts as training leaves them: at their start, mistakes would not show."""
    for name, parameter in tokenizer.named_parameters():
        if "norm" in name or "gamma_beta" in name or parameter.ndim == 1:
            nn.init.normal_(parameter, mean=0.5, std=0.5)
    return tokenizer


def frames_for(tokenizer, num_frames=9, batch=1, dtype=torch.float64):
    size = tuple(side * tokenizer.space_factor for side in GRID)
    # Not the same everywhere, or a group norm would not notice whose statistics it is given.
    slope = torch.linspace(-1, 1, size[0], dtype=dtype)[:, None]
    return (random_video(num_frames, size, batch, dtype=dtype) + slope).clamp(-1, 1)


def assert_tiles_equal_whole(tokenizer, tile, num_frames=9, batch=1, close=1e-10):
    tokenizer = with_lively_norms(tokenizer.double())
    video, cond = frames_for(tokenizer, num_frames, batch), cond_of(tokenizer, batch)
    size = tile * tokenizer.space_factor
    with torch.no_grad():
        latents = tokenizer.encode(video, cond)
        tiled = tokenizer.encode(video, cond, tile_size=size)
        quantized = tokenizer.quantize(latents).quantized
        recon = tokenizer.decode(quantized, cond)
        tiled_recon = tokenizer.decode(quantized, cond, tile_size=size)
    torch.testing.assert_close(tiled, latents, atol=close, rtol=close)
    torch.testing.assert_close(tiled_recon, recon, atol=close, rtol=close)


@pytest.mark.parametrize(("layer", "tile"), layer_params(LAYERS_TO_TRY, cycle([1, 4])), ids=str)
def test_every_layer_goes_by_tiles(layer, tile):
    tokenizer = build("compress_space", layer, "compress_time", layer)
    assert_tiles_equal_whole(tokenizer, tile, num_frames=5, batch=2)


OWN_NORM = ("attend", "gateloop")
"""Layers that have a norm of their own, whatever the option `norm`."""


@pytest.mark.parametrize(
    "layer", [name for name in sorted(LAYERS) if not any(part in name for part in OWN_NORM)]
)
def test_every_layer_goes_by_tiles_with_the_statistics_of_the_whole(layer):
    options = dict(norm="group", norm_groups=4)
    tokenizer = build("compress_space", layer, "compress_time", layer, **options)
    assert_tiles_equal_whole(tokenizer, 2, num_frames=5, batch=2)


@pytest.mark.parametrize("name", EVERY_PRESET)
def test_every_preset_goes_by_tiles(name):
    assert_tiles_equal_whole(narrow(name), 2, num_frames=5)


@pytest.mark.parametrize(
    ("pad_mode", "patch", "apart", "lapped"),
    [
        ("replicate", (1, 1), True, False),
        ("replicate", (2, 4), False, True),
        ("reflect", (1, 1), False, False),
        ("reflect", (2, 4), True, False),
        ("reflect", (2, 6), True, True),
    ],
)
def test_edges_blocks_and_wide_kernels(pad_mode, patch, apart, lapped):
    tokenizer = build(
        "residual",
        "compress_space",
        "residual",
        pad_mode=pad_mode,
        patch_size=patch,
        separate_first_frame_encoding=apart,
        lapped_patches=lapped,
        image_size=24,
        input_conv_kernel_size=(3, 7, 5),
        residual_conv_kernel_size=5,
    )
    assert_tiles_equal_whole(tokenizer, 2)


def test_lapped_patches_need_a_margin_of_their_own():
    kernels = ("input", "output", "latent", "residual")
    options = {f"{name}_conv_kernel_size": 1 for name in kernels}
    tokenizer = build("residual", patch_size=4, lapped_patches=True, **options)
    assert_tiles_equal_whole(tokenizer, 1)


@pytest.mark.parametrize("tile", [1, 2])
def test_a_row_that_reads_latents_begins_with_a_whole_one(tile):
    """Attention ends the row before, where a latent has two cells to its side."""
    tokenizer = build("magvit2_compress_space", "attend_space", "compress_space")
    assert_tiles_equal_whole(tokenizer, tile)


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_codes_are_those_of_the_whole(quantizer):
    tokenizer = build("compress_space", "residual", "compress_time", quantizer=quantizer).double()
    video = frames_for(tokenizer)
    if tokenizer.codebook_size is None:
        with pytest.raises(ValueError, match="no codes"):
            tokenizer.tokenize(video, tile_size=4)
        return
    codes = tokenizer.tokenize(video)
    assert torch.equal(tokenizer.tokenize(video, tile_size=4), codes)
    torch.testing.assert_close(
        tokenizer.decode_from_code_indices(codes, tile_size=4),
        tokenizer.decode_from_code_indices(codes),
        atol=1e-10,
        rtol=0,
    )


@pytest.mark.parametrize(
    ("name", "cuts"),
    [("small", [2, 4, 3]), ("tiny", [1] * 9), ("magvit2-small", [9]), ("magvit2-small", [2, 4, 3])],
)
def test_streams_go_by_tiles(name, cuts):
    tokenizer = with_lively_norms(narrow(name).double())
    video, size = frames_for(tokenizer), 2 * tokenizer.space_factor
    whole = tokenizer.tokenize(video)
    encoder = tokenizer.encode_stream(tile_size=size)
    decoder = tokenizer.decode_stream(tile_size=size, num_frames=9)
    codes = [encoder.push(piece) for piece in video.split(cuts, dim=2)] + [encoder.flush()]
    codes = [piece for piece in codes if piece is not None]
    assert torch.equal(torch.cat(codes, dim=1), whole)
    frames = torch.cat([decoder.push(piece) for piece in codes], dim=2)
    recon = tokenizer.decode_from_code_indices(whole, num_frames=9)
    # Frames from codes are float32, though computed in float64.
    torch.testing.assert_close(frames, recon, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["small", "magvit2-small"])
def test_single_precision_is_within_rounding(name):
    tokenizer = narrow(name)
    video, size = frames_for(tokenizer, dtype=torch.float32), 2 * tokenizer.space_factor
    with torch.no_grad():
        latents = tokenizer.encode(video)
    tiled = tokenizer.encode(video, tile_size=size)
    torch.testing.assert_close(tiled, latents, atol=1e-5, rtol=1e-5)


def test_a_tile_sees_no_further_than_its_halo():
    """Else "the same as the whole" could be had by running the whole for every tile."""
    tokenizer = narrow("small")
    seen = []
    for module in tokenizer.encoder.modules():
        if isinstance(module, nn.Conv3d):
            module.register_forward_pre_hook(lambda _, x: seen.append(x[0].shape[3:].numel()))
    video = random_video(1, (256, 256))
    tokenizer.encode(video)
    whole, seen = max(seen), []
    for module in tokenizer.encoder.modules():
        module._forward_pre_hooks.clear()
        if isinstance(module, nn.Conv3d):
            module.register_forward_pre_hook(lambda _, x: seen.append(x[0].shape[3:].numel()))
    tokenizer.encode(video, tile_size=64)
    # 64 pixels and 24 on each side, in blocks of 4 x 4.
    assert max(seen) == (112 // 4) ** 2 < whole == (256 // 4) ** 2


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_auto_takes_the_largest_tile_that_fits(part):
    tokenizer = build("compress_space", "residual", "compress_time")
    factor, module = tokenizer.space_factor, getattr(tokenizer, part)
    channels = 3 if part == "encoder" else tokenizer.quantizer.quantized_dim
    cells = factor if part == "encoder" else 1
    x = torch.zeros(1, channels, 3, 5 * cells, 6 * cells)

    def bytes_of(tile):
        return peak_bytes(tokenizer, module, (*x.shape[:3], tile * cells, tile * cells))

    for tile in (1, 4):
        assert fit_tile_size(tokenizer, module, x, bytes_of(tile)) == tile * factor
        assert bytes_of(tile) < bytes_of(tile + 1)
    assert fit_tile_size(tokenizer, module, x, 2**50) == 6 * factor
    with pytest.raises(MemoryError, match="the smallest tile of this model"):
        fit_tile_size(tokenizer, module, x, bytes_of(1) - 1)


@pytest.mark.parametrize("tile_size", [0, -8, 4, 12])
def test_a_tile_is_whole_latents(tile_size):
    tokenizer = narrow("small")
    with pytest.raises(ValueError, match="is not a multiple of 8, the pixels"):
        tokenizer.encode(frames_for(tokenizer, dtype=torch.float32), tile_size=tile_size)
