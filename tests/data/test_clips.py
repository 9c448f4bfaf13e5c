"""Choice of the frames and the crop of a clip."""

import json
import random

import numpy as np
import pytest

from magvit2_pytorch.data.clips import (
    ClipSpec,
    check_frame_range,
    choose_frames,
    choose_window,
    covering_size,
    nearest,
    resolve_range,
)

TIMES = np.arange(100) / 25


def choose(spec, bounds=(0, 100), rng=None, times=TIMES, **options):
    return choose_frames(times, 25.0, spec, bounds, rng, **options)


def test_every_start_is_drawn_and_no_other():
    spec = ClipSpec(num_frames=5, frame_stride=3)
    rng = random.Random(0)
    starts = set()
    for _ in range(500):
        chosen = choose(spec, (10, 30), rng)
        assert np.diff(chosen).tolist() == [3] * 4
        starts.add(chosen[0])
        assert 10 <= chosen[0] <= chosen[-1] < 30
    assert starts == set(range(10, 18))


def test_without_randomness_the_position_is_fixed():
    spec = ClipSpec(num_frames=17)
    assert choose(spec)[0] == 42
    assert choose(spec, position=0.0)[0] == 0
    assert choose(spec, position=1.0)[-1] == 99


@pytest.mark.parametrize("fps", [5, 10, 24, 25, 50])
def test_frames_by_rate_are_the_nearest_in_time(fps):
    rng = random.Random(1)
    steps = np.cumsum(np.random.default_rng(0).uniform(0.01, 0.09, 100))
    times = steps - steps[0]
    for _ in range(50):
        chosen = choose(ClipSpec(num_frames=9, fps=fps), rng=rng, times=times)
        moments = times[chosen[0]] + np.arange(9) / fps
        brute = [int(np.abs(times - moment).argmin()) for moment in moments]
        assert chosen == brute


def test_the_native_rate_takes_every_frame():
    assert np.diff(choose(ClipSpec(num_frames=100, fps=25))).tolist() == [1] * 99
    assert choose(ClipSpec(num_frames=5, fps=50), (0, 100), position=0.0) == [0, 0, 1, 1, 2]
    # Times in milliseconds, as mkv rounds them.
    times = np.round(np.arange(60) * 1001 / 30000, 3)
    chosen = choose_frames(times, 29.97, ClipSpec(num_frames=60, fps=29.97), (0, 60), None)
    assert chosen == list(range(60))


def test_nearest_takes_the_earlier_of_two():
    assert nearest(np.array([0.0, 1.0, 2.0]), np.array([-1, 0.4, 0.5, 0.6, 9])) == [0, 0, 0, 1, 2]


def test_too_short_videos_are_an_error():
    with pytest.raises(ValueError, match=r"too short: 16 frames .* 17 frames \(17 at a stride of"):
        choose(ClipSpec(), (0, 16))
    with pytest.raises(ValueError, match=r"too short: 20 frames, 0\.8 s .* needs 1\.6 s"):
        choose(ClipSpec(num_frames=17, fps=10), (0, 20))
    with pytest.raises(ValueError, match="too short: 0 frames"):
        choose(ClipSpec(pad_short=True), (50, 50))


def test_padding_repeats_the_last_frame():
    padded = choose(ClipSpec(num_frames=5, frame_stride=2, pad_short=True), (3, 7))
    assert padded == [3, 5, 6, 6, 6]
    assert choose(ClipSpec(num_frames=5, fps=5, pad_short=True), (3, 7)) == [3, 6, 6, 6, 6]


def test_ranges():
    assert resolve_range(100, None) == (0, 100)
    assert resolve_range(100, (None, -17)) == (0, 83)
    assert resolve_range(100, (-17, None)) == (83, 100)
    assert resolve_range(100, (0.0, 0.9)) == (0, 90)
    assert resolve_range(100, (0.9, 1.0)) == (90, 100)
    assert resolve_range(10, (-17, 300)) == (0, 10)
    with pytest.raises(ValueError, match="floats are fractions"):
        check_frame_range((0.5, 17.0))


@pytest.mark.parametrize("height", [1, 47, 128, 720, 1081])
@pytest.mark.parametrize("width", [3, 128, 333, 1280])
@pytest.mark.parametrize("target", [(128, 128), (96, 160), (33, 7)])
def test_a_window_covers_the_target_and_lies_inside(height, width, target):
    covered = covering_size(height, width, target)
    assert covered[0] == target[0] or covered[1] == target[1]
    assert covered[0] >= target[0]
    assert covered[1] >= target[1]
    spec = ClipSpec(image_size=target, random_scale=(1.0, 1.5), flip=True)
    rng = random.Random(0)
    for window in [choose_window(height, width, spec, rng) for _ in range(20)]:
        assert 0 <= window.top <= window.size[0] - target[0]
        assert 0 <= window.left <= window.size[1] - target[1]
    centre = choose_window(height, width, spec, None)
    assert abs(2 * centre.left + target[1] - centre.size[1]) <= 1
    assert not centre.flip


def test_a_spec_goes_through_json():
    for spec in (
        ClipSpec(),
        ClipSpec(image_size=(96, 160), random_scale=(1.0, 1.25), fps=8.0, channels=1),
    ):
        assert ClipSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    with pytest.raises(ValueError, match="has no option 'frames'"):
        ClipSpec.from_dict({"frames": 17})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(num_frames=0), "num_frames is 0: give at least 1"),
        (dict(fps=8, frame_stride=2), "give only one"),
        (dict(fps=0), "above 0"),
        (dict(frame_stride=0), "frame_stride is 0: give at least 1"),
        (dict(image_size=0), "give a side"),
        (dict(random_scale=(0.5, 1.0)), "at least 1"),
        (dict(channels=2), "use 1"),
    ],
)
def test_a_spec_refuses_wrong_values(options, message):
    with pytest.raises(ValueError, match=message):
        ClipSpec(**options)
