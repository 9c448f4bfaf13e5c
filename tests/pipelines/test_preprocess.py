"""Padding repeats what is at the edge, and nothing else."""

import pytest
import torch

from magvit2_pytorch.functional import pad_frames, pad_space, space_padding
from magvit2_pytorch.pipelines.media_file import chunks, frame_size
from tests.conftest import random_video


@pytest.mark.parametrize("size", [(8, 8), (9, 15), (1, 2), (16, 3)])
def test_space_is_padded_below_and_right_by_the_last_row_and_column(size):
    video = random_video(2, size)
    padded = pad_space(video, 8)
    height, width = size
    assert padded.shape[-2] % 8 == padded.shape[-1] % 8 == 0
    assert (padded.shape[-2] - height, padded.shape[-1] - width) == space_padding(*size, 8)
    assert torch.equal(padded[..., :height, :width], video)
    rows = torch.arange(padded.shape[-2]).clamp(max=height - 1)
    columns = torch.arange(padded.shape[-1]).clamp(max=width - 1)
    assert torch.equal(padded, video[..., rows, :][..., columns])


@pytest.mark.parametrize(("num_frames", "first", "expected"), [
    (1, True, 1), (2, True, 5), (5, True, 5), (1, False, 4), (4, False, 4), (5, False, 8),
])  # fmt: skip
def test_time_is_padded_by_the_last_frame(num_frames, first, expected):
    video = random_video(num_frames)
    padded = pad_frames(video, 4, first)
    assert padded.shape[2] == expected
    frames = torch.arange(expected).clamp(max=num_frames - 1)
    assert torch.equal(padded, video[:, :, frames])


@pytest.mark.parametrize(("size", "short_side", "expected"), [
    ((48, 64), None, (48, 64)), ((48, 64), 24, (24, 32)), ((64, 48), 24, (32, 24)),
    ((720, 1280), 256, (256, 455)), ((10, 10), 20, (20, 20)),
])  # fmt: skip
def test_the_short_side_gets_the_size(size, short_side, expected):
    assert frame_size(*size, short_side) == expected


@pytest.mark.parametrize("chunk_frames", [1, 3, 4, 7, 8, 50])
@pytest.mark.parametrize("num_frames", [1, 4, 5, 9, 21])
def test_runs_fit_the_stride_and_hold_every_frame_once(chunk_frames, num_frames):
    frames = torch.arange(num_frames, dtype=torch.uint8).reshape(-1, 1, 1, 1)
    runs = list(chunks((frame for frame in frames), chunk_frames, 4))
    assert torch.equal(torch.cat(runs), frames)
    lengths = [len(run) - (number == 0) for number, run in enumerate(runs)]
    assert all(length % 4 == 0 for length in lengths[:-1])
    assert max(lengths) <= max(chunk_frames, 4)
