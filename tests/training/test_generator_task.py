"""Training of generators: they learn, and what a `Trainer` promises holds for them."""

import math
from dataclasses import replace

import pytest
import torch

from magvit2_pytorch.data.split import read_held_out
from magvit2_pytorch.generators import GENERATORS, load_generator
from magvit2_pytorch.training.generator_task import CONTEXT_LATENTS, GeneratorTrainer, generator_for
from magvit2_pytorch.training.task import Validation
from tests.codes.test_code_file import HEADER
from tests.codes.test_code_windows import write_corpus
from tests.training.test_task import log_of, state_of
from tests.training.test_trainer import assert_same


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(
        tmp_path_factory.mktemp("codes"),
        {"x/a": (14, 4, 4), "x/a@flip": (14, 4, 4), "y/b": (13, 5, 4)},
    )


def training(corpus, folder, kind="autoregressive", classes=False, **options):
    torch.manual_seed(0)
    model = generator_for(corpus, classes, (4, 4), kind=kind, dim=16, depth=1, heads=2, group=4)
    defaults = dict(
        num_train_steps=6, batch_size=2, learning_rate=1e-2, warmup_steps=0, log_every_step=1,
        progress_bar=False, num_latent_frames=2, crop=(4, 4), num_valid_latents=3,
        results_folder=str(folder), checkpoints_folder=str(folder / "saved"),
    )  # fmt: skip
    return GeneratorTrainer(model, dataset_folder=corpus.folder, **(defaults | options))


@pytest.mark.parametrize("kind", GENERATORS)
def test_it_learns_and_is_saved(corpus, tmp_path, kind):
    options = dict(num_train_steps=40, learning_rate=2e-2, optimizer="muon")
    trainer = training(corpus, tmp_path, kind, **options)
    trainer.train()
    log = log_of(trainer)
    bits = [line["bits"] for line in log if "bits" in line]
    assert bits[0] == pytest.approx(10, abs=0.1)
    assert sum(bits[-10:]) / 10 < 8
    assert log[-1]["valid/bits"] < 9
    saved = load_generator(tmp_path / "generator")
    assert_same(saved.state_dict(), trainer.ema_generator.state_dict(), atol=0, rtol=0)
    assert saved.config.tokenizer_fingerprint == HEADER.fingerprint
    assert saved.config.grid == (4, 4)


def test_the_best_weights_are_saved_not_the_last(corpus, tmp_path, monkeypatch, capsys):
    trainer = training(corpus, tmp_path, validate_every_step=2)
    seen = {}

    def validate(model, path, quick):
        seen[trainer.step] = {n: v.clone() for n, v in model.state_dict().items()}
        return Validation({"valid/bits": {2: 9.0, 4: 7.0, 6: 8.0}[trainer.step]}, {})

    monkeypatch.setattr(trainer.task, "validate", validate)
    trainer.train()
    saved = load_generator(tmp_path / "generator").state_dict()
    assert_same(saved, seen[4], atol=0, rtol=0)
    # The run itself goes on from its last step.
    assert_same(trainer.ema_generator.state_dict(), seen[6], atol=0, rtol=0)
    assert any(not torch.equal(seen[4][n], seen[6][n]) for n in saved)
    assert "that of step 4" in capsys.readouterr().out


@pytest.mark.parametrize("kind", GENERATORS)
def test_resuming_equals_never_stopping(corpus, tmp_path, kind):
    options = dict(classes=True, condition_dropout=0.5, corruption=0.2, checkpoint_every_step=3)
    whole = training(corpus, tmp_path / "a", kind, **options)
    whole.train()
    rest = training(corpus, tmp_path / "b", kind, **options)
    rest.resume(tmp_path / "a" / "saved" / "step-3")
    rest.train()
    assert_same(state_of(rest), state_of(whole), atol=0, rtol=0)


def test_accumulating_equals_the_large_batch(corpus, tmp_path):
    small = training(corpus, tmp_path / "s", batch_size=1, grad_accum_every=2, optimizer="adam")
    large = training(corpus, tmp_path / "l", batch_size=2, optimizer="adam")
    for trainer in (small, large):
        trainer.train()
    for name, value in large.generator.state_dict().items():
        torch.testing.assert_close(small.generator.state_dict()[name], value, atol=1e-5, rtol=1e-4)


def test_a_dry_run_changes_nothing(corpus, tmp_path):
    trainer = training(corpus, tmp_path)
    before = state_of(trainer)
    plan = str(trainer.dry_run())
    assert_same(state_of(trainer), before, atol=0, rtol=0)
    assert "2 x 4 x 4 codes of 10.00 bits" in plan
    assert "6 latent frames held out" in plan


def test_the_validation_is_the_exact_mean_of_held_out_codes(corpus, tmp_path):
    trainer = training(corpus, tmp_path)
    for parameter in trainer.ema_generator.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    values = trainer.task.validate(trainer.ema_generator, tmp_path / "step-0").values
    bits = []
    for video in (0, 2):  # the view is not measured
        length = corpus.shapes[video][0]
        first = length - 3 - CONTEXT_LATENTS
        codes = corpus.window(video, first, length).codes[None]
        bits.append(trainer.ema_generator.bits(codes)[0][:, CONTEXT_LATENTS:].flatten())
    assert values["valid/bits"] == pytest.approx(float(torch.cat(bits).mean()), rel=1e-5)


def test_corruption_moves_a_share_of_the_digits_that_are_seen(corpus, tmp_path):
    space = training(corpus, tmp_path).task.model.code_space
    codes = torch.randint(1024, (8, 4, 16, 16))
    seen = space.corrupted(codes, 0.1, torch.Generator().manual_seed(0))
    moved = (space.to_digits(seen) - space.to_digits(codes)).abs()
    assert moved.max() == 1
    # Half of the moves of a bit would leave its range.
    assert float(moved.float().mean()) == pytest.approx(0.05, abs=0.005)


def test_a_run_holds_out_the_codes_that_it_held_out_before(corpus, tmp_path):
    first = training(corpus, tmp_path, num_train_steps=1)
    first.train()
    names = [path for path in corpus.paths if "@" not in path]
    assert read_held_out(tmp_path) == {"codes": dict.fromkeys(names, 3)}
    with pytest.warns(UserWarning, match="it would be others"):
        second = training(corpus, tmp_path, num_valid_latents=1)
    second.resume("latest")
    assert second.task.stretches == first.task.stretches
    assert second.task.windows.stretches == first.task.windows.stretches
    gone = write_corpus(tmp_path / "fewer", {"x/a": (14, 4, 4)})
    with pytest.warns(UserWarning, match=r"1 of the 2 videos .* y/b"):
        training(gone, tmp_path)


def test_codes_of_another_tokenizer_are_refused(corpus, tmp_path):
    other = write_corpus(tmp_path / "o", {"a": (14, 4, 4)}, replace(HEADER, fingerprint="1" * 64))
    model = generator_for(corpus, kind="autoregressive", dim=16, depth=1, heads=2)
    with pytest.raises(ValueError, match="from the tokenizer 1111"):
        GeneratorTrainer(model, dataset_folder=other.folder)
    levels = write_corpus(tmp_path / "l", {"a": (14, 4, 4)}, replace(HEADER, digit_levels=(2, 512)))
    with pytest.raises(ValueError, match="digits of"):
        GeneratorTrainer(model, dataset_folder=levels.folder)


def test_codes_wider_than_a_crop_are_refused_where_distances_follow_the_sequence(tmp_path):
    corpus = write_corpus(tmp_path / "codes", {"a": (14, 4, 5)})
    model = generator_for(
        corpus, False, (4, 4), kind="autoregressive", dim=16, depth=1, heads=2, positions="alibi"
    )
    with pytest.raises(ValueError, match="5 columns, the generator was built for 4"):
        GeneratorTrainer(model, dataset_folder=corpus.folder, crop=(4, 4))


def test_generators_of_tokens_know_how_many_there_are_in_a_part(tmp_path):
    corpus = write_corpus(tmp_path / "codes", {"a": (42,), "b": (42,)}, num_frames=27)
    trainer = training(corpus, tmp_path, num_train_steps=2)
    assert (trainer.generator.config.num_tokens, trainer.generator.config.grid) == (3, (1, 3))
    trainer.train()
    saved = load_generator(tmp_path / "generator")
    assert saved.config == trainer.generator.config
    held_out = torch.stack([corpus.window(n, 0, 39).codes.view(13, 1, 3) for n in range(2)])
    bits, _ = saved.bits(held_out[:, -3 - CONTEXT_LATENTS :])
    assert log_of(trainer)[-1]["valid/bits"] == pytest.approx(float(bits[:, -3:].mean()), rel=1e-5)
    more = write_corpus(tmp_path / "more", {"a": (56,), "b": (56,)}, num_frames=27)
    with pytest.raises(ValueError, match=r"are 4 tokens in a part, .* built for 3 tokens"):
        GeneratorTrainer(saved, dataset_folder=more.folder)
    grids = write_corpus(tmp_path / "grids", {"a": (14, 4, 4)})
    with pytest.raises(ValueError, match=r"are a grid, .* built for 3 tokens"):
        GeneratorTrainer(saved, dataset_folder=grids.folder)
    with pytest.raises(ValueError, match="masked generator completes"):
        generator_for(corpus, kind="masked")


@pytest.mark.parametrize(
    "options",
    [dict(corruption=2.0), dict(valid_frac=0.95), dict(num_latent_frames=0), dict(crop=(0, 4))],
)
def test_options_out_of_range(corpus, tmp_path, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        training(corpus, tmp_path, **options)


def test_bits_are_those_of_the_loss(corpus, tmp_path):
    trainer = training(corpus, tmp_path, num_train_steps=1)
    trainer.train()
    line = log_of(trainer)[0]
    assert line["bits"] == pytest.approx(line["loss"] / math.log(2), rel=1e-6)
    assert sum(line[f"bits_{n}"] for n in range(5)) == pytest.approx(line["bits"], rel=1e-5)
