"""Tasks: the cells that follow from visible pixels are those that the encoder can compute."""

import math

import pytest
import torch

from magvit2_pytorch.generators.tasks import (
    TASKS,
    CodeGeometry,
    TaskVideo,
    draw_tasks,
    given_cells,
    task_cells,
    task_number,
)
from magvit2_pytorch.tokenizer.tiling import encoder_halo
from tests.conftest import build, random_video

LAYERS = {
    "small field": ("residual", "compress_space", "residual", "compress_time"),
    "full frame": ("compress_space", "attend_space", "compress_time"),
}


def geometry_of(tokenizer):
    return CodeGeometry(tokenizer.time_factor, tokenizer.space_factor, encoder_halo(tokenizer))


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("layers", LAYERS)
def test_hidden_pixels_never_change_a_known_code(name, layers):
    tokenizer = build(*LAYERS[layers]).double()
    geometry = geometry_of(tokenizer)
    video = random_video(7, (32, 32), dtype=torch.float64)
    visible = TASKS[name](TaskVideo(7, 32, 32, given=3))
    known, hinted = given_cells(visible, geometry)
    other = torch.where(visible, video, random_video(7, (32, 32), dtype=torch.float64))
    before, after = tokenizer.encode(video), tokenizer.encode(other)
    assert torch.equal(before[..., known], after[..., known])
    assert not (known & hinted).any()
    # Every code that changes is not known, and the border between both is close in time.
    changed = (before != after).any(dim=1)[0]
    assert not (changed & known).any()
    if name == "frame_prediction":
        assert known[:2].all()
        assert changed[2:].all()


def test_a_smaller_halo_would_be_wrong():
    tokenizer = build(*LAYERS["small field"]).double()
    geometry = geometry_of(tokenizer)
    assert 0 < geometry.halo < 16
    video = random_video(3, (64, 64), dtype=torch.float64)
    visible = TASKS["inpainting_central"](TaskVideo(3, 64, 64, given=1))
    other = torch.where(visible, video, random_video(3, (64, 64), dtype=torch.float64))
    changed = (tokenizer.encode(video) != tokenizer.encode(other)).any(dim=1)[0]
    known = given_cells(visible, geometry).known
    assert known.any()
    assert not (known & changed).any()
    closer = given_cells(visible, geometry._replace(halo=geometry.halo // 2))
    assert (closer.known & changed).any()


def test_first_frames_make_the_first_latents_known():
    for factor in (1, 4):
        for frames in range(1, 10):
            visible = TaskVideo(1 + 8 // factor * factor, 8, 8, frames).frames(*range(frames))
            known, hinted = given_cells(visible, CodeGeometry(factor, 4, 5))
            count = 1 + (frames - 1) // factor
            assert known[:count].all()
            assert not known[count:].any()
            # Frames left over are hints.
            assert hinted.any() == ((frames - 1) % factor > 0)


def test_cells_by_counting_pixels():
    """Brute force: each cell looks at each pixel."""
    geometry = CodeGeometry(2, 4, 3)
    visible = torch.rand(5, 12, 16) < 0.97
    visible[:, :, 9:] = True
    visible[0, :8] = True
    known, hinted = given_cells(visible, geometry)
    for j in range(3):
        last = j * 2
        for y in range(3):
            for x in range(4):
                rows = slice(max(0, y * 4 - 3), y * 4 + 4 + 3)
                columns = slice(max(0, x * 4 - 3), x * 4 + 4 + 3)
                assert known[j, y, x] == visible[: last + 1, rows, columns].all()
                own = visible[max(0, last - 1) : last + 1, y * 4 : y * 4 + 4, x * 4 : x * 4 + 4]
                assert hinted[j, y, x] == (own.any() and not known[j, y, x])
    assert known.any()
    assert hinted.any()


def test_shares_of_the_tasks():
    video = TaskVideo(9, 32, 64, given=5)
    shares = {name: task(video).double().mean().item() for name, task in TASKS.items()}
    assert shares == {
        "unconditional": 0,
        "frame_prediction": pytest.approx(5 / 9),
        "interpolation": pytest.approx(2 / 9),
        "outpainting_horizontal": 0.5,
        "outpainting_vertical": 0.5,
        "outpainting_central": 0.25,
        "outpainting_dynamic": 0.5,
        "inpainting_central": 0.75,
        "inpainting_dynamic": 0.75,
    }
    strip = TASKS["outpainting_dynamic"](video)
    assert strip[0, :, :32].all()
    assert strip[-1, :, 32:].all()


def test_training_draws_tasks_by_weight():
    weights = {"interpolation": 3.0, "unconditional": 1.0, "frame_prediction": 0.0}
    draws = torch.Generator().manual_seed(0)
    grid, geometry = (3, 4, 4), CodeGeometry(4, 8, None)
    numbers, (known, _hinted) = draw_tasks(weights, 400, grid, geometry, draws)
    interpolation = numbers == task_number("interpolation")
    assert interpolation.double().mean().item() == pytest.approx(0.75, abs=0.06)
    assert set(numbers.tolist()) == {task_number(name) for name in list(weights)[:2]}
    expected = task_cells("interpolation", grid, geometry)
    assert torch.equal(known[interpolation], expected.known.expand(interpolation.sum(), -1, -1, -1))
    assert expected.known[0].all()
    assert not expected.known[1:].any()
    assert expected.hinted[2].all()
    assert not expected.hinted[1].any()
    # Frame prediction is given any number of frames that leaves one.
    weights = {"frame_prediction": 1.0}
    _, (known, _) = draw_tasks(weights, 200, grid, geometry, draws)
    assert set(known[:, :, 0, 0].sum(dim=1).tolist()) == {1, 2}
    # Of one frame there is nothing to predict.
    numbers, (known, _) = draw_tasks(weights, 2, (1, 4, 4), geometry, draws)
    assert numbers.tolist() == [task_number("unconditional")] * 2
    assert not known.any()


def test_videos_that_do_not_fit_are_refused():
    for shape in ((4, 8, 8), (5, 9, 8)):
        with pytest.raises(ValueError, match=r"give 1 \+ k \* 2 frames with sides .* of 4|of 4"):
            given_cells(torch.ones(shape, dtype=torch.bool), CodeGeometry(2, 4))


def test_halo_is_that_of_the_encoder():
    assert encoder_halo(build(*LAYERS["full frame"])) is None
    tokenizer = build(*LAYERS["small field"])
    assert encoder_halo(tokenizer) == math.ceil(tokenizer.encoder.receptive_field.halo)
