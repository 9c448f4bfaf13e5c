"""train: options from preset, file and command line; what a run leaves; how it goes on."""

import json
import os
import re
import signal

import pytest
import torch
import yaml

from magvit2_pytorch import VideoTokenizer
from magvit2_pytorch.media.images import write_image
from magvit2_pytorch.pipelines.fingerprint import fingerprint
from magvit2_pytorch.tokenizer.presets import PRESETS, preset, recipe
from magvit2_pytorch.training.tokenizer_task import VideoTokenizerTrainer
from magvit2_pytorch.training.training_config import TrainingConfig
from tests.conftest import build, random_video
from tests.data.clip_files import make_video

QUICK = ("--preset", "tiny", "--num_train_steps", 2, "--batch_size", 2, "--num_frames", 3,
         "--device", "cpu")  # fmt: skip


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for number in range(4):
        make_video(folder / f"{number}.avi", 6, 16, 16, codec="mpeg4")
    return folder


@pytest.fixture
def resolved(run):
    """The configuration that a command line comes down to."""

    def resolved(*words):
        status, out, err = run("train", *words, "--print_config")
        assert status == 0, err
        return yaml.safe_load(out)

    return resolved


@pytest.mark.parametrize("name", ["tiny", "small"])
def test_only_what_is_said_goes_before_preset_and_recipe(resolved, name):
    values = resolved("x", "-o", "y", "--preset", name, "--fps", 5, "--model.init_dim", 12)
    plain = json.loads(json.dumps(preset(name) | {"init_dim": 12}))
    assert {key: values["model"][key] for key in plain} == plain
    training = TrainingConfig(**recipe(name) | {"fps": 5.0}).to_dict()
    del training["results_folder"], training["checkpoints_folder"]
    training["precision"] = recipe(name).get("precision", "fp32")  # as written: machines differ
    assert values["training"] == training


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be", "latin-1"])
def test_files_of_options_in_other_encodings(resolved, run, tmp_path, encoding):
    path = tmp_path / "cafe\u0301.yaml"
    path.write_text("# \xe9t\xe9\ntraining:\n  fps: 3\n", encoding=encoding)
    words = ("x", "-o", "y", "--preset", "tiny", "--config", tmp_path / "caf\xe9.yaml")
    if encoding == "utf-8-sig":
        assert resolved(*words)["training"]["fps"] == 3
        return
    status, _, err = run("train", *words)
    assert status == 2
    assert "save it as UTF-8" in err


def test_layers_are_nested_lists(resolved):
    layers = "[residual, [compress_space, 64], [attend_time, {window: 3}], residual]"
    values = resolved("x", "-o", "y", "--model.layers", layers)
    expected = ["residual", ["compress_space", 64], ["attend_time", {"window": 3}], "residual"]
    assert values["model"]["layers"] == expected
    values = resolved("x", "-o", "y", "--model.layers", json.dumps(expected))
    assert values["model"]["layers"] == expected


@pytest.mark.parametrize(
    ("file_first", "training"),
    [(True, "training: {fps: 3, seed: 1}"), (False, "fps: 3\nseed: 1")],
)
def test_what_is_typed_goes_before_the_file_and_the_file_before_the_preset(
    resolved, tmp_path, file_first, training
):
    file = tmp_path / "run.yaml"
    file.write_text(
        f"data: a\noutput: b\npreset: tiny\n{training}\nmodel: {{init_dim: 16, max_dim: 32}}\n"
    )
    typed = ["-o", "c", "--seed", 2, "--model.max_dim", 64]
    words = ["--config", file, *typed] if file_first else [*typed, "--config", file]
    values = resolved(*words)
    assert (values["data"], values["output"], values["preset"]) == ("a", "c", "tiny")
    assert (values["training"]["fps"], values["training"]["seed"]) == (3.0, 2)
    assert (values["model"]["init_dim"], values["model"]["max_dim"]) == (16, 64)
    assert values["model"]["codebook_size"] == preset("tiny")["codebook_size"]
    assert values["training"]["learning_rate"] == recipe("tiny")["learning_rate"]
    assert resolved("typed", *words)["data"] == "typed"
    values = resolved(*words, "--preset", "small")
    assert values["preset"] == "small"
    assert values["training"]["learning_rate"] == recipe("small")["learning_rate"]


@pytest.mark.parametrize("name", ["tiny", "o2-image"])
def test_a_preset_is_a_file_of_options(resolved, name):
    words = ("x", "-o", "y")
    assert resolved(*words, "--preset", name) == resolved(*words, "--config", PRESETS[name])


def test_a_run_leaves_a_tokenizer_and_a_configuration_that_makes_it_again(
    run, tmp_path, videos, resolved
):
    first, second = tmp_path / "first", tmp_path / "second"
    status, said, _ = run(
        "train", videos, "-o", first, *QUICK, "--model.codebook_size", "null",
        "--model.use_fsq", "true", "--model.fsq_levels", "[8, 5]", "--max_grad_norm", "null",
    )  # fmt: skip
    assert status == 0
    assert re.search(r"Trained 2 steps, best valid/psnr \d+\.\d\d at step 2\. Wrote", said)
    tokenizer = VideoTokenizer.from_pretrained(first / "tokenizer")
    assert tokenizer.codebook_size == 40
    assert (first / "checkpoints" / "step-2").is_dir()
    assert run("train", "--config", first / "config.yaml", "-o", second)[0] == 0
    ours, theirs = (yaml.safe_load((f / "config.yaml").read_text()) for f in (first, second))
    assert theirs == ours | {"output": str(second)}
    assert ours["training"]["max_grad_norm"] is None
    assert not {"results_folder", "batch_size"} & set(ours)
    weights = [(f / "tokenizer" / "model.safetensors").read_bytes() for f in (first, second)]
    assert weights[0] == weights[1]
    assert tokenizer.config == VideoTokenizer.from_pretrained(second / "tokenizer").config
    # The folder of a run is a model for the other commands.
    out = tmp_path / "codes"
    assert run("tokenize", videos / "0.avi", "--model", first, "-o", out)[0] == 0
    about = json.loads(run("info", first / "checkpoints" / "step-2", "--json")[1])
    assert (about["kind"], about["step"]) == ("checkpoint", 2)


@pytest.mark.parametrize("flag", ["--dry-run", "--dry_run"])
def test_a_dry_run_prints_a_plan_and_leaves_nothing(run, tmp_path, videos, flag):
    status, said, err = run("train", videos, "-o", tmp_path / "run", *QUICK, flag)
    assert (status, err) == (0, "")
    assert said.startswith("Plan of 2 steps on cpu, 1 process, fp32")
    assert "3 clips to train on, 1 held out" in said
    assert not list(tmp_path.iterdir())


def test_a_dry_run_goes_on_and_refuses_as_training_does(run, tmp_path, videos):
    words = ("train", videos, "-o", tmp_path / "run", *QUICK)
    assert run(*words)[0] == 0
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")}
    status, _, err = run(*words, "--dry-run")
    assert status == 1
    assert "--resume latest" in err
    more = ("--resume", "latest", "--num_train_steps", 5)
    status, said, _ = run(*words, *more, "--dry-run")
    assert status == 0
    assert "Plan of 3 steps" in said
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")} == before
    (tmp_path / "file").touch()
    status, _, err = run("train", videos, "-o", tmp_path / "file" / "run", *QUICK, "--dry-run")
    assert status == 1
    assert "Not a directory" in err


def test_resuming(run, tmp_path, videos):
    out = tmp_path / "run"
    words = ("train", videos, "-o", out, *QUICK)
    status, _, err = run(*words, "--resume", "latest")
    assert status == 1
    assert "no checkpoint" in err
    assert not out.exists()
    assert run(*words, "--resume", "auto", "--checkpoint_every_step", 1)[0] == 0
    status, _, err = run(*words)
    assert status == 1
    assert "--resume latest" in err
    config = ("train", "--config", out / "config.yaml")
    status, said, _ = run(*config, "--resume", "latest", "--num_train_steps", 3)
    assert status == 0
    assert "step-2, step 2" in said
    assert "Trained 3 steps" in said
    status, said, _ = run(*config, "--resume", out / "checkpoints" / "step-1")
    assert "step-1, step 1" in said
    status, _, err = run(*config, "--resume", out / "checkpoints" / "step-9")
    assert status == 1
    assert "step-9" in err
    status, _, err = run(*config, "--resume", out)
    assert status == 1
    assert "not a training checkpoint" in err
    (out / "checkpoints" / "step-11").mkdir()  # cut short: no state in it
    assert "step 3" in run(*config, "--resume", "auto")[1]


def test_ctrl_c_saves_and_says_how_to_go_on(run, tmp_path, videos, monkeypatch):
    step = VideoTokenizerTrainer.train_step

    def interrupted(self, *args):
        if self.step == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, *args)

    monkeypatch.setattr(VideoTokenizerTrainer, "train_step", interrupted)
    out = tmp_path / "run"
    status, said, _ = run("train", videos, "-o", out, *QUICK, "--num_train_steps", 50)
    assert status == 130
    assert f"--resume {out / 'checkpoints' / 'step-2'}" in said
    monkeypatch.undo()
    config = ("train", "--config", out / "config.yaml", "--num_train_steps", 3)
    assert run(*config, "--resume", "latest")[0] == 0


def test_images_train_too(run, tmp_path, clips):
    from magvit2_pytorch.media.images import read_image, write_image

    picture = read_image(clips / "picture.png")
    for number in range(3):
        write_image(tmp_path / "in" / f"{number}.png", picture.repeat(2, 2, 1))
    words = ("train", tmp_path / "in", "-o", tmp_path / "out", *QUICK)
    assert run(*words, "--type", "images")[0] == 0
    status, _, err = run("train", tmp_path / "in", "-o", tmp_path / "other", *QUICK)
    assert status == 1
    assert "no videos" in err


def test_wandb_is_a_short_name(run, tmp_path, videos, monkeypatch):
    seen = {}

    def trainer(tokenizer, **options):
        seen.update(options)
        raise ValueError("far enough")

    monkeypatch.setattr("magvit2_pytorch.training.tokenizer_task.VideoTokenizerTrainer", trainer)
    status, _, err = run("train", videos, "-o", tmp_path, "--wandb")
    assert (status, err) == (1, "magvit2: error: far enough\n")
    assert seen["use_wandb_tracking"] is True
    assert seen["results_folder"] == str(tmp_path)
    assert seen["checkpoints_folder"] == str(tmp_path / "checkpoints")
    assert run("train", videos, "-o", tmp_path)[0] == 1
    assert seen["use_wandb_tracking"] is False


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["{videos}"], 2, "output"),
        (["-o", "{out}"], 2, "data"),
        (["/nowhere", "-o", "{out}"], 1, "/nowhere"),
        (["{videos}", "-o", "{out}", "--preset", "tinny"], 2, "tiny"),
        (["{videos}", "-o", "{out}", "--learning_rat", "1"], 2, "learning_rat"),
        (["{videos}", "-o", "{out}", "--learning_rate", "fast"], 2, "learning_rate"),
        (["{videos}", "-o", "{out}", "--learning_rate", "0"], 2, "learning_rate"),
        (["{videos}", "-o", "{out}", "--model.layers", "[residul]"], 2, "residual"),
        (["{videos}", "-o", "{out}", "--model.codebook_size", "1000"], 2, "use_fsq to false"),
        (
            ["{videos}", "-o", "{out}", "--preset", "tiny", "--model.codebook_size", "1000"],
            2,
            "power of two",
        ),
        (["{videos}", "-o", "{out}", "--config", "/nowhere.yaml"], 2, "nowhere.yaml"),
        (["{videos}", "-o", "{out}", "--results_folder", "x"], 2, "results_folder"),
    ],
)
def test_mistakes_are_said_before_training(run, tmp_path, videos, words, status, said):
    places = dict(videos=videos, out=tmp_path / "out")
    code, _, err = run("train", *(word.format(**places) for word in words))
    assert code == status
    assert said in err
    assert not (tmp_path / "out").exists()


def test_a_file_with_an_unknown_key_is_refused(run, tmp_path, videos):
    (tmp_path / "run.yaml").write_text("model: {int_dim: 8}\n")
    words = ("train", videos, "-o", tmp_path / "out", "--config", tmp_path / "run.yaml")
    status, _, err = run(*words)
    assert status == 2
    assert "int_dim" in err


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(3):
        picture = torch.randint(256, (16, 16, 3), dtype=torch.uint8)
        write_image(folder / f"{number}.png", picture)
    return folder


STILL = "[[magvit2_encoder_residual, 1], [magvit2_compress_space, 8, 1]]"
MOVING = "[[magvit2_encoder_residual, 1], [magvit2_compress_space_time, 8, 1]]"
IN_SPACE = "[1, 3, 3]"


def stage_one(run, pictures, folder):
    kernels = [f"--model.{n}_conv_kernel_size" for n in ("input", "residual", "latent", "output")]
    status, _, err = run(
        "train", pictures, "-o", folder, "--type", "images", *QUICK, "--model.layers", STILL,
        "--image_batch_size", 2, *(word for name in kernels for word in (name, IN_SPACE)),
    )  # fmt: skip
    assert status == 0, err


def test_stage_two_starts_from_the_images_of_stage_one(run, videos, pictures, tmp_path):
    """Nothing is trained in between: the tokenizer of the second run is the first's, inflated."""
    stage_one(run, pictures, tmp_path / "one")
    status, _, err = run(
        "train", videos, "-o", tmp_path / "two", *QUICK, "--model.layers", MOVING,
        "--init_from", tmp_path / "one", "--images", pictures, "--image_batch_size", 2,
        "--image_frac", 0.5, "--learning_rate", 1e-30,
    )  # fmt: skip
    assert status == 0, err
    one, two = (VideoTokenizer.from_pretrained(tmp_path / n / "tokenizer") for n in ("one", "two"))
    assert (one.time_factor, two.time_factor) == (1, 2)
    image = torch.rand(1, 3, 16, 16) * 2 - 1
    torch.testing.assert_close(two(image), one(image), atol=1e-5, rtol=0)
    log = (tmp_path / "two/log.jsonl").read_text()
    assert "valid/image_psnr" in log
    saved = yaml.safe_load((tmp_path / "two/config.yaml").read_text())
    assert saved["init_from"] == str(tmp_path / "one")
    assert saved["images"] == str(pictures)


def test_a_decoder_that_draws_larger_frames_has_the_codes_of_its_start(run, videos, tmp_path):
    model = ("--model", tmp_path / "large")
    VideoTokenizer.from_preset("tiny").save_pretrained(tmp_path / "small")
    words = (*QUICK, "--init_from", tmp_path / "small", "--model.patch_size", 2)
    words += ("--model.image_size", 32)
    status, _, err = run(
        "train", videos, "-o", tmp_path / "large", *words, "--freeze_encoder", "true"
    )
    assert status == 0, err
    small = VideoTokenizer.from_pretrained(tmp_path / "small")
    large = VideoTokenizer.from_pretrained(tmp_path / "large/tokenizer")
    assert large.config.codes_of == fingerprint(small)
    video = random_video(3, (32, 64))
    shrunk = torch.nn.functional.avg_pool3d(video, (1, 2, 2))
    torch.testing.assert_close(large.encode(video), small.encode(shrunk), atol=1e-5, rtol=0)
    assert run("tokenize", videos, "--model", tmp_path / "small", "-o", tmp_path / "codes")[0] == 0
    assert run("decode", tmp_path / "codes", *model, "-o", tmp_path / "out")[0] == 0
    status, _, err = run("train", videos, "-o", tmp_path / "other", *words)
    assert status == 0, err
    assert VideoTokenizer.from_pretrained(tmp_path / "other/tokenizer").config.codes_of is None


def test_what_is_no_start_is_said_before_work_begins(run, videos, pictures, tmp_path):
    words = ("train", videos, "-o", tmp_path / "run", *QUICK)
    status, _, err = run(*words, "--init_from", tmp_path / "nowhere")
    assert status != 0
    assert "--init_from is the folder of a tokenizer" in err
    stage_one(run, pictures, tmp_path / "one")
    status, _, err = run(*words, "--init_from", tmp_path / "one")
    assert status != 0
    assert "cannot start from" in err
    status, _, err = run(*words, "--images", tmp_path / "nowhere")
    assert status != 0
    assert "--images is a folder of images" in err
    assert not (tmp_path / "run").exists()


def test_a_start_without_a_preset_gives_the_model(tmp_path, resolved):
    """As a converted tokenizer does, with the recipe of the preset that equals it."""
    tokenizer = build("vidtok_compress_time_linear", "compress_space", repeat_first_frame=True)
    tokenizer.save_pretrained(tmp_path / "converted")
    values = resolved("x", "-o", "y", "--init_from", tmp_path / "converted")
    assert values["model"] == tokenizer.config.to_dict()
    assert values["training"]["learning_rate"] == TrainingConfig().learning_rate
    VideoTokenizer.from_preset("tiny").save_pretrained(tmp_path / "tiny")
    values = resolved("x", "-o", "y", "--init_from", tmp_path / "tiny")
    assert values["training"]["learning_rate"] == recipe("tiny")["learning_rate"]
