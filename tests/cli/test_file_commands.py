"""tokenize, decode and reconstruct on files and folders."""

import re
import shutil

import av
import pytest
import torch

from magvit2_pytorch import VideoTokenizer
from magvit2_pytorch.codes.code_file import read_codes
from magvit2_pytorch.media.images import read_image
from magvit2_pytorch.media.video_reader import VideoFile
from magvit2_pytorch.pipelines import inference
from magvit2_pytorch.pipelines.files import decoded_frames, tokenize_file
from tests.conftest import build
from tests.data.clip_files import make_film


def names(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_a_file_becomes_a_code_file_and_a_video_again(run, tmp_path, model, clips):
    codes, out = tmp_path / "new" / "one.codes.safetensors", tmp_path / "out.mp4"
    status, said, _ = run("tokenize", clips / "one.mp4", "--model", model, "-o", codes)
    assert status == 0
    assert "6 frames, 22 x 18" in said
    stored, video = read_codes(codes)
    tokenizer = VideoTokenizer.from_pretrained(model)
    assert torch.equal(stored, tokenize_file(tokenizer, clips / "one.mp4")[0])
    assert video.header.tokenizer == str(model)
    assert video.source == "one.mp4"

    status, _, err = run("decode", codes, "--model", model, "-o", out)
    assert (status, err) == (0, "")
    file = VideoFile(out)
    assert (file.num_frames, file.height, file.width) == (6, 18, 22)
    assert file.fps == pytest.approx(10, rel=1e-3)
    frames = torch.cat(list(decoded_frames(tokenizer, stored, video)))
    # Means over a frame survive the codec, colours of single pixels do not.
    means = file.read(range(6)).float().mean((1, 2))
    torch.testing.assert_close(means, frames.float().mean((1, 2)), atol=4, rtol=0)


def test_a_folder_is_mirrored_and_damaged_files_are_named(run, tmp_path, model, clips):
    status, said, err = run("tokenize", clips, "--model", model, "-o", tmp_path / "codes")
    assert status == 0
    assert names(tmp_path / "codes") == [
        "more/two.codes.safetensors",
        "one.codes.safetensors",
        "picture.codes.safetensors",
    ]
    assert said.count("\n") == 3
    assert "broken.mp4" in err
    assert "1 of 4 files were skipped" in err
    status, _, err = run("decode", tmp_path / "codes", "--model", model, "-o", tmp_path / "out")
    assert (status, err) == (0, "")
    assert names(tmp_path / "out") == ["more/two.mp4", "one.mp4", "picture.png"]
    assert read_image(tmp_path / "out" / "picture.png").shape == (9, 13, 3)


def test_several_inputs_go_to_a_folder(run, tmp_path, model, clips):
    inputs = [clips / "one.mp4", clips / "picture.png"]
    assert run("tokenize", *inputs, "--model", model, "-o", tmp_path / "v1.0")[0] == 0
    assert len(names(tmp_path / "v1.0")) == 2
    assert run("tokenize", inputs[0], "--model", model, "-o", tmp_path / "v1.0")[0] == 0
    status, _, err = run(
        "tokenize", *inputs, "--model", model, "-o", tmp_path / "x.codes.safetensors"
    )
    assert status == 1
    assert "name a folder" in err


def test_names_that_meet_keep_their_suffixes(run, tmp_path, model, clips):
    for name in ("a/one.mp4", "a/one.mov", "b/one.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(clips / "one.mp4", tmp_path / name)
    assert run("tokenize", tmp_path / "a", "--model", model, "-o", tmp_path / "out")[0] == 0
    assert names(tmp_path / "out") == ["one.mov.codes.safetensors", "one.mp4.codes.safetensors"]
    both = (tmp_path / "a" / "one.mp4", tmp_path / "b" / "one.mp4")
    status, _, err = run("tokenize", *both, "--model", model, "-o", tmp_path / "other")
    assert status == 1
    assert "would both become" in err
    assert not (tmp_path / "other").exists()


def test_nothing_usable_is_status_1(run, tmp_path, model, clips):
    for name in ("x.mp4", "y.mp4"):
        shutil.copy(clips / "broken.mp4", tmp_path / name)
    out = tmp_path / "out"
    status, said, err = run("tokenize", tmp_path, "--model", model, "-o", out)
    assert (status, said) == (1, "")
    assert "2 of 2 files were skipped" in err
    status, _, err = run("reconstruct", tmp_path / "x.mp4", "--model", model, "-o", out)
    assert status == 1
    assert err.startswith("magvit2: error: ")
    assert err.count("\n") == 1
    assert not out.exists()


@pytest.mark.parametrize(
    "words",
    [
        ["tokenize", "{clips}/none.mp4", "--model", "{model}", "-o", "{out}"],
        ["tokenize", "{clips}/notes.txt", "--model", "{model}", "-o", "{out}"],
        ["tokenize", "{clips}/one.mp4", "--model", "{clips}/none", "-o", "{out}"],
        ["tokenize", "{clips}/one.mp4", "--model", "{clips}", "-o", "{out}"],
        ["tokenize", "{clips}/one.mp4", "--model", "{model}", "-o", "{out}.pt"],
        ["tokenize", "{clips}/one.mp4", "{clips}", "--model", "{model}", "-o", "{clips}/notes.txt"],
        ["decode", "{clips}/one.mp4", "--model", "{model}", "-o", "{out}"],
        ["decode", "{clips}", "--model", "{model}", "-o", "{out}"],
        ["reconstruct", "{clips}/one.mp4", "--model", "{model}", "-o", "{out}.png"],
        ["reconstruct", "{clips}/one.mp4", "--model", "{model}", "-o", "{out}.webm"],
        ["reconstruct", "{clips}/picture.png", "--model", "{model}", "-o", "{out}.mp4"],
        ["reconstruct", "{clips}/one.mp4", "--model", "{model}", "-o", "{clips}/one.mp4"],
        ["reconstruct", "{clips}/one.mp4", "--model", "{model}", "-o", "{clips}"],
    ],
)
def test_what_cannot_be_is_said_before_any_work(run, tmp_path, model, clips, words, monkeypatch):
    def work(*args, **options):
        raise AssertionError("work has begun")

    for name in ("tokenize_file", "decode_file", "reconstruct_file"):
        monkeypatch.setattr(f"magvit2_pytorch.pipelines.files.{name}", work)
    before = names(clips)
    places = dict(clips=clips, model=model, out=tmp_path / "out")
    status, said, err = run(*(word.format(**places) for word in words))
    assert (status, said) == (1, "")
    assert re.fullmatch(r"magvit2: error: .+\n", err)
    assert names(clips) == before
    assert not names(tmp_path)


def test_another_tokenizer_is_refused_unless_forced(run, tmp_path, model, clips):
    torch.manual_seed(1)
    VideoTokenizer.from_preset("tiny").save_pretrained(tmp_path / "other")
    codes, out = tmp_path / "one.codes.safetensors", tmp_path / "out.mp4"
    run("tokenize", clips / "one.mp4", "--model", model, "-o", codes)
    status, _, err = run("decode", codes, "--model", tmp_path / "other", "-o", out)
    assert status == 1
    assert str(model) in err
    assert str(tmp_path / "other") in err
    assert "force" in err
    assert not out.exists()
    assert run("decode", codes, "--model", tmp_path / "other", "-o", out, "--force")[0] == 0


def test_damaged_models_and_codes_are_one_line(run, tmp_path, model, clips):
    codes = tmp_path / "x.codes.safetensors"
    codes.write_bytes(b"nothing")
    status, _, err = run("decode", codes, "--model", model, "-o", tmp_path / "x.mp4")
    assert status == 1
    assert "x.codes.safetensors" in err
    broken = shutil.copytree(model, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"nothing")
    status, _, err = run("reconstruct", clips / "one.mp4", "--model", broken, "-o", tmp_path / "o")
    assert status == 1
    assert "model.safetensors is damaged" in err


@pytest.mark.parametrize(
    ("quantizer", "layers"), [("continuous", "residual"), ("lfq", "cond_residual")]
)
def test_tokenizers_without_codes_or_with_a_condition(run, tmp_path, clips, quantizer, layers):
    build(layers, quantizer=quantizer).save_pretrained(tmp_path / "model")
    options = (clips / "one.mp4", "--model", tmp_path / "model", "-o", tmp_path / "out")
    status, _, err = run("tokenize", *options)
    assert status == 1
    assert ("continuous" if quantizer == "continuous" else "conditional") in err
    assert run("reconstruct", *options)[0] == (0 if quantizer == "continuous" else 1)


def test_reconstruct_measures_every_file(run, tmp_path, model, clips):
    status, said, err = run(
        "reconstruct", clips, "--model", model, "-o", tmp_path, "--size", 14, "--side_by_side"
    )
    assert status == 0
    assert "broken.mp4" in err
    numbers = [float(n) for n in re.findall(r"psnr (\d+\.\d+) dB", said)]
    assert len(numbers) == 3
    (mean,) = re.findall(r"mean psnr of 3 files: (\d+\.\d+) dB", said)
    assert float(mean) == pytest.approx(sum(numbers) / 3, abs=0.02)
    assert VideoFile(tmp_path / "one.mp4").width == 2 * 17
    assert VideoFile(tmp_path / "one.mp4").height == 14


@pytest.mark.filterwarnings("always:no more sound")
def test_reconstruct_keeps_sound_and_names_what_is_damaged(run, tmp_path, model):
    (tmp_path / "in").mkdir()
    make_film(tmp_path / "in" / "whole.mkv", num_frames=6)
    make_film(tmp_path / "in" / "hurt.mkv", "ac3", num_frames=40, damaged=(20,))
    (tmp_path / "in" / "text.mp4").write_text("not a film")
    words = ("reconstruct", tmp_path / "in", "--model", model, "-o", tmp_path / "out")
    status, said, err = run(*words, "--size", 16)
    assert status == 0
    assert said.count("psnr") == 3
    (warning,) = re.findall("magvit2: warning: (.*)", err)
    assert re.fullmatch(r"no more sound from .*hurt\.mkv: .*Invalid data.*", warning)
    for name in ("whole", "hurt"):
        with av.open(str(tmp_path / "out" / f"{name}.mp4")) as file:
            assert len(file.streams.audio) == 1
    assert VideoFile(tmp_path / "out" / "hurt.mp4").num_frames == 40


def test_chunks_and_precision_change_no_size(run, tmp_path, model, clips):
    for number, options in enumerate((["--chunk_frames", 2], ["--precision", "bf16"])):
        out = tmp_path / f"{number}.codes.safetensors"
        words = ("tokenize", clips / "one.mp4", "--model", model, "-o", out, "--device", "cpu")
        assert run(*words, *options)[0] == 0
        assert read_codes(out)[0].shape == (4, 5, 6)


@pytest.mark.parametrize("chosen", ["fp32", "bf16"])
def test_the_precision_that_is_chosen_is_said_and_stored(
    run, tmp_path, model, clips, monkeypatch, chosen
):
    reason = f"precision {chosen}: because"
    monkeypatch.setattr(inference, "choose_precision", lambda tokenizer: (chosen, reason))
    out = tmp_path / "x.codes.safetensors"
    words = ("tokenize", clips / "one.mp4", "--model", model, "-o", out, "--device", "cpu")
    status, _, err = run(*words, "--precision", "auto")
    assert status == 0
    assert err.count(f"magvit2: {reason}\n") == 1
    assert read_codes(out)[1].header.precision == chosen


def test_a_gpu_that_is_not_there_is_said(run, tmp_path, model, clips, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    words = ("tokenize", clips / "one.mp4", "--model", model, "-o", tmp_path, "--device", "cuda")
    status, _, err = run(*words)
    assert status == 1
    assert "--device cuda" in err
