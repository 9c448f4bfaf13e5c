"""Bits per pixel against the papers' figures."""

import pytest

from magvit2_pytorch.metrics.codebook import bits_per_pixel, compression_ratio


def test_18_bits_to_4x8x8_is_magvit2s_rate_for_long_video():
    # 18 / (4 * 8 * 8) = 0.0703; the first frame's own latent makes a short clip dearer.
    assert bits_per_pixel(18.0, (250, 16, 16), (1000, 128, 128)) == pytest.approx(0.0703125)
    assert bits_per_pixel(18.0, (5, 16, 16), (17, 128, 128)) == pytest.approx(0.0703125 * 20 / 17)


def test_an_image_costs_its_latents():
    assert bits_per_pixel(18.0, (1, 16, 16), (1, 256, 256)) == pytest.approx(18 / 256)


def test_ratio_is_against_24_bits():
    assert compression_ratio(0.0703125) == pytest.approx(341.33, abs=0.01)
    assert compression_ratio(1.0, channels=1) == 8
    assert compression_ratio(1.0, bits_per_channel=10) == 30


@pytest.mark.parametrize("grid", [(1, 16), (0, 16, 16)])
def test_a_grid_has_three_sides(grid):
    with pytest.raises(ValueError, match="frames, height and width"):
        bits_per_pixel(18.0, grid, (17, 128, 128))
    with pytest.raises(ValueError, match="video_grid"):
        bits_per_pixel(18.0, (5, 16, 16), grid)


def test_no_bits_have_no_ratio():
    with pytest.raises(ValueError, match=r"bits_per_pixel is 0\.0"):
        compression_ratio(0.0)
