"""Training of 1-D tokenizers: it learns, resumes to the bit, and uses every loss."""

import math

import pytest
import torch

from magvit2_pytorch import Tokenizer1d
from magvit2_pytorch.data.packs import PackGroup
from magvit2_pytorch.tokenizer_1d import PRESETS_1D
from magvit2_pytorch.training.sequence_task import (
    SequenceAutoencoder,
    SequenceTrainingConfig,
    Tokenizer1dTrainer,
    crops_of_one_size,
    validation_counts,
)
from tests.tokenizer_1d.narrow import SMALL, narrow, random_clip
from tests.training.conftest import clips, micro_step
from tests.training.test_adversarial import TINY
from tests.training.test_task import log_of, state_of
from tests.training.test_trainer import assert_same


def training(folder, model=None, **options):
    torch.manual_seed(0)
    defaults = dict(
        dataset=clips(8, 8, 32), pack_length=120, min_frames=4, min_side=16, num_train_steps=4,
        learning_rate=3e-3, warmup_steps=0, log_every_step=1, progress_bar=False, num_valid_clips=1,
        results_folder=str(folder), checkpoints_folder=str(folder / "checkpoints"),
    )  # fmt: skip
    return Tokenizer1dTrainer(Tokenizer1d(**(SMALL | (model or {}))), **(defaults | options))


def test_it_learns_and_is_saved(tmp_path):
    trainer = training(
        tmp_path, num_train_steps=30, pack_length=80, optimizer="muon", learning_rate=0.02
    )
    before = trainer.validate()["valid/psnr"]
    trainer.train()
    lines = log_of(trainer)
    assert lines[-1]["valid/psnr"] > before + 1.5
    counts = validation_counts((2, 16))
    assert counts == [2, 6, 16]
    assert len({lines[-1][f"valid/psnr_{count}"] for count in counts}) == 3
    mean = sum(lines[-1][f"valid/psnr_{count}"] for count in counts) / 3
    assert lines[-1]["valid/psnr"] == pytest.approx(mean)
    saved = Tokenizer1d.from_pretrained(tmp_path / "tokenizer")
    assert_same(saved.state_dict(), trainer.ema_tokenizer.state_dict(), atol=0, rtol=0)
    assert (tmp_path / "step-30-6-tokens-0.mp4").exists()


def test_resuming_equals_never_stopping(tmp_path):
    whole = training(tmp_path / "a", checkpoint_every_step=2)
    whole.train()
    second = training(tmp_path / "b")
    second.resume(whole.checkpoints_folder / "step-2")
    second.train()
    assert_same(state_of(second), state_of(whole), atol=0, rtol=0)
    clock = {"tokens_per_s", "clips_per_s", "frames_per_s"}
    kept = [{n: v for n, v in line.items() if n not in clock} for line in log_of(second)]
    wanted = [{n: v for n, v in line.items() if n not in clock} for line in log_of(whole)]
    assert kept == [line for line in wanted if line["step"] > 2]


@pytest.mark.parametrize("kind", ["anchored", "blocks"])
def test_the_forward_pass_is_that_of_the_tokenizer(kind):
    tokenizer = narrow(kind)
    groups = [
        PackGroup(torch.stack([random_clip(8, 16, 16) for _ in range(2)]), 6, 3),
        PackGroup(random_clip(4, 24, 16)[None], 5, 5),
    ]
    out = SequenceAutoencoder(tokenizer)(groups)
    assert out.latents.shape[-1] == 2 * 6 * (2 if kind == "blocks" else 1) + 5
    for group, recon in zip(groups, out.recons, strict=True):
        size = tuple(group.clips.shape[2:])
        codes = tokenizer.tokenize(group.clips, group.count)
        kept = codes.unflatten(1, (-1, group.count))[..., : group.prefix].flatten(1)
        wanted = tokenizer.decode(kept, size)
        torch.testing.assert_close(recon.detach(), wanted, atol=1e-5, rtol=1e-5)


def test_the_loss_is_the_mean_over_clips(tmp_path):
    trainer = training(tmp_path, grad_accum_every=1)
    pack = next(trainer.open_batches())
    measured = trainer.task.step(pack, micro_step(trainer))
    out = SequenceAutoencoder(trainer.tokenizer)(pack)
    errors = [
        (recon - group.clips).square().mean(dim=(1, 2, 3, 4))
        for group, recon in zip(pack, out.recons, strict=True)
    ]
    loss = torch.cat(errors).mean()
    assert len(pack) > 1
    torch.testing.assert_close(measured["loss"], loss.detach(), atol=1e-6, rtol=1e-5)
    for name, parameter in trainer.tokenizer.named_parameters():
        (wanted,) = torch.autograd.grad(loss, parameter, retain_graph=True)
        torch.testing.assert_close(parameter.grad, wanted, atol=1e-6, rtol=1e-3, msg=name)


@pytest.mark.parametrize("adaptive", [False, True])
def test_every_loss_of_the_house_trains(tmp_path, adaptive):
    def distance(recon, real):
        return (recon - real).abs().mean()

    perceptual = torch.nn.Module()
    perceptual.forward = distance
    trainer = training(
        tmp_path, model=dict(quantizer=dict(name="lfq", codebook_size=64)), num_train_steps=2,
        perceptual_loss=perceptual, perceptual_loss_weight=0.5, perceptual_num_frames=1,
        frame_adversarial_weight=0.1, frame_discriminator=TINY,
        adaptive_adversarial_weight=adaptive, feature_matching_weight=0.1,
    )  # fmt: skip
    trainer.train()
    line = next(line for line in log_of(trainer) if "loss" in line)
    names = ("reconstruction", "perceptual", "sample_entropy", "frame_adversarial")
    assert all(math.isfinite(line[name]) for name in (*names, "frame_feature_matching"))
    assert ("frame_adaptive_weight" in line) == adaptive
    assert line["frame_discriminator_grad_norm"] > 0


def test_crops_have_one_size_and_match():
    groups = [
        PackGroup(torch.randn(2, 3, 8, 16, 24), 6, 3), PackGroup(torch.randn(1, 3, 4, 32, 8), 5, 5)
    ]  # fmt: skip
    real, same = crops_of_one_size(groups, [g.clips for g in groups], torch.Generator())
    assert real.shape == (3, 3, 4, 16, 8)
    assert torch.equal(real, same)


def test_a_dry_run_leaves_no_files(tmp_path):
    plan = training(tmp_path / "run").dry_run()
    assert "memory" in str(plan)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", PRESETS_1D)
def test_recipes_are_options(name):
    config = SequenceTrainingConfig(**PRESETS_1D.training(name))
    model = Tokenizer1d.from_preset(name, encoder_depth=1, decoder_depth=1).config
    assert config.num_frames == model.num_frames
    patches = model.num_patches((model.num_frames, *model.height_and_width))
    assert config.pack_length >= patches + model.num_tokens[1]


def test_mistakes(tmp_path):
    with pytest.raises(ValueError, match="set min_frames to 1"):
        training(tmp_path, image_folder="images")
    with pytest.raises(ValueError, match="did you mean pack_length"):
        training(tmp_path, pack_lenght=3)
    for wrong in (dict(prefix_dropout=2.0), dict(easy_steps=-1), dict(pack_length=0)):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            SequenceTrainingConfig(**wrong)
