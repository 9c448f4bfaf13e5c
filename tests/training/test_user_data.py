"""Data sets of every form that people have, and processes that train more than once."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from magvit2_pytorch.data.user_clips import KEYS, as_clip, stack_clips
from magvit2_pytorch.training.latent_statistics import measure_latents
from tests.conftest import build
from tests.training.conftest import clips

CLIPS = clips(8)


class WithoutLength(Dataset):
    def __getitem__(self, number):
        return CLIPS[number]  # an IndexError ends it


class Stream(IterableDataset):
    def __iter__(self):
        return iter(CLIPS)


FORMS = {
    "tensors": CLIPS,
    "(clip, label)": [(clip, number) for number, clip in enumerate(CLIPS)],
    "[clip, label]": [[clip, "cat"] for clip in CLIPS],
    "TensorDataset": TensorDataset(torch.stack(CLIPS), torch.arange(len(CLIPS))),
    "one tensor": torch.stack(CLIPS),
    "numpy": [clip.numpy() for clip in CLIPS],
    "float64": [clip.double().numpy() for clip in CLIPS],
    "a dict": [{"label": 3, "video": clip} for clip in CLIPS],
    "a dict of other names": [{"label": torch.tensor(3), "pixels_of_it": clip} for clip in CLIPS],
    "a dict of arrays": [{"pixel_values": clip.numpy()} for clip in CLIPS],
}
STREAMS = {"iterable": Stream(), "without a length": WithoutLength()}


def loss_of(trainer):
    trainer.train()
    return [p.detach().clone() for p in trainer.tokenizer.parameters()]


@pytest.fixture(scope="module")
def expected():
    return {}


@pytest.mark.parametrize("form", FORMS)
def test_the_form_changes_nothing(make_trainer, form, expected):
    options = dict(num_train_steps=2, num_valid_clips=2, quantizer="continuous")
    weights = loss_of(make_trainer(dataset=FORMS[form], **options))
    expected.setdefault("weights", weights)
    for ours, theirs in zip(weights, expected["weights"], strict=True):
        torch.testing.assert_close(ours, theirs, atol=0, rtol=0)


@pytest.mark.parametrize("form", STREAMS)
def test_sets_without_a_length(make_trainer, form):
    """Read in order, round and round; resuming gives the same batches."""
    options = dict(dataset=STREAMS[form], num_train_steps=6, valid_dataset=STREAMS[form])
    options |= dict(num_valid_clips=3, batch_size=3, checkpoint_every_step=2)
    whole = make_trainer("whole", **options)
    if form == "iterable":
        plan = str(whole.dry_run())
        assert "an unknown number of clips" in plan
        assert "epochs" not in plan
    weights = loss_of(whole)
    batches = whole.task.batches(0)
    order = [next(batches) for _ in range(3)]
    assert torch.equal(torch.cat(order), torch.stack([*CLIPS, CLIPS[0]]))
    resumed = make_trainer("resumed", **options)
    resumed.load(whole.checkpoints_folder / "step-4")
    for ours, theirs in zip(loss_of(resumed), weights, strict=True):
        torch.testing.assert_close(ours, theirs, atol=0, rtol=0)
    measure_latents(build("residual", quantizer="continuous"), STREAMS[form])
    with pytest.raises(ValueError, match="give a valid_dataset"):
        make_trainer(dataset=STREAMS[form])
    with pytest.raises(ValueError, match="can be read once"):
        make_trainer(dataset=iter(CLIPS), valid_dataset=CLIPS)


def test_unequal_lengths_are_cut_to_the_shortest(make_trainer):
    unequal = [clip[:, : 3 + number % 3] for number, clip in enumerate(CLIPS)]
    with pytest.warns(UserWarning, match="cut to the shortest"):
        make_trainer(dataset=unequal, num_train_steps=2, num_valid_clips=2).train()
    with pytest.warns(UserWarning, match="cut to the shortest"):
        batch = stack_clips(unequal[:3])
    assert torch.equal(batch, torch.stack([clip[:, :3] for clip in CLIPS[:3]]))
    with pytest.raises(ValueError, match="give clips of one size"):
        stack_clips([CLIPS[0], CLIPS[1][:, :, :8]])


BAD = [
    (["clip.mp4"] * 4, TypeError, "an item is a str"),
    ([{"label": 3, "name": "x"}] * 4, TypeError, "keys 'label', 'name'"),
    ([{"a": CLIPS[0], "b": CLIPS[1]}] * 4, TypeError, "keys 'a', 'b'"),
    ([torch.zeros(16, 16)] * 4, TypeError, r"Tensor of shape \(16, 16\)"),
    ([(CLIPS[0] * 127).to(torch.uint8)] * 4, TypeError, "to_float"),
    ([CLIPS[0].transpose(0, 1)] * 4, ValueError, "5 channels"),
    ([CLIPS[0][:, :, :15]] * 4, ValueError, "height 15 is not a multiple of 2"),
    ([clip / 2 + 0.5 for clip in CLIPS], ValueError, r"look like \[0, 1\]"),
    ([clip * float("nan") for clip in CLIPS], ValueError, "not finite"),
    ([CLIPS[0] / 0] * 4, ValueError, "not finite"),
    ([], ValueError, "empty|0 item"),
]


@pytest.mark.parametrize(("items", "error", "words"), BAD)
def test_every_set_is_tried_before_training_starts(make_trainer, tmp_path, items, error, words):
    images = [item[:, 0] if torch.is_tensor(item) and item.ndim == 4 else item for item in items]
    sets = {
        "training": dict(dataset=items, valid_dataset=CLIPS),
        "validation": dict(valid_dataset=items),
        "images": dict(image_dataset=images, image_frac=0.5),
    }
    if "channels" in words:
        del sets["images"]  # a frame of the wrong layout is a picture
    for name, options in sets.items():
        with pytest.raises(error, match=f"{words}|the dataset has"):
            make_trainer(name, **options).train()
        assert not (tmp_path / name / "checkpoints").exists()


def test_items_of_named_keys_and_arrays():
    for key in KEYS:
        assert torch.equal(as_clip({"other": CLIPS[1], key: CLIPS[0]}), CLIPS[0])
    assert as_clip(np.zeros((3, 4, 4))).dtype == torch.float32


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_nothing_to_train_is_said(make_trainer, optimizer):
    trainer = make_trainer(optimizer=optimizer)
    for context in (torch.no_grad(), torch.inference_mode(), torch.set_grad_enabled(False)):
        with context, pytest.raises(ValueError, match="gradients are off"):
            trainer.train()
    trainer.tokenizer.requires_grad_(False)
    for start in (trainer.train, trainer.dry_run):
        with pytest.raises(ValueError, match="all weights of the tokenizer are frozen"):
            start()
    assert trainer.step == 0


def test_the_home_folder_is_found(make_trainer, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    folders = dict(results_folder="~/run", checkpoints_folder="~/run/states")
    trainer = make_trainer(**folders, num_train_steps=1, num_valid_clips=1)
    trainer.train()
    trainer.save("~/kept")
    trainer.load("~/kept")
    assert not (tmp_path / "~").exists()
    assert (tmp_path / "kept").is_dir()
    assert (tmp_path / "run" / "states" / "step-1").is_dir()


def test_trainers_of_other_options_share_a_process(make_trainer):
    """Each keeps its precision, and so does the user's own `Accelerator`."""
    theirs = Accelerator(mixed_precision="bf16", cpu=True, gradient_accumulation_steps=3)
    wanted = {
        "no": dict(),
        "fp16": dict(precision="fp16"),
        "again": dict(precision="fp32"),
        "bf16": dict(accelerate_kwargs={"mixed_precision": "bf16"}),
        "cpu": dict(accelerate_kwargs={"cpu": True}, process_timeout_s=7.0),
        "steps": dict(accelerate_kwargs={"gradient_accumulation_steps": 2}),
    }
    trainers = {name: make_trainer(name, num_train_steps=1, **o) for name, o in wanted.items()}
    found = {name: trainer.accelerator.mixed_precision for name, trainer in trainers.items()}
    others = dict.fromkeys(("no", "again", "cpu", "steps"), "no")
    assert found == others | {"fp16": "fp16", "bf16": "bf16"}
    assert trainers["steps"].accelerator.gradient_accumulation_steps == 2
    assert trainers["no"].accelerator.gradient_accumulation_steps == 1
    assert (theirs.mixed_precision, theirs.gradient_accumulation_steps) == ("bf16", 3)
    # And what one computes does not depend on those before it.
    weights = [loss_of(trainers[name]) for name in ("no", "again", "cpu")]
    for others in weights[1:]:
        for ours, first in zip(others, weights[0], strict=True):
            assert torch.equal(ours, first)
