"""Clips outside the range [-1, 1] raise an error before the first step."""

import pytest
import torch

from magvit2_pytorch import VideoTokenizer, VideoTokenizerTrainer
from tests.data.clip_files import make_video

pytestmark = pytest.mark.filterwarnings("ignore:.*fewer than a batch")


def trainer(folder, **options):
    return VideoTokenizerTrainer(
        VideoTokenizer.from_preset("tiny"),
        batch_size=2,
        num_frames=5,
        num_train_steps=4,
        results_folder=str(folder / "results"),
        checkpoints_folder=str(folder / "checkpoints"),
        progress_bar=False,
        **options,
    )


def clips(low, high, num_frames=5):
    drawn = torch.rand(4, 3, num_frames, 32, 32) * (high - low) + low
    return list(drawn if num_frames > 1 else drawn[:, :, 0])


MISTAKES = {
    "bytes": (0, 255, "these look like bytes: to_float"),
    "unit": (0, 1, r"from .* to .* look like \[0, 1\]: .* give 2 \* video - 1"),
    "almost unit": (0.02, 0.98, r"look like \[0, 1\]"),
    "standardised": (-2.5, 2.5, "clamp it, or scale it"),
    "nothing": (float("nan"), 1, "not numbers"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("where", ["clips", "images"])
def test_another_range_is_named_at_the_first_batch(tmp_path, mistake, where):
    low, high, words = MISTAKES[mistake]
    if where == "clips":
        data = dict(dataset=clips(low, high))
    else:
        images = clips(low, high, num_frames=1)
        data = dict(dataset=clips(-1, 1), image_dataset=images, image_frac=0.5)
    run = trainer(tmp_path, **data)
    with pytest.raises(ValueError, match=words):
        run.train()
    assert run.step == 0
    assert not (tmp_path / "checkpoints").exists()


def test_a_bright_film_of_our_own_reading_is_no_mistake(tmp_path):
    """Its darkest level is just above the middle of the range, and that is where it belongs."""
    levels = torch.full((12, 32, 32, 3), 131, dtype=torch.uint8)
    levels[::2] = 240
    for number in range(2):
        path = tmp_path / "videos" / f"{number}.mkv"
        path.parent.mkdir(exist_ok=True)
        make_video(path, 12, 32, 32, codec="ffv1", frames=iter(levels.numpy()))
    run = trainer(tmp_path, dataset_folder=tmp_path / "videos")
    run.train()
    assert run.step == 4
