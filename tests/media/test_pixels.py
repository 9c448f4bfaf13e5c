"""Bytes to floats and back: exact for every level, with errors about wrong ranges."""

import pytest
import torch

from magvit2_pytorch.media.frames import check_range, to_float, to_uint8

LEVELS = torch.arange(256, dtype=torch.uint8)


@pytest.mark.parametrize("shape", [(16, 16, 1), (2, 8, 4, 4), (2, 2, 4, 4, 4)])
def test_every_level_comes_back(shape):
    frames = LEVELS.reshape(shape)
    video = to_float(frames)
    assert video.dtype == torch.float32
    assert video.is_contiguous()
    assert float(video.min()) == -1
    assert float(video.max()) == 1
    assert torch.equal(to_uint8(video), frames)


def test_axes():
    frames = torch.zeros(2, 5, 6, 3, dtype=torch.uint8)
    frames[..., 0] = 255
    video = to_float(frames)
    assert video.shape == (3, 2, 5, 6)
    assert (video[0] == 1).all()
    assert (video[1:] == -1).all()


def test_values_round_and_clamp():
    video = torch.tensor([-3.0, -1, -0.0041, 0.0041, 1, 1.7, float("nan"), -float("inf")])
    levels = to_uint8(video.reshape(1, 1, 8)).flatten()
    assert levels.tolist() == [0, 0, 127, 128, 255, 255, 0, 0]
    assert to_uint8(video.reshape(1, 1, 8).bfloat16()).dtype == torch.uint8
    assert to_uint8(torch.zeros(1, 1, 1, requires_grad=True)).item() == 128


def test_bytes_in_floats_are_detected():
    with pytest.raises(ValueError, match="from 0 to 255 look like bytes"):
        to_uint8(LEVELS.float().reshape(1, 16, 16))
    with pytest.raises(ValueError, match="these look like bytes"):
        check_range(LEVELS.float())


def test_check_range():
    check_range(torch.tensor([-1.0, 1.0005]))
    with pytest.raises(ValueError, match=r"from -1\.5 to 1: clamp it"):
        check_range(torch.tensor([-1.5, 1.0]))
    with pytest.raises(ValueError, match="not numbers"):
        check_range(torch.tensor([0.0, float("nan")]))
    with pytest.raises(ValueError, match="an empty video"):
        check_range(torch.zeros(0, 3))


def test_wrong_axes_are_named():
    with pytest.raises(ValueError, match="3 to 5 axes"):
        to_float(torch.zeros(1, 1, 1, 1, 1, 1, dtype=torch.uint8))
    with pytest.raises(ValueError, match="3 to 5 axes"):
        to_uint8(torch.zeros(4, 4))
