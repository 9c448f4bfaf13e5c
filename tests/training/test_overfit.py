"""Training on a few clips alone, and that a tokenizer learns one by heart."""

import pytest
import torch
from torch.utils.data import Dataset, IterableDataset

from magvit2_pytorch import VideoTokenizer, VideoTokenizerTrainer
from magvit2_pytorch.evaluation.demo_run import QUANTIZERS, demo_clips
from magvit2_pytorch.media.video_writer import write_video
from magvit2_pytorch.tokenizer.presets import recipe
from tests.training.conftest import clips

NUM_STEPS = 600


class NeverTheSame(Dataset):
    """Each reading of a clip adds other noise."""

    def __getitem__(self, number):
        return (clips()[number] + 0.1 * torch.randn(())).clamp(-1, 1)

    def __len__(self):
        return 6


class Stream(IterableDataset):
    def __iter__(self):
        return iter(NeverTheSame()[number] for number in range(6))


def write_bright(folder, num_frames):
    """A video of 24 x 32 pixels whose values all lie in [0, 1], the darkest near 0."""
    y, x = torch.meshgrid(torch.arange(24), torch.arange(32), indexing="ij")
    frame = torch.where(x // 4 % 2 == 0, 131, 180 + 2 * y + x // 2)
    frames = frame[None, ..., None].expand(num_frames, -1, -1, 3)
    write_video(folder / "bright.mp4", frames.to(torch.uint8), fps=8)
    return folder / "bright.mp4"


@pytest.mark.filterwarnings("ignore:.*fewer than a batch.*")
@pytest.mark.parametrize("kind", ["items", "stream", "file"])
def test_the_same_clips_at_every_step_and_in_validation(make_trainer, tmp_path, kind):
    data = {"items": dict(dataset=NeverTheSame()), "stream": dict(dataset=Stream())}
    # A file of one clip: nothing of it can be held out.
    path = write_bright(tmp_path, 5)
    data["file"] = dict(dataset=None, dataset_folder=path, flip=True, random_scale=(1.0, 1.25))
    number = 1 if kind == "file" else 2
    options = data[kind] | dict(num_frames=5, overfit_clips=2)
    trainer = make_trainer(**options, batch_size=number, num_train_steps=2)
    batches = trainer.task.batches(0)
    steps = [sorted(next(batches), key=torch.sum) for _ in range(4)]
    held_out = sorted((trainer.valid_data[i] for i in range(number)), key=torch.sum)
    for step in steps:
        assert torch.equal(torch.stack(step), torch.stack(held_out))
    trainer.train()
    assert trainer.validate()["valid/psnr"] > 0


def test_no_clips_are_refused(make_trainer):
    with pytest.raises(ValueError, match="overfit_clips is 0"):
        make_trainer(overfit_clips=0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fewer than a batch.*")
@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_one_real_clip_is_learnt_to_30_db(tmp_path, quantizer):
    tokenizer = VideoTokenizer.from_preset("small", **QUANTIZERS[quantizer])
    options = dict(batch_size=1, num_train_steps=NUM_STEPS, overfit_clips=1, random_scale=None)
    trainer = VideoTokenizerTrainer(
        tokenizer,
        dataset_folder=demo_clips()[0],
        results_folder=str(tmp_path / "results"),
        checkpoints_folder=str(tmp_path / "checkpoints"),
        **(recipe("small") | options),
    )
    trainer.train()
    assert trainer.validate()["valid/psnr"] >= 30
