"""`magvit2 evaluate` as users run it."""

import json
import re
import signal
import time

import pytest
import torch

from magvit2_pytorch.cli.main import main
from magvit2_pytorch.evaluation import evaluator
from magvit2_pytorch.losses.perceptual_networks import TRUNKS
from tests.conftest import build
from tests.data.clip_files import make_video
from tests.evaluation.reports import fake_i3d
from tests.processes import Started

OPTIONS = ("--num_frames", 3, "--device", "cpu")


def test_a_folder_is_measured_and_reported(run, tmp_path, model, clips):
    words = ("evaluate", "--model", model, "--data", clips, "-o", tmp_path / "report", *OPTIONS)
    status, said, err = run(*words, "--clips_per_video", 2)
    assert status == 0
    assert re.search(r"3 clips of 3 frames from 2 videos: PSNR \d+\.\d\d dB \(", said)
    assert "1 image: PSNR" in said
    assert "broken.mp4: cannot be decoded" in err
    assert "1 of 4 files were skipped" in err
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report["model"]["name"] == str(model)
    assert report["data"]["source"] == str(clips)
    assert report["videos"]["num_clips"] == 3
    names = {path.name for path in (tmp_path / "report").iterdir()}
    assert {"report.json", "report.md", "clips.jsonl", "videos.png", "images.png"} < names
    assert not [name for name in names if name.startswith(".")]

    status, said, _ = run(*words, "--clips_per_video", 2)
    assert status == 0
    assert "4 clips were measured before" in said
    status, said, err = run(*words)
    assert (status, said) == (1, "")
    assert "settings clips_per_video 2, not 1" in err


def test_networks_from_files(run, tmp_path, model, clips):
    trunk = TRUNKS["st_alexnet"]()
    torch.save(trunk.state_dict(), tmp_path / "weights.pth")
    i3d = fake_i3d(tmp_path / "i3d.pt")
    (tmp_path / "videos").mkdir()
    make_video(tmp_path / "videos" / "x.mkv", 5, 24, 32, codec="ffv1")
    words = ("--perceptual_weights", tmp_path / "weights.pth", "--i3d", i3d)
    status, _, err = run(
        *("evaluate", "--model", model, "--data", tmp_path / "videos", "-o", tmp_path / "report"),
        *(*words, "--fvd_protocol", "stylegan-v", "--num_frames", 4, "--device", "cpu"),
    )
    assert (status, err) == (0, "")
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report["judges"]["perceptual"]["name"] == "st_alexnet features"
    assert report["videos"]["metrics"]["perceptual"]["mean"] > 0
    distances = report["videos"]["frechet"]
    assert set(distances) == {"frechet_frames", "frechet_motion", "fvd_stylegan_v"}
    # One clip has features, but nothing to spread.
    assert distances["fvd_stylegan_v"]["distance"] is None


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["--i3d", "x.pt"], 2, "go together"),
        (["--fvd_protocol", "logits"], 2, "go together"),
        (["--perceptual_heads", "torchmetrics"], 2, "goes with --perceptual_weights"),
        (["--crop"], 2, "give a size"),
        (["--num_frames", "0"], 2, "num_frames is 0"),
        (["--split", "test"], 2, "split"),
        (["--i3d", "{clips}/one.mp4", "--fvd_protocol", "logits"], 1, "not a TorchScript"),
        (["--i3d", "{clips}/none", "--fvd_protocol", "logits"], 1, "there is no file"),
        (["--perceptual_weights", "{clips}/none.pth"], 1, "there is no file"),
        (["--tile_size", "5"], 1, "tile_size 5"),
        (["--split", "valid"], 1, "cannot be split"),
    ],
)
def test_what_cannot_be_is_said_before_any_work(run, tmp_path, model, clips, words, status, said):
    words = [word.format(clips=clips) for word in words]
    found, out, err = run(
        *("evaluate", "--model", model, "--data", clips, "-o", tmp_path / "report", *words)
    )
    assert (found, out) == (status, "")
    assert said in " ".join(err.split())
    assert not (tmp_path / "report").exists()


def test_places_that_are_not_there_are_said(run, tmp_path, model, clips):
    (tmp_path / "file").touch()
    for data, at, output, said in (
        (clips / "none", model, tmp_path / "report", "does not exist"),
        (clips, clips, tmp_path / "report", "holds no tokenizer"),
        (clips, model, tmp_path / "file", "is a file"),
        (tmp_path, model, tmp_path / "report", "no videos in"),
    ):
        status, out, err = run("evaluate", "--model", at, "--data", data, "-o", output)
        assert (status, out) == (1, "")
        assert said in err
        assert err.count("\n") == 1
    build("cond_residual").save_pretrained(tmp_path / "conditional")
    words = ("--model", tmp_path / "conditional", "--data", clips, "-o", tmp_path / "report")
    assert "conditional" in run("evaluate", *words)[2]
    assert not (tmp_path / "report").exists()


def test_nothing_usable_is_status_1(run, tmp_path, model, clips):
    words = ("--model", model, "--data", clips / "broken.mp4", "-o", tmp_path / "report")
    status, _, err = run("evaluate", *words)
    assert status == 1
    assert "no clip could be measured: broken.mp4" in err


def saving_each_clip(words):
    evaluator.SAVE_EVERY_S = 0.0
    return main(words)


def test_ctrl_c_keeps_what_is_done_and_the_same_command_goes_on(run, tmp_path, model):
    (tmp_path / "data").mkdir()
    for number in range(9):
        make_video(tmp_path / "data" / f"{number:02}.mkv", 5, 64, 64, codec="ffv1")
    words = ("evaluate", "--model", model, "--data", tmp_path / "data", "-o", tmp_path / "report")
    words = [*map(str, words), "--num_frames", "5", "--device", "cpu"]
    journal = tmp_path / "report" / "clips.jsonl"
    with Started(saving_each_clip, words) as process:
        while process.poll() is None:
            if journal.exists() and journal.read_bytes().count(b"\n") > 3:
                break
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        assert process.wait() == 130, process.stderr
        assert "run the same command again to continue" in process.stderr
        assert "Traceback" not in process.stderr
    done = journal.read_bytes().count(b"\n") - 1
    assert 3 <= done < 9
    assert not (tmp_path / "report" / "report.json").exists()
    status, said, _ = run(*words)
    assert status == 0
    assert f"{done} clips were measured before" in said
    assert "9 clips of 5 frames from 9 videos" in said
