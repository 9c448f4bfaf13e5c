"""One film to new scenes on a tiny film: every stage, killed once and gone on with."""

import json
import re
import signal

import numpy as np
import pytest

from magvit2_pytorch.cli.main import main
from magvit2_pytorch.evaluation import film_run, film_stages, generator_run
from magvit2_pytorch.evaluation.film_run import STAGES, run_film
from magvit2_pytorch.evaluation.film_work import SHARES, FilmOptions, FilmWork
from magvit2_pytorch.media.video_reader import VideoFile
from magvit2_pytorch.training.trainer import Trainer
from tests.data.clip_files import make_video

SIZE = (32, 48)
TOKENIZER_STEPS, GENERATOR_STEPS = 5, 4
GENERATOR = dict(
    model=dict(dim=16, depth=1, heads=2),
    training=dict(num_train_steps=GENERATOR_STEPS, crop=(2, 2), num_latent_frames=2),
)


def pictures(grey):
    """Two shots with motion, black between them, and a card."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    strengths = np.array([1.0, 1.0, 1.0] if grey else [1.0, 0.8, 0.5])

    def frame(levels):
        return (levels[..., None] * strengths).clip(0, 255).astype(np.uint8)

    for number in range(34):
        yield frame(130 + 60 * np.sin(x / 7 + number / 4))
    for _ in range(5):
        yield frame(np.full(SIZE, 10.0))
    for number in range(30):
        yield frame(100 + 80 * np.sin(y / 5 - number / 3))
    for _ in range(20):
        yield frame(40 + 150.0 * ((x // 8 + y // 8) % 2))


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    path = tmp_path_factory.mktemp("film") / "grey.mp4"
    return make_video(path, height=SIZE[0], width=SIZE[1], fps=12, frames=pictures(grey=True))


def work_of(film, folder, lines=None, **options):
    defaults = dict(preset="tiny", size=16, scenes=2, seconds=0.5, views="shift:2")
    return FilmWork(
        film,
        folder,
        FilmOptions(**(defaults | options)),
        tokenizer_options={"training": {"num_train_steps": TOKENIZER_STEPS}},
        generator_options=GENERATOR,
        say=(lines if lines is not None else []).append,
    )


def kill(patch, place, name, after):
    """Makes a function raise KeyboardInterrupt at its call number `after`, counted from 0."""
    whole, calls = getattr(place, name), []

    def killed(*args, **options):
        calls.append(args)
        if len(calls) > after:
            raise KeyboardInterrupt
        return whole(*args, **options)

    patch.setattr(place, name, killed)


def press_ctrl_c(patch, after):
    """Sends SIGINT within the training step of this number."""
    whole, calls = Trainer.train_step, []

    def stopped(self, *args):
        calls.append(self)
        if len(calls) == after:
            signal.raise_signal(signal.SIGINT)
        return whole(self, *args)

    patch.setattr(Trainer, "train_step", stopped)


KILLED = {
    "cut": lambda patch: kill(patch, film_stages, "write_grid", 0),
    "tokenizer": lambda patch: press_ctrl_c(patch, 2),
    "codes": lambda patch: kill(patch, generator_run, "write_codes", 1),
    "generator": lambda patch: press_ctrl_c(patch, 3),
    "super_resolution": lambda patch: press_ctrl_c(patch, 2),
    "scenes": lambda patch: kill(patch, film_stages, "generate_films", 1),
}


def files_of(folder):
    kept = (*folder.rglob("*.mp4"), *folder.rglob("*.safetensors"))
    return {
        path: path.stat().st_mtime_ns
        for path in kept
        if not {"checkpoints", "frames"} & set(path.parts) and not path.name.startswith("step-")
    }


@pytest.fixture(scope="module")
def done(film, tmp_path_factory):
    """The folder of a run that was killed once in each stage, and what was printed."""
    folder, printed = tmp_path_factory.mktemp("done") / "out", []
    for stage, killing in KILLED.items():
        before = files_of(folder)
        with pytest.MonkeyPatch.context() as patch:
            killing(patch)
            if stage != "cut":  # measured before it was killed
                patch.setattr(film_stages, "measure_frames", None)
            with pytest.raises(KeyboardInterrupt):
                run_film(work_of(film, folder))
        assert json.loads((folder / stage / "stage.json").read_text())["figures"] is None
        now = files_of(folder)
        assert set(before) < set(now) or stage not in ("codes", "scenes")
        assert {path: now[path] for path in before} == before, "done work was done again"
        printed.append(stage)
    page = run_film(work_of(film, folder, printed))
    return folder, page, printed


def test_each_stage_goes_on_and_none_is_repeated(done, film):
    folder, _, printed = done
    figures = {name: json.loads((folder / name / "stage.json").read_text()) for name in STAGES}
    assert figures["cut"]["figures"]["parts"] == {"shot": 2, "blank": 1, "still": 1}
    assert figures["cut"]["figures"]["channels"] == 1
    assert figures["tokenizer"]["figures"]["steps"] == TOKENIZER_STEPS
    assert figures["generator"]["figures"]["steps"] == GENERATOR_STEPS
    assert figures["super_resolution"]["figures"]["steps"] == TOKENIZER_STEPS
    assert figures["codes"]["figures"]["num_files"] == 4
    for name in ("tokenizer", "generator", "super_resolution"):
        values = figures[name]["figures"]
        assert values["elapsed_s"] >= values["trained_s"] > 0
    said = [line for line in printed if "done before" in line]
    assert [line.split(":")[0] for line in said] == list(STAGES)[:-1]
    log = (folder / "tokenizer" / "log.jsonl").read_text()
    steps = [json.loads(line).get("step") for line in log.splitlines()]
    assert max(step for step in steps if step) == TOKENIZER_STEPS


def test_a_complete_run_does_nothing_again(done, film, monkeypatch):
    folder, page, _ = done
    text, files = page.read_text(), files_of(folder)
    nothing = {name: stage._replace(do=None) for name, stage in STAGES.items()}
    monkeypatch.setattr(film_run, "STAGES", nothing)
    assert run_film(work_of(film, folder)).read_text() == text
    assert files_of(folder) == files


def test_the_page_shows_files_that_exist(done):
    folder, page, _ = done
    text = page.read_text()
    targets = re.findall(r"\]\(([^)]+)\)", text)
    assert len(targets) > 8
    assert [target for target in targets if not (folder / target).exists()] == []
    for words in ("dB on held-out tails", "last frame repeated", "Sound is not part"):
        assert words in text


def test_scenes_begin_with_a_tail_and_from_nothing(done):
    folder, _, _ = done
    names = sorted(path.stem for path in (folder / "scenes").glob("*.mp4"))
    assert names == ["after-0000000", "scene-1"]
    videos = [VideoFile(folder / "scenes" / f"{name}.mp4") for name in names]
    # Nine frames of the prompt, and half a second, at twice the tokenized size.
    assert [video.num_frames for video in videos] == [9 + 6, 6]
    assert {(video.height, video.width) for video in videos} == {(32, 48)}
    record = json.loads((folder / "scenes" / "after-0000000.json").read_text())
    assert record["top_p"] == 0.9
    assert (record["prompt_frames"], record["film"]) == (9, "grey.mp4")


def test_other_settings_are_refused(done, film):
    folder, _, _ = done
    with pytest.raises(ValueError, match=r"cut was begun with size 16, not 20"):
        run_film(work_of(film, folder, size=20))
    with pytest.raises(ValueError, match=r"scenes was begun with seconds 0.5, not 1.0"):
        run_film(work_of(film, folder, seconds=1.0))
    lines = []
    run_film(work_of(film, folder, lines, minutes=99.0))
    assert all("done before" in line for line in lines)


def test_the_command_goes_on_with_a_run(done, film, capsys):
    words = "--preset tiny --size 16 --scenes 2 --seconds 0.5 --views shift:2"
    words = [*words.split(), "--minutes", "3"]
    assert main(["film", str(film), "-o", str(done[0]), *words]) == 0
    said = capsys.readouterr().out
    assert said.count("done before") == len(STAGES)
    assert said.endswith(f"Wrote {done[1]}\n")


@pytest.mark.slow
def test_the_command_does_a_film_in_colour_in_seconds(tmp_path, capsys):
    path = make_video(tmp_path / "a.mp4", height=32, width=48, fps=12, frames=pictures(grey=False))
    words = ["film", str(path), "-o", str(tmp_path / "out"), "--preset", "tiny", "--size", "16"]
    words += ["--minutes", "0.02", "--scenes", "1", "--seconds", "0.2", "--scale", "1"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "the film is in colour" in said
    # In so little time no view is tokenized but the film itself.
    assert "codes of 2 of 16 shots and views" in said
    assert "super_resolution: left out\n" in said


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["no.mp4"], "there is no file no.mp4"),
        (["{film}", "--minutes", "0"], "minutes is 0"),
        (["{film}", "--size", "32"], "small trains on crops of 64 pixels"),
        (["{film}", "--scale", "3"], "scale"),
        (["{film}", "--min_frames", "200", "--size", "64"], "no shot of 200 frames or more"),
        (["{film}", "--min_frames", "20", "--size", "64"], "a shot needs 42"),
        (["{film}", "--cut", "-1"], "cut is -1"),
    ],
)
def test_mistakes_are_named(words, text, film, tmp_path, capsys):
    words = [word.format(film=film) for word in words]
    assert main(["film", *words, "-o", str(tmp_path / "out")]) in (1, 2)
    error = capsys.readouterr().err
    assert text in error
    assert "Traceback" not in error


def test_shares_of_time_are_shares_of_all():
    options = FilmOptions(minutes=20.0, generator_minutes=3.0)
    assert options.minutes_of("tokenizer") == pytest.approx(8.0)
    assert options.minutes_of("generator") == 3.0
    assert sum(SHARES.values()) < 1
