"""The way from videos to new films: tokenize, train-generator, evaluate-generator, generate."""

import json

import pytest
import torch

from magvit2_pytorch.cli.generate import GenerationOptions, check_films
from magvit2_pytorch.codes.codes_dataset import CodesDataset
from magvit2_pytorch.generators import load_generator
from magvit2_pytorch.generators.tasks import TASKS
from magvit2_pytorch.media.video_reader import VideoFile
from tests.data.clip_files import make_video


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    return make_video(tmp_path_factory.mktemp("film") / "film.mp4", 24, 16, 24, fps=10)


@pytest.fixture(scope="module")
def trained(film, model, tmp_path_factory):
    """Codes of a film and a generator of them."""
    from magvit2_pytorch.cli.main import main

    folder = tmp_path_factory.mktemp("trained")
    codes, run = str(folder / "codes"), str(folder / "run")
    words = ["tokenize", str(film), "--model", str(model), "-o", codes, "--views", "flip,shift:2"]
    assert main(words) == 0
    small = ["--model.dim", "16", "--model.depth", "1", "--model.heads", "2"]
    training = ["--num_train_steps", "2", "--crop", "[2, 2]", "--num_latent_frames", "2"]
    assert main(["train-generator", codes, "-o", run, *small, *training]) == 0
    return folder / "codes", folder / "run"


def test_views_are_files_of_their_own_and_start_later(trained):
    dataset = CodesDataset(trained[0])
    names = [path.removesuffix(".codes.safetensors") for path in dataset.paths]
    assert names == ["film", "film@flip+shift1", "film@flip", "film@shift1"]
    frames = {name: dataset[number].num_frames for number, name in enumerate(names)}
    assert frames == {"film": 24, "film@flip": 24, "film@flip+shift1": 23, "film@shift1": 23}


def test_views_are_the_codes_of_the_changed_video(trained, film, model):
    from magvit2_pytorch import VideoTokenizer
    from magvit2_pytorch.media.frames import to_float

    tokenizer = VideoTokenizer.from_pretrained(model)
    frames = torch.stack(list(VideoFile(film).frames()))
    dataset = CodesDataset(trained[0])
    for number, view in ((2, frames.flip(2)), (3, frames[1:])):
        wanted = tokenizer.tokenize(to_float(view)[None])
        assert torch.equal(dataset[number].codes[None], wanted)


def test_a_run_can_be_read_again_and_resumed(trained, run, tmp_path):
    codes, folder = trained
    words = ("train-generator", codes, "-o", folder, "--config", folder / "config.yaml")
    status, out, _ = run(*words, "--resume", "latest", "--num_train_steps", 3)
    assert (status, "Trained 3 steps" in out) == (0, True)
    status, _, err = run(*words)
    assert (status, "--resume latest" in err) == (1, True)


def test_films_continue_their_prompt(trained, film, model, run, tmp_path):
    words = ("generate", "--generator", trained[1], "--model", model, "--prompt", film)
    words = (*words, "--prompt_frames", 9, "--frames", 14, "--seed", 3)
    assert run(*words, "-o", tmp_path / "three", "--num", 3)[0] == 0
    assert run(*words, "-o", tmp_path / "one", "--first_sample", 2)[0] == 0
    files = sorted(path.name for path in (tmp_path / "three").iterdir())
    assert files == [f"film-{n}.{suffix}" for n in range(3) for suffix in ("json", "mp4")]
    video = VideoFile(tmp_path / "one" / "film-2.mp4")
    assert (video.num_frames, video.height, video.width, video.fps) == (14, 16, 24, 10)
    record = json.loads((tmp_path / "one" / "film-2.json").read_text())
    assert (record["seed"], record["sample"], record["prompt_frames"]) == (3, 2, 9)


def test_films_do_not_depend_on_each_other(trained, film, model):
    from magvit2_pytorch import VideoTokenizer
    from magvit2_pytorch.generators import Sampling
    from magvit2_pytorch.pipelines.generation import continued_codes, read_prompt

    tokenizer = VideoTokenizer.from_pretrained(model)
    generator = load_generator(trained[1] / "generator")
    prompt = read_prompt(tokenizer, film, 9)
    assert (prompt.num_frames, prompt.codes.shape[1]) == (9, 5)

    def film_codes(*numbers):
        frames = continued_codes(generator, prompt.codes, Sampling(seed=3), torch.tensor(numbers))
        return torch.cat([next(frames) for _ in range(4)], dim=1)

    three = film_codes(0, 1, 2)
    assert torch.equal(film_codes(2), three[2:])
    assert torch.equal(three[:, :5], prompt.codes.expand(3, -1, -1, -1))
    assert not torch.equal(three[1], three[2])


def test_films_from_nothing_have_the_size_asked_for(trained, model, run, tmp_path):
    words = ("generate", "--generator", trained[1], "--model", model, "-o", tmp_path / "out")
    assert run(*words, "--seconds", 0.5, "--fps", 10, "--height", 10, "--width", 18)[0] == 0
    video = VideoFile(tmp_path / "out" / "film-0.mp4")
    assert (video.num_frames, video.height, video.width) == (5, 10, 18)


@pytest.fixture(scope="module")
def masked(trained, tmp_path_factory):
    """A masked generator of the codes, barely trained."""
    from magvit2_pytorch.cli.main import main

    folder = tmp_path_factory.mktemp("masked") / "run"
    small = ["--model.dim", "16", "--model.depth", "1", "--model.heads", "2"]
    training = ["--num_train_steps", "1", "--crop", "[2, 2]", "--num_latent_frames", "2"]
    words = ["train-generator", str(trained[0]), "-o", str(folder), "--preset", "masked-tiny"]
    assert main([*words, *small, *training]) == 0
    return folder


def test_a_task_completes_the_first_frames_of_its_prompt(masked, film, model, run, tmp_path):
    from magvit2_pytorch.media.frames import to_float

    words = ("generate", "--generator", masked, "--model", model, "--prompt", film)
    words = (*words, "--task", "frame_prediction", "--given", 5, "--prompt_frames", 10)
    assert run(*words, "-o", tmp_path, "--num", 2)[0] == 0
    frames = [list(VideoFile(tmp_path / f"film-{n}.mp4").frames()) for n in range(2)]
    assert [len(x) for x in frames] == [9, 9]
    # Both films have the frames given; the others are made up. H.264 may predict the fifth from
    # frames after it.
    change = (to_float(torch.stack(frames[0])) - to_float(torch.stack(frames[1]))).square()
    change = change.mean(dim=(0, 2, 3))
    assert change[:4].max() < 0.1 * change[5:].min()
    record = json.loads((tmp_path / "film-1.json").read_text("utf-8"))
    assert (record["task"], record["given"], record["sample"]) == ("frame_prediction", 5, 1)


def test_a_task_is_shown_side_by_side(masked, film, model, run, tmp_path):
    words = ("generate", "--generator", masked, "--model", model, "--prompt", film)
    words = (*words, "--task", "unconditional", "--prompt_frames", 5, "--side_by_side")
    assert run(*words, "-o", tmp_path)[0] == 0
    video = VideoFile(tmp_path / "film-0.mp4")
    assert (video.num_frames, video.height, video.width) == (5, 16, 48)
    assert json.loads((tmp_path / "film-0.json").read_text("utf-8"))["side_by_side"] is True


def test_an_untrained_task_is_named(masked, film):
    films = GenerationOptions(prompt=(str(film),), task="interpolation")
    with pytest.warns(UserWarning, match="trained for frame_prediction, unconditional, not for"):
        check_films(load_generator(masked / "generator"), films)


def test_the_help_names_every_task(run):
    _, out, _ = run("generate", "--help")
    assert [task for task in TASKS if task not in out] == []


def test_the_report_has_bits_predictions_and_pictures(
    trained, film, model, run, tmp_path, without_type_checks
):
    words = ("evaluate-generator", trained[0], "--generator", trained[1], "--model", model)
    status, out, _ = run(*words, "-o", tmp_path / "out", "--data", film, "--num_samples", 2)
    assert status == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert f"{report['bits']:.3f} bits a code" in out
    (video,) = report["videos"]
    assert video["bits"] == pytest.approx(report["bits"])
    assert sum(video["bits_of_latents"]) / video["held_out_latents"] == pytest.approx(
        report["bits"], rel=1e-5
    )
    prediction = report["prediction"]
    assert {len(values) for values in prediction.values()} == {2}
    assert prediction["ceiling"][0] > 0
    assert (tmp_path / "out" / video["picture"]).exists()
    assert "exactly" in (tmp_path / "out" / "report.md").read_text()


NEEDED = ("generate", "--generator", "{gen}", "--model", "{model}", "-o", "{out}")
MASKED = ("generate", "--generator", "{masked}", "--model", "{model}", "-o", "{out}")
PROMPT = ("--prompt", "{film}")
PREDICT = (*PROMPT, "--task", "frame_prediction")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("generate", "--generator", "no", "--model", "{model}", "-o", "{out}"), "RUN/generator"),
        ((*NEEDED, "--prompt", "no.mp4"), "there is no file no.mp4"),
        ((*NEEDED, "--class_name", "cat"), "not class-conditional"),
        ((*NEEDED, "--top_p", "2"), "top_p is 2"),
        ((*NEEDED, "--task", "interpolation"), "give --prompt"),
        ((*NEEDED, *PROMPT, "--task", "interpolation"), "needs a masked generator"),
        ((*NEEDED, *PROMPT, "--task", "inpaint"), "use one of unconditional"),
        ((*NEEDED, *PROMPT, "--height", "16"), "--size is that of a prompt"),
        ((*NEEDED, "--size", "16"), "--size is that of a prompt"),
        ((*NEEDED, *PROMPT, "--given", "3"), "goes with --task frame_prediction"),
        ((*NEEDED, *PROMPT, "--side_by_side"), "goes with --task"),
        ((*MASKED, *PREDICT, "--prompt_frames", "1"), "nothing is left to complete in 1 frames"),
        ((*MASKED, *PREDICT, "--prompt_frames", "5", "--given", "5"), "nothing is left"),
        ((*MASKED, *PREDICT, "--given", "30"), "30 given frames are more than the 17"),
        ((*MASKED, *PREDICT, "--class_name", "cat"), "not class-conditional"),
        (("train-generator", "no", "-o", "{out}"), "magvit2 tokenize"),
        (("train-generator", "{codes}", "-o", "{out}", "--num_valid_latents", "50"), "hold out"),
        (("evaluate-generator", "{codes}", "--generator", "{gen}", "--model", "{model}", "-o",
          "{out}", "--perceptual_weights", "no.pth"), "there is no file no.pth"),
        (("evaluate-generator", "{codes}", "--generator", "{gen}", "--model", "{model}", "-o",
          "{out}", "--i3d", "no.pt"), "go together"),
    ],
)  # fmt: skip
def test_mistakes_are_named(words, text, trained, masked, film, model, run, tmp_path):
    names = dict(film=film, model=model, gen=trained[1], codes=trained[0], out=tmp_path / "out")
    names["masked"] = masked
    status, _, err = run(*(word.format(**names) for word in words))
    assert status in (1, 2)
    assert text in err
    if words[0] == "generate":  # no work has begun
        assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob("out/*"))
