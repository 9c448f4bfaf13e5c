"""Statistics of continuous latents, and that training stores them with the tokenizer."""

import numpy as np
import pytest
import torch

from magvit2_pytorch import TrainingConfig, VideoTokenizer
from magvit2_pytorch.training.latent_statistics import measure_latents
from magvit2_pytorch.training.tracking import read_log
from tests.conftest import build, random_video
from tests.processes import run_two_processes
from tests.training import latents_worker as worker
from tests.training.conftest import clips

CONTINUOUS = ["continuous", "continuous-kl"]
LAYERS = ("compress_space", "compress_time", "residual")


def several():
    """Clips of several sizes and lengths, and an image."""
    sizes = ((5, (16, 16)), (1, (32, 16)), (3, (16, 24)), (9, (16, 16)))
    return [*(random_video(*size)[0] for size in sizes), random_video(1)[0, :, 0]]


@torch.no_grad()
def latents_of(tokenizer, videos):
    """Latents of each video, as `decode` takes them."""
    return [tokenizer.quantize(tokenizer.encode(video[None])).quantized for video in videos]


def as_numpy(latents):
    """All positions of all of them in float64, channels last."""
    rows = [np.moveaxis(part.numpy(), 1, -1).reshape(-1, part.shape[1]) for part in latents]
    return np.concatenate(rows).astype(np.float64)


@pytest.mark.parametrize("quantizer", CONTINUOUS)
def test_statistics_are_numpys_over_all_latents(quantizer):
    tokenizer, videos = build(*LAYERS, quantizer=quantizer), several()
    whole = as_numpy(latents_of(tokenizer, videos))
    for order in (videos, videos[::-1]):
        moments = measure_latents(tokenizer, order)
        assert moments.num_values == tokenizer.quantizer.num_latents == len(whole)
        np.testing.assert_allclose(moments.mean, whole.mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(moments.std, whole.std(axis=0), rtol=1e-12)
        assert torch.equal(tokenizer.quantizer.latent_mean, moments.mean.float())
        assert torch.equal(tokenizer.quantizer.latent_std, moments.std.float())


@pytest.mark.parametrize("quantizer", CONTINUOUS)
def test_normalized_latents_have_mean_0_and_standard_deviation_1(quantizer):
    tokenizer, videos = build(*LAYERS, quantizer=quantizer), several()
    measure_latents(tokenizer, videos)
    latents = latents_of(tokenizer, videos)
    normalized = [tokenizer.normalize_latents(part) for part in latents]
    whole = as_numpy(normalized)
    np.testing.assert_allclose(whole.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(whole.std(axis=0), 1, atol=1e-5)
    for part, there in zip(latents, normalized, strict=True):
        torch.testing.assert_close(tokenizer.denormalize_latents(there), part, atol=1e-6, rtol=1e-6)


def test_few_of_many_clips_lie_evenly_over_the_dataset():
    tokenizer, videos = build(*LAYERS, quantizer="continuous"), clips(7)
    some, chosen = measure_latents(tokenizer, videos, max_clips=3), [videos[n] for n in (0, 2, 4)]
    same = measure_latents(tokenizer, chosen)
    assert torch.equal(some.mean, same.mean)
    assert torch.equal(some.std, same.std)


def test_the_means_are_measured_in_eval_mode_and_training_goes_on():
    tokenizer = build(*LAYERS, "attend_space", quantizer="continuous-kl", attn_dropout=0.5)
    expected = measure_latents(tokenizer, clips(3))
    tokenizer.train()
    found = measure_latents(tokenizer, clips(3))
    assert torch.equal(found.mean, expected.mean)
    assert torch.equal(found.std, expected.std)
    assert tokenizer.training
    assert all(p.grad is None for p in tokenizer.parameters())


def test_precision_is_that_of_the_encoder():
    tokenizer = build(*LAYERS, quantizer="continuous")
    exact, rounded = (measure_latents(tokenizer, clips(3), precision=p) for p in ("fp32", "bf16"))
    assert not torch.equal(exact.std, rounded.std)
    torch.testing.assert_close(rounded.std, exact.std, atol=0.02, rtol=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_channel_that_never_changes_has_a_standard_deviation_of_1(dtype):
    tokenizer = build(*LAYERS, quantizer="continuous").to(dtype)
    *_, last = (m for m in tokenizer.encoder.modules() if isinstance(m, torch.nn.Conv3d))
    with torch.no_grad():
        last.weight[1], last.bias[1] = 0, 0.3
        last.weight[2], last.bias[2] = 0, 0
        last.weight[3], last.bias[3] = last.weight[3] * 1e-41, 0  # nothing that float32 divides by
    with pytest.warns(UserWarning, match=r"channels \[1, 2, 3\] are constant"):
        moments = measure_latents(tokenizer, several())
    assert moments.std[1:].tolist() == [1, 1, 1]
    assert moments.mean[1:].tolist() == pytest.approx([0.3, 0, 0])
    assert 0 < moments.std[0] < 1
    normalized = tokenizer.normalize_latents(latents_of(tokenizer, clips(1))[0])[:, 1:]
    torch.testing.assert_close(normalized, torch.zeros_like(normalized), atol=1e-6, rtol=0)


def test_latents_that_are_not_finite_are_not_stored():
    tokenizer = build(*LAYERS, quantizer="continuous")
    measure_latents(tokenizer, clips(2))
    before = tokenizer.quantizer.latent_mean.clone()
    with torch.no_grad():
        next(tokenizer.encoder.parameters()).fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="not finite"):
        measure_latents(tokenizer, clips(2))
    assert torch.equal(tokenizer.quantizer.latent_mean, before)


def test_what_cannot_be_measured_says_why():
    continuous = build(*LAYERS, quantizer="continuous")
    with pytest.raises(ValueError, match="discrete"):
        measure_latents(build(*LAYERS), clips(2))
    with pytest.raises(ValueError, match=r"conditional.*store_statistics"):
        measure_latents(build("cond_residual", quantizer="continuous"), clips(2))
    for videos, most, text in (([], 3, "no clips"), (clips(2), 0, "some clips")):
        with pytest.raises(ValueError, match=f"{text} and max_clips {most}"):
            measure_latents(continuous, videos, max_clips=most)
    with pytest.raises(ValueError, match="look like bytes"):
        measure_latents(continuous, [clip * 127 + 127 for clip in clips(2)])
    with pytest.raises(ValueError, match="never measured: run measure_latents"):
        continuous.normalize_latents(torch.randn(1, 4, 1, 8, 8))
    with pytest.raises(ValueError, match="discrete"):
        build(*LAYERS).denormalize_latents(torch.randn(1, 6, 1, 8, 8))


# Saved and loaded


def test_statistics_are_saved_and_loaded(tmp_path):
    tokenizer = build(*LAYERS, quantizer="continuous")
    measure_latents(tokenizer, several())
    tokenizer.save_pretrained(tmp_path)
    loaded = VideoTokenizer.from_pretrained(tmp_path)
    latents = torch.randn(1, 4, 2, 8, 8)
    assert loaded.quantizer.num_latents == tokenizer.quantizer.num_latents > 0
    assert torch.equal(loaded.normalize_latents(latents), tokenizer.normalize_latents(latents))


# Training


@pytest.mark.parametrize("quantizer", CONTINUOUS)
def test_training_leaves_the_statistics_of_the_averaged_tokenizer(make_trainer, quantizer):
    trainer = make_trainer(quantizer=quantizer, layers=LAYERS)
    trainer.train()
    loaded = VideoTokenizer.from_pretrained(trainer.results_folder / "tokenizer")
    training_clips = [trainer.data[number] for number in range(len(trainer.data))]
    assert 0 < len(training_clips) < 6  # without those held out
    whole = as_numpy(latents_of(loaded, training_clips))
    np.testing.assert_allclose(loaded.quantizer.latent_mean, whole.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(loaded.quantizer.latent_std, whole.std(axis=0), rtol=1e-5)
    assert loaded.quantizer.num_latents == len(whole)
    # The weights in training are others, and nobody measured them.
    assert trainer.ema_tokenizer.quantizer.has_statistics
    assert not trainer.tokenizer.quantizer.has_statistics

    (line,) = (line for line in read_log(trainer.tracking.path) if "num_latents" in line)
    assert (line["step"], line["num_latents"]) == (6, len(whole))
    assert line["latent_std"] == pytest.approx(whole.std(axis=0).mean(), rel=1e-6)
    assert line["latent_abs_mean"] == pytest.approx(np.abs(whole.mean(axis=0)).mean(), rel=1e-6)


def test_the_number_of_clips_is_an_option(make_trainer):
    trainer = make_trainer(quantizer="continuous", num_latent_statistics_clips=2)
    trainer.train()
    chosen = [trainer.data[number] for number in (0, len(trainer.data) // 2)]
    tokenizer = trainer.ema_tokenizer
    whole = as_numpy(latents_of(tokenizer, chosen))
    np.testing.assert_allclose(tokenizer.quantizer.latent_mean, whole.mean(axis=0), rtol=1e-5)
    with pytest.raises(ValueError, match="num_latent_statistics_clips is -1"):
        TrainingConfig(num_latent_statistics_clips=-1)


@pytest.mark.parametrize("quantizer", ["lfq", "continuous"])
def test_nothing_is_measured_that_was_not_asked_for(make_trainer, quantizer):
    trainer = make_trainer(quantizer=quantizer, num_latent_statistics_clips=0)
    if quantizer == "continuous":
        # Of the weights before training, on the tokenizer and on its copy.
        for tokenizer in (trainer.tokenizer, trainer.ema_tokenizer):
            measure_latents(tokenizer, clips(2))
    trainer.train()
    assert not any("num_latents" in line for line in read_log(trainer.tracking.path))
    loaded = VideoTokenizer.from_pretrained(trainer.results_folder / "tokenizer")
    assert quantizer == "lfq" or not loaded.quantizer.has_statistics


def test_a_run_whose_latents_are_not_finite_still_leaves_its_tokenizer(make_trainer):
    trainer = make_trainer(quantizer="continuous")
    encode_chunk = trainer.ema_tokenizer.encode_chunk

    def not_finite(*args, **options):
        latents, past = encode_chunk(*args, **options)
        return latents * float("nan"), past

    trainer.ema_tokenizer.encode_chunk = not_finite
    trainer.task.valid_data = clips(1)
    with pytest.warns(UserWarning, match="latent statistics: .* not finite"):
        trainer._finish()
    loaded = VideoTokenizer.from_pretrained(trainer.results_folder / "tokenizer")
    assert not loaded.quantizer.has_statistics


def test_averaging_leaves_the_statistics_alone(make_trainer):
    trainer = make_trainer(quantizer="continuous")
    trainer.train()
    quantizer = trainer.ema_tokenizer.quantizer
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    weights = [p.clone() for p in trainer.ema_tokenizer.parameters()]
    with torch.no_grad():
        for parameter in trainer.tokenizer.parameters():
            parameter.add_(1.0)
    trainer.ema.update()
    moved = zip(weights, trainer.ema_tokenizer.parameters(), strict=True)
    assert not any(torch.equal(a, b) for a, b in moved)
    for name, value in quantizer.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_checkpoint_brings_the_statistics_back(make_trainer, tmp_path):
    trainer = make_trainer(quantizer="continuous")
    trainer.train()
    trainer.save(tmp_path / "after")
    other = make_trainer("other", quantizer="continuous")
    other.load(tmp_path / "after")
    for ours, theirs in ((trainer.ema, other.ema), (trainer.tokenizer, other.tokenizer)):
        state = theirs.state_dict()
        assert ours.state_dict().keys() == state.keys()
        for name, value in ours.state_dict().items():
            assert torch.equal(value, state[name]), name
    assert other.ema_tokenizer.quantizer.has_statistics


# Several processes


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return run_two_processes(worker, tmp_path_factory.mktemp("latents"))


@pytest.mark.parametrize("case", range(len(worker.NUM_CLIPS)))
def test_two_processes_measure_as_one(ranks, case):
    alone = worker.measure(worker.NUM_CLIPS[case])
    first, second = (rank[case] for rank in ranks)
    for name, value in alone.items():
        torch.testing.assert_close(first[name], value, rtol=1e-6, atol=1e-7)
        assert torch.equal(first[name], second[name])
    assert first["num_latents"] == worker.NUM_CLIPS[case] * 3 * 8 * 8
