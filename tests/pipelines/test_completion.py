"""Videos completed by a masked generator: what is visible stays, whatever is hidden."""

import pytest
import torch

from magvit2_pytorch.generators import MaskedGenerator
from magvit2_pytorch.generators.tasks import TASKS
from magvit2_pytorch.pipelines.completion import complete_pixels, complete_video, visible_pixels
from tests.conftest import build, random_video


@pytest.mark.parametrize("task", TASKS)
def test_known_codes_are_those_of_the_video(task):
    tokenizer = build("residual", "compress_space", "compress_time", quantizer="fsq").double()
    torch.manual_seed(0)
    generator = MaskedGenerator(
        levels=((8, 5, 5),), dim=16, depth=1, heads=2, num_steps=2
    ).double().eval()  # fmt: skip
    video = random_video(5, (32, 32), dtype=torch.float64)
    visible = visible_pixels(task, video, 3)
    films = []
    for hidden in (video, random_video(5, (32, 32), dtype=torch.float64)):
        films.append(
            complete_video(generator, tokenizer, torch.where(visible, video, hidden), task, given=3)
        )
    # Hidden pixels have no effect at all.
    assert torch.equal(*films)
    same = (films[0] == tokenizer.tokenize(video)).double()
    if task == "frame_prediction":
        assert same[:, :2].all()
        assert same[:, 2].mean() < 0.5
    if task.startswith("inpainting"):
        # Cells far from the hidden box are known, in all frames.
        assert same[..., 0, 0].all()
        assert same[..., 6:10, 6:10].mean() < 0.5


def test_hidden_pixels_are_guessed_from_the_frames_beside():
    video = torch.arange(5.0).view(1, 1, 5, 1, 1).expand(1, 1, 5, 2, 2).clone() ** 2 / 16
    visible = torch.zeros(5, 2, 2, dtype=torch.bool)
    visible[[0, 4], 0, 0] = True
    visible[2, 0, 1] = True
    visible[:, 1, 0] = True
    completed = complete_pixels(video, visible)[0, 0]
    assert completed[:, 0, 0].tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert completed[:, 0, 1].tolist() == [0.25] * 5
    assert torch.equal(completed[:, 1, 0], video[0, 0, :, 1, 0])
    assert completed[:, 1, 1].tolist() == [0] * 5
