"""A tokenizer that trains remembers one real clip. Minutes: run with -m slow."""

import pytest

from magvit2_pytorch import VideoTokenizer, VideoTokenizerTrainer
from magvit2_pytorch.data.clips import ClipSpec
from magvit2_pytorch.data.datasets import VideoDataset
from magvit2_pytorch.evaluation.demo_run import QUANTIZERS, demo_clips
from magvit2_pytorch.tokenizer.presets import recipe

NUM_STEPS = 600


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fewer than a batch.*")
@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_one_real_clip_is_learnt_to_30_db(tmp_path, quantizer):
    clip = VideoDataset(demo_clips()[:1], ClipSpec(num_frames=17, image_size=64), train=False)
    tokenizer = VideoTokenizer.from_preset("small", **QUANTIZERS[quantizer])
    options = recipe("small") | dict(batch_size=1, num_train_steps=NUM_STEPS)
    trainer = VideoTokenizerTrainer(
        tokenizer,
        dataset=clip,
        valid_dataset=clip,
        results_folder=str(tmp_path / "results"),
        checkpoints_folder=str(tmp_path / "checkpoints"),
        **options,
    )
    trainer.train()
    assert trainer.validate()["valid/psnr"] >= 30
