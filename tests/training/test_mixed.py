"""Images among the clips."""

from itertools import pairwise

import pytest
import torch

from magvit2_pytorch.media.images import write_image
from magvit2_pytorch.training.batches import mixed_batches, num_image_batches
from magvit2_pytorch.training.meters import Meters
from magvit2_pytorch.training.tracking import read_log
from tests.training.test_trainer import assert_same, weights

VIDEO_LAYERS = ("compress_space", "residual", "compress_time")


def images(number=5):
    """Pictures unlike any frame of the clips: of one level each."""
    return [torch.full((3, 16, 16), number / 20 - 0.5) for number in range(number)]


@pytest.fixture
def seen(make_trainer):
    """Builds a trainer with images, and what its forward passes are given."""

    def make(**options):
        options = dict(image_dataset=images(), image_batch_size=2, layers=VIDEO_LAYERS) | options
        trainer, shapes = make_trainer(**options), []
        trainer.autoencoder.register_forward_pre_hook(
            lambda module, args: shapes.append(tuple(args[0].shape))
        )
        return trainer, shapes

    return make


@pytest.mark.parametrize("frac", [0.2, 0.25, 1 / 3, 0.5, 0.7, 0.95])
def test_turns_are_as_even_as_can_be(frac):
    turns = [num_image_batches(n, frac) for n in range(501)]
    assert all(b - a in (0, 1) for a, b in pairwise(turns))
    assert all(abs(n * frac - turn) <= 1 for n, turn in enumerate(turns))


def test_the_share_asked_for_sees_images(seen):
    trainer, shapes = seen(
        num_train_steps=10,
        image_frac=0.3,
        image_dataset=images(20),
        image_batch_size=None,
        num_frames=5,
    )
    trainer.train()
    trained = shapes[:10]
    assert trained.count((10, 3, 1, 16, 16)) == 3  # as many images as two clips have frames
    assert trained.count((2, 3, 5, 16, 16)) == 7


def test_how_many_images_can_be_said(seen):
    trainer, shapes = seen(num_train_steps=2, image_frac=0.5, image_batch_size=3)
    trainer.train()
    assert shapes[:2] == [(2, 3, 5, 16, 16), (3, 3, 1, 16, 16)]


def test_every_item_comes_once_an_epoch_and_never_another(make_trainer):
    trainer = make_trainer(
        image_dataset=images(20), image_frac=0.5, image_batch_size=1, batch_size=1
    )
    batches = mixed_batches(
        trainer.data, trainer.images, trainer.config, trainer.accelerator, start=0
    )
    turns = [next(batches) for _ in range(2 * len(trainer.images))]
    stills = [float(x.mean()) for x in turns if x.shape[2] == 1]
    assert len(set(stills)) == len(stills) == len(trainer.images)


@pytest.mark.parametrize("start", [0, 2, 5])
def test_they_go_on_anywhere(make_trainer, start):
    trainer = make_trainer(image_dataset=images(), image_frac=0.4, image_batch_size=2)
    parts = trainer.data, trainer.images, trainer.config, trainer.accelerator
    whole, rest = mixed_batches(*parts, start=0), mixed_batches(*parts, start=start)
    for _ in range(start):
        next(whole)
    for _ in range(5):
        assert torch.equal(next(whole), next(rest))


def test_resuming_equals_never_stopping(make_trainer, tmp_path):
    options = dict(
        image_dataset=images(),
        image_frac=0.4,
        image_batch_size=2,
        grad_accum_every=3,
        layers=VIDEO_LAYERS,
    )
    whole = make_trainer("whole", num_train_steps=4, **options)
    whole.train()
    first = make_trainer("first", num_train_steps=4, **options)
    batches = mixed_batches(first.data, first.images, first.config, first.accelerator, 0)
    meters = Meters(first.task)
    for _ in range(2):
        first.train_step(batches, meters)
    folder = first.save_now()
    second = make_trainer("second", num_train_steps=4, **options)
    second.load(folder)
    second.train()
    assert_same(weights(second), weights(whole), atol=0, rtol=0)


def test_held_out_images_are_measured_and_shown(make_trainer, tmp_path):
    trainer = make_trainer(image_dataset=images(), layers=VIDEO_LAYERS)
    values = trainer.validate()
    assert {"valid/psnr", "valid/image_psnr", "valid/image_perplexity"} <= set(values)
    assert {"valid/image_psnr"} <= set(read_log(trainer.tracking.path)[-1])
    assert (tmp_path / "run/step-0-image-0.png").exists()
    assert (tmp_path / "run/step-0-clip-0.png").exists()
    assert not (tmp_path / "run/step-0-image-0.mp4").exists()


def test_a_folder_of_images(make_trainer, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(3):
        write_image(folder / f"{number}.png", torch.full((20, 24, 3), 80 * number).byte())
    trainer = make_trainer(image_folder=folder, image_batch_size=2, layers=VIDEO_LAYERS)
    assert trainer.images[0].shape == (3, 16, 16)
    trainer.train()


@pytest.mark.parametrize("name", ["frame", "video", "multiscale"])
def test_discriminators_judge_them_too(seen, name):
    small = dict(dim=4) if name != "multiscale" else dict(dim=4, scales=((2, 1), (2, 2)))
    trainer, shapes = seen(
        num_train_steps=4,
        image_frac=0.5,
        **{f"{name}_adversarial_weight": 0.1, f"{name}_discriminator": small},
        gradient_penalty_weight=1.0,
        gradient_penalty_every=1,
        lecam_loss_weight=0.1,
    )
    trainer.train()
    assert trainer.optimization.skips.total == 0
    assert len({shape[2] for shape in shapes[:4]}) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(image_frac=0.0), "image_frac is 0.0: it must lie between"),
        (dict(image_frac=1.0), "image_frac is 1.0: it must lie between"),
        (dict(image_batch_size=0), "image_batch_size is 0: give at least 1"),
        (dict(image_folder="x", image_dataset=images()), "either dataset_folder"),
    ],
)
def test_mistakes(make_trainer, options, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(**options)
