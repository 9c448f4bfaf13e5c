"""The ground floor's words: registry, strict options, padding."""

import pytest
import torch

from magvit2_pytorch.config import Registry, check_known
from magvit2_pytorch.functional import autocast, pad_frames, padded_num_frames


def test_a_miss_names_its_neighbours():
    registry = Registry("layer")
    registry.register("residual")(1)
    registry.register("attend_time")(2)
    with pytest.raises(ValueError, match="there is no layer 'resid_ual': did you mean 'residual'"):
        registry["resid_ual"]
    with pytest.raises(ValueError, match="use one of"):
        registry["?"]
    with pytest.raises(ValueError, match="already registered"):
        registry.register("residual")(3)
    assert dict(registry) == {"residual": 1, "attend_time": 2}


def test_unknown_options_are_errors_with_a_way_out():
    check_known("it", ["a"], ["a", "b"])
    with pytest.raises(ValueError, match=r"no option 'lerning_rate': did you mean learning_rate\?"):
        check_known("it", ["lerning_rate"], ["learning_rate"])
    with pytest.raises(ValueError, match="'vgg' is not an option of it: over there"):
        check_known("it", ["vgg"], ["a"], {"vgg": "over there"})


@pytest.mark.parametrize("factor", [1, 2, 4])
@pytest.mark.parametrize("num_frames", range(1, 12))
def test_frames_are_padded_to_the_next_count_that_fits(num_frames, factor):
    padded = padded_num_frames(num_frames, factor)
    assert (padded - 1) % factor == 0
    assert num_frames <= padded < num_frames + factor
    video = torch.arange(float(num_frames)).view(1, 1, -1, 1, 1)
    expected = [*range(num_frames), *[num_frames - 1] * (padded - num_frames)]
    assert pad_frames(video, factor).flatten().tolist() == expected


def test_precision_names(without_type_checks):
    a = torch.randn(2, 2)
    with autocast("cpu", "bf16"):
        assert (a @ a).dtype == torch.bfloat16
    with autocast("cpu", "fp32"):
        assert (a @ a).dtype == torch.float32
    with pytest.raises(ValueError, match="use 'fp32', 'bf16' or 'fp16'"):
        autocast("cpu", "bf8")
