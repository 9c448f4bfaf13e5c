"""Training of super-resolution: its pairs, and what a `Trainer` promises."""

import pytest
import torch

from magvit2_pytorch import SuperResolution, SuperResolutionTrainer, VideoTokenizer
from magvit2_pytorch.metrics.quality import psnr
from tests.conftest import random_video
from tests.training.test_task import log_of, state_of
from tests.training.test_trainer import assert_same


def smooth_clips(count, side, channels=3, num_frames=3):
    """Clips of waves, the same each time."""
    draws = torch.Generator().manual_seed(0)
    ramp = torch.linspace(0, 6, side)
    phases = torch.rand(count, channels, num_frames, 1, 1, generator=draws) * 6
    return list(0.8 * torch.sin(ramp[:, None] + 2 * ramp + phases))


def training(folder, channels=3, scale=2, **options):
    torch.manual_seed(0)
    tokenizer = VideoTokenizer.from_preset("tiny", channels=channels)
    upscaler = SuperResolution.from_preset("x2-tiny", channels=channels, scale=scale)
    defaults = dict(
        num_train_steps=6, batch_size=2, learning_rate=3e-3, warmup_steps=0, log_every_step=1,
        progress_bar=False, crop=8 * scale, short_side=16 * scale,
        results_folder=str(folder), checkpoints_folder=str(folder / "saved"),
    )  # fmt: skip
    return SuperResolutionTrainer(
        tokenizer,
        upscaler,
        dataset=smooth_clips(4, 8 * scale, channels),
        valid_dataset=smooth_clips(2, 16 * scale, channels),
        **(defaults | options),
    )


@pytest.mark.parametrize(("scale", "channels"), [(2, 3), (4, 1)])
def test_it_learns_and_is_saved(tmp_path, scale, channels):
    # A tokenizer without training has nothing to restore: resized clips only.
    options = dict(num_train_steps=30, learning_rate=1e-2, reconstruction_loss="mse")
    trainer = training(tmp_path, channels, scale, decoded_frac=0.0, corrupted_frac=0.0, **options)
    frozen = {name: value.clone() for name, value in trainer.task.tokenizer.state_dict().items()}
    trainer.train()
    losses = [line["loss"] for line in log_of(trainer) if "loss" in line]
    assert sum(losses[-5:]) / 5 < 0.6 * losses[0]
    assert_same(trainer.task.tokenizer.state_dict(), frozen, atol=0, rtol=0)
    saved = SuperResolution.from_pretrained(tmp_path / "upscaler")
    assert_same(saved.state_dict(), trainer.ema_upscaler.state_dict(), atol=0, rtol=0)


def test_resuming_equals_never_stopping(tmp_path):
    options = dict(checkpoint_every_step=3, frame_adversarial_weight=0.1, adversarial_start_step=4,
                   frame_discriminator=dict(dim=8, dim_mults=(2,)), flip=True)  # fmt: skip
    whole = training(tmp_path / "a", **options)
    whole.train()
    rest = training(tmp_path / "b", **options)
    rest.resume(tmp_path / "a" / "saved" / "step-3")
    rest.train()
    assert_same(state_of(rest), state_of(whole), atol=0, rtol=0)
    assert "frame_adversarial" not in log_of(whole)[3]
    assert "frame_adversarial" in log_of(whole)[4]


def test_a_dry_run_changes_nothing(tmp_path):
    trainer = training(tmp_path)
    before = state_of(trainer)
    plan = str(trainer.dry_run())
    assert_same(state_of(trainer), before, atol=0, rtol=0)
    assert "3 x 8 x 8 to 3 x 16 x 16 pixels" in plan


def test_options_of_encoders_have_no_effect(tmp_path):
    models = []
    for freeze in (False, True):
        trainer = training(tmp_path / str(freeze), num_train_steps=2, freeze_encoder=freeze)
        trainer.train()
        models.append(trainer.averaged_model.state_dict())
    torch.testing.assert_close(*models, rtol=0, atol=0)


def test_the_validation_is_that_of_the_reconstruction(tmp_path):
    trainer = training(tmp_path)
    values = trainer.task.validate(trainer.ema_upscaler, tmp_path / "step-0").values
    assert values["valid/psnr"] == pytest.approx(values["valid/bicubic_psnr"], abs=1e-3)
    high = torch.stack(trainer.task.valid_data.dataset)
    low = high.unflatten(4, (-1, 2)).mean(5).unflatten(3, (-1, 2)).mean(4)
    decoded = trainer.task.tokenizer.eval()(low).clamp(-1, 1)
    for prefix, small in (("", decoded), ("clean_", low)):
        large = trainer.ema_upscaler(small).clamp(-1, 1)
        wanted = float(psnr(large, high).mean())
        assert values[f"valid/{prefix}psnr"] == pytest.approx(wanted, abs=1e-3)


def test_small_frames_are_of_three_kinds(tmp_path):
    task = training(tmp_path, corruption=1.0, decoded_frac=0.3, corrupted_frac=0.4).task
    high = random_video(3, (16, 16), batch=300)
    clean = task.shrink(high)
    low = task.low_frames(high, torch.Generator().manual_seed(0))
    distances = torch.stack(
        [(low - x).abs().amax((1, 2, 3, 4)) for x in (clean, task.decoded(clean))]
    )
    is_clean, is_decoded = distances < 1e-5
    assert float(is_clean.float().mean()) == pytest.approx(0.3, abs=0.08)
    assert float(is_decoded.float().mean()) == pytest.approx(0.3, abs=0.08)
    assert not (is_clean & is_decoded).any()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (dict(decoded_frac=0.7, corrupted_frac=0.4), "their sum is above 1"),
        (dict(corruption=2.0), "corruption is 2.0"),
        (dict(crop=64), "more than short_side"),
        (dict(crop=12), "not a multiple of 8"),
        (dict(channels=1), None),
    ],
)
def test_options_that_do_not_fit(tmp_path, options, text):
    if text is not None:
        with pytest.raises(ValueError, match=text):
            training(tmp_path, **options)
        return
    grey = SuperResolution.from_preset("x2-tiny", channels=1)
    with pytest.raises(ValueError, match="set channels to 3"):
        SuperResolutionTrainer(VideoTokenizer.from_preset("tiny"), grey, dataset_folder=tmp_path)
