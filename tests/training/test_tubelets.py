"""Tubelets: random spatio-temporal parts of clips as training examples."""

import random
from dataclasses import fields

import pytest
import torch

from magvit2_pytorch.data.clips import ClipSpec, choose_part
from magvit2_pytorch.data.datasets import ImageDataset, VideoDataset
from magvit2_pytorch.media.frames import to_float
from magvit2_pytorch.media.images import write_image
from magvit2_pytorch.media.video_reader import VideoFile
from magvit2_pytorch.training.sequence_task import SequenceTrainingConfig
from magvit2_pytorch.training.training_config import TrainingConfig
from tests.data.clip_files import make_video
from tests.training.test_trainer import assert_same, weights

TINY = dict(dim=4, dim_mults=(1, 2))


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for number in range(5):
        make_video(folder / f"{number}.mkv", 7 + number, 24, 32, codec="ffv1")
    return folder


def place(part, video):
    """Offsets (frame, row, column) of `part` in `video`, by comparing it wherever it may be."""
    t, h, w = part.shape[1:]
    (offsets,) = (
        (first, top, left)
        for first, top, left in (video == part[:, :1, :1, :1]).all(0).nonzero().tolist()
        if torch.equal(video[:, first : first + t, top : top + h, left : left + w], part)
    )
    return offsets


def test_a_tubelet_is_a_part_of_its_video_at_every_place(videos):
    path = videos / "4.mkv"
    everything = to_float(VideoFile(path).read(range(11)))
    spec = ClipSpec(num_frames=7, image_size=(24, 24), tubelet=(5, 8, 16))
    dataset = VideoDataset(path, spec, frame_range=(1, 10))
    places = [place(dataset[(epoch, 0)], everything) for epoch in range(16)]
    firsts, tops, _ = map(set, zip(*places, strict=True))
    assert max(firsts) > 3  # a clip's first frame is at most 3
    assert len(tops) > 4
    # A clip of 7 frames begins at 1 to 3, and a tubelet of 5 up to two frames later.
    assert all(1 <= first <= 5 and top <= 16 for first, top, _ in places)
    rng = random.Random(0)
    parts = [choose_part(spec, rng) for _ in range(500)]
    for name, last in (("first", 2), ("top", 16), ("left", 8)):
        assert {getattr(part, name) for part in parts} == set(range(last + 1))
    assert dataset[(3, 0)].shape == (3, 5, 8, 16)
    assert torch.equal(dataset[(3, 0)], VideoDataset(path, spec, frame_range=(1, 10))[(3, 0)])


def test_validation_and_a_cache_are_as_without(videos, tmp_path):
    plain = ClipSpec(num_frames=5, image_size=16)
    spec = ClipSpec(num_frames=5, image_size=16, tubelet=(3, 8, 8))
    whole = VideoDataset(videos, spec, train=False)[0]
    assert torch.equal(whole, VideoDataset(videos, plain, train=False)[0])
    cached = VideoDataset(videos, spec, cache_dir=tmp_path)
    assert torch.equal(cached[(1, 2)], VideoDataset(videos, spec)[(1, 2)])


def test_images_are_cut_as_frames_are(tmp_path):
    write_image(tmp_path / "a.png", torch.randint(256, (16, 16, 3), dtype=torch.uint8))
    dataset = ImageDataset(tmp_path, ClipSpec(num_frames=1, image_size=16, tubelet=(1, 8, 4)))
    whole = ImageDataset(tmp_path, ClipSpec(num_frames=1, image_size=16), train=False)[0]
    assert place(dataset[(2, 0)][:, None], whole[:, None])[0] == 0


@pytest.fixture
def trainer_of(make_trainer, videos):
    def make(name, tubelet="3x8x8", **options):
        options = dict(dataset=None, dataset_folder=videos, num_frames=5, batch_size=1) | options
        layers = ("compress_space", "compress_time")
        return make_trainer(name, layers=layers, tubelet=tubelet, **options)

    return make


def test_tokenizer_and_discriminators_see_tubelets_and_validation_clips(trainer_of, monkeypatch):
    trainer = trainer_of(
        "run", num_train_steps=3, video_adversarial_weight=0.1, video_discriminator=TINY,
        discriminator_start_step=1, adversarial_start_step=2,
    )  # fmt: skip
    (discriminator,) = trainer.discriminators
    seen = {"tokenizer": [], "discriminator": []}

    def record(name, owner, method):
        whole = getattr(owner, method)

        def recorded(video, *args):
            seen[name].append(tuple(video.shape))
            return whole(video, *args)

        monkeypatch.setattr(owner, method, recorded)

    record("tokenizer", trainer.task, "step")
    record("discriminator", discriminator, "compute_gradients")
    trainer.train()
    # The delay of the discriminator is as without tubelets.
    assert seen == {"tokenizer": [(1, 3, 3, 8, 8)] * 3, "discriminator": [(1, 3, 3, 8, 8)] * 2}
    assert trainer.valid_data[0].shape == (3, 5, 16, 16)


def test_resuming_equals_never_stopping(trainer_of):
    whole = trainer_of("whole", num_train_steps=4, schedule="constant")
    whole.train()
    trainer_of("parts", num_train_steps=2, schedule="constant").train()
    second = trainer_of("parts", num_train_steps=4, schedule="constant")
    second.train(resume="latest")
    assert_same(weights(second), weights(whole), atol=0, rtol=0)
    other = trainer_of("other", num_train_steps=4, schedule="constant", tubelet=None)
    other.train()
    with pytest.raises(AssertionError):
        assert_same(weights(other), weights(whole), atol=0, rtol=0)


@pytest.mark.parametrize(
    ("tubelet", "advice"),
    [
        ("4x8x8", "4 frames do not fit a time factor of 2: use 3 or 5"),
        ("3x8x5", "5 pixels do not fit patches of 2: use 4 or 6"),
        ("7x8x8", "does not lie in clips of 5x16x16: give a smaller one"),
        ("3x8", "give frames, height and width, such as 5x64x64"),
        ("threex8x8", "give FRAMESxHEIGHTxWIDTH"),
    ],
)
def test_errors_advise(trainer_of, tubelet, advice):
    with pytest.raises(ValueError, match=advice):
        trainer_of("run", tubelet)


def test_where_a_tubelet_is_not_for(make_trainer):
    with pytest.raises(ValueError, match="ClipSpec of your VideoDataset"):
        make_trainer(tubelet="3x8x8")
    with pytest.raises(ValueError, match="use min_frames and min_side"):
        SequenceTrainingConfig(tubelet=(3, 8, 8))


def test_the_options_of_a_tubelet_go_through_files():
    assert TrainingConfig(tubelet="5x64x32").to_dict()["tubelet"] == [5, 64, 32]
    spec = ClipSpec(tubelet=(5, 64, 32))
    assert ClipSpec.from_dict(spec.to_dict() | {"tubelet": [5, 64, 32]}) == spec


def test_the_options_of_clips_reach_the_clips(make_trainer, videos):
    """All that training and clips have in common, in the data set that the trainer opens."""
    options = dict(num_frames=5, fps=25.0, flip=True, random_scale=(1.0, 1.5), tubelet=(1, 8, 8))
    options |= dict(color_jitter_frac=0.5)
    trainer = make_trainer(dataset=None, dataset_folder=videos, **options)
    names = [{field.name for field in fields(config)} for config in (ClipSpec, TrainingConfig)]
    assert names[0] & names[1] == {*options, "frame_stride"}
    assert {name: getattr(trainer.data.spec, name) for name in options} == options
