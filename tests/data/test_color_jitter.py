"""Random colours of training clips."""

import random
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance

from magvit2_pytorch.data.clips import ClipSpec
from magvit2_pytorch.data.color_jitter import BRIGHTNESS, CONTRAST, SATURATION, choose_colors
from magvit2_pytorch.data.datasets import ImageDataset, VideoDataset
from magvit2_pytorch.media.frames import check_range, to_float
from magvit2_pytorch.media.images import write_image
from tests.data.clip_files import make_video

SPEC = ClipSpec(num_frames=5, image_size=(48, 64), color_jitter_frac=1.0)


def colors(channels, number=200):
    return [choose_colors(channels, random.Random(seed)) for seed in range(number)]


@pytest.mark.parametrize("seed", range(8))
def test_saturation_is_that_of_pillow(seed):
    generator = torch.Generator().manual_seed(seed)
    # Middle values, of which nothing is cut off.
    picture = torch.randint(112, 144, (8, 12, 3), generator=generator, dtype=torch.uint8)
    change, rng = choose_colors(3, random.Random(seed)), random.Random(seed)
    contrast, saturation = (
        low * (high / low) ** rng.random() for low, high in (CONTRAST, SATURATION)
    )
    brightness = rng.uniform(*BRIGHTNESS)
    enhanced = ImageEnhance.Color(Image.fromarray(picture.numpy())).enhance(saturation)
    expected = to_float(torch.from_numpy(np.array(enhanced))) * contrast + brightness
    # Grey and colours are rounded to levels, which saturation and contrast enlarge.
    tolerance = (1 + SATURATION[1]) * CONTRAST[1] / 127.5
    order = rng.sample(range(3), 3)
    found = change(to_float(picture))
    torch.testing.assert_close(found, expected[order], atol=tolerance, rtol=0)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_colours_are_in_range_and_opacity_stays(channels):
    clip = torch.rand(channels, 2, 4, 6, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for change in colors(channels):
        check_range(change(clip), tolerance=0.0)
        assert torch.equal(change(clip)[3:], clip[3:])
        if channels > 1:  # grey stays grey
            grey = change(clip[:1].expand(channels, -1, -1, -1))[:3]
            torch.testing.assert_close(grey[:1].expand(3, -1, -1, -1), grey, atol=1e-6, rtol=0)


def test_all_orders_and_the_whole_ranges_are_drawn():
    changes = colors(3)
    # Where red, green and blue are strongest.
    orders = {tuple(change.matrix.argmax(dim=0).tolist()) for change in changes}
    assert orders == set(permutations(range(3)))
    contrasts = sorted(float(change.matrix.sum() / 3) for change in changes)
    assert CONTRAST[0] <= contrasts[0] < 0.72
    assert 1.46 < contrasts[-1] <= CONTRAST[1]


def test_clips_of_all_readers_change_by_their_key(tmp_path):
    path = make_video(tmp_path / "a.mkv", 5, codec="ffv1")
    plain = VideoDataset(path, replace(SPEC, color_jitter_frac=0.0))
    dataset = VideoDataset(path, SPEC)
    cached = VideoDataset(path, SPEC, cache_dir=tmp_path / "frames")
    first = dataset[(1, 0)]
    assert not torch.equal(dataset[(2, 0)], first)
    for again in (dataset, cached):
        assert torch.equal(again[(1, 0)], first)
    held_out = VideoDataset(path, SPEC, train=False)
    assert torch.equal(held_out[0], VideoDataset(path, plain.spec, train=False)[0])
    # All pixels of a clip change alike: some affine map explains it, where nothing was cut off.
    frames = plain[(1, 0)]
    ones = torch.ones_like(frames[:1])
    inside = (first.abs() < 1).all(0)
    before = torch.cat((frames, ones))[:, inside].double()
    after = first[:, inside].double()
    found = torch.linalg.lstsq(before.T, after.T).solution
    torch.testing.assert_close(before.T @ found, after.T, atol=1e-5, rtol=0)


def test_pictures_too(tmp_path):
    write_image(tmp_path / "a.png", torch.randint(256, (48, 64, 3), dtype=torch.uint8))
    spec = replace(SPEC, num_frames=1)
    dataset = ImageDataset(tmp_path, spec)
    assert not torch.equal(dataset[(1, 0)], dataset[(2, 0)])
    assert torch.equal(dataset[(1, 0)], dataset[(1, 0)])


def test_a_fraction_of_the_clips_has_other_colours(tmp_path):
    path = make_video(tmp_path / "a.mkv", 5, codec="ffv1")
    plain = VideoDataset(path, replace(SPEC, color_jitter_frac=0.0))[0]
    dataset = VideoDataset(path, replace(SPEC, color_jitter_frac=0.25))
    same = sum(torch.equal(dataset[(epoch, 0)], plain) for epoch in range(64))
    assert 40 < same < 57
    with pytest.raises(ValueError, match=r"color_jitter_frac is 1\.5: give a fraction from 0 to 1"):
        ClipSpec(color_jitter_frac=1.5)
