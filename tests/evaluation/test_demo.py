"""The demo in seconds: a few steps on small clips, and everything it promises to write."""

import json
import math
from functools import partial

import pytest
import torch

from magvit2_pytorch import VideoTokenizer
from magvit2_pytorch.cli.main import main
from magvit2_pytorch.evaluation import demo_run as demo
from magvit2_pytorch.evaluation import generator_run
from magvit2_pytorch.media.video_reader import VideoFile
from magvit2_pytorch.pipelines.fingerprint import fingerprint
from magvit2_pytorch.training.tracking import read_log
from tests.data.clip_files import make_video


@pytest.fixture
def videos(tmp_path):
    folder = tmp_path / "videos"
    (folder / "deep").mkdir(parents=True)
    make_video(folder / "wide.mp4", num_frames=50, height=72, width=100)
    make_video(folder / "deep" / "wide.mp4", num_frames=44, height=80, width=64)
    return folder


@pytest.fixture
def half_size(monkeypatch):
    """Held-out frames of half of the demo's size."""
    held_out_clips = partial(demo.held_out_clips, short_side=demo.SHORT_SIDE // 2)
    monkeypatch.setattr(demo, "held_out_clips", held_out_clips)


@pytest.mark.parametrize("quantizer", ["fsq", pytest.param("lfq", marks=pytest.mark.slow)])
def test_it_writes_what_it_says(videos, tmp_path, quantizer, capsys, with_drawings, half_size):
    out = tmp_path / "out"
    options = ("--data", str(videos), "--minutes", "0.02", "--quantizer", quantizer)
    assert main(["demo", "--output", str(out), *options]) == 0
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["steps"] >= 1
    assert metrics["bits_per_pixel"] <= 0.0625
    assert [clip["name"] for clip in metrics["clips"]] == ["0-wide", "1-wide"]
    sizes = [(clip["height"], clip["width"]) for clip in metrics["clips"]]
    assert sizes == [(80, 64), (64, 80)]
    for clip, file in zip(metrics["clips"], ("deep/wide.mp4", "wide.mp4"), strict=True):
        side_by_side = VideoFile(out / f"{clip['name']}.mp4")
        assert side_by_side.num_frames == demo.HELD_OUT_FRAMES
        assert side_by_side.fps == pytest.approx(VideoFile(videos / file).fps)
        assert (out / f"{clip['name']}.png").is_file()
        cells = clip["height"] * clip["width"] // 64
        assert clip["tokens"] == 5 * cells
        bits = math.log2(metrics["codebook_size"])
        assert clip["compression_ratio"] == pytest.approx(24 * 17 * 64 / (5 * bits), abs=0.1)
    assert (out / "curves.png").is_file()
    assert read_log(out / "log.jsonl")
    tokenizer = VideoTokenizer.from_pretrained(out / "tokenizer")
    assert tokenizer.config.use_fsq == (quantizer == "fsq")


def test_continuations_of_held_out_frames_are_shown_beside_the_truth(
    tmp_path, capsys, monkeypatch, without_type_checks
):
    (tmp_path / "videos" / "deep").mkdir(parents=True)
    make_video(tmp_path / "videos" / "deep" / "a.mp4", num_frames=44, height=32, width=48)
    out = tmp_path / "out"

    def with_another_tokenizer(paths, folder, *args, **options):
        VideoTokenizer.from_preset("tiny").save_pretrained(folder / "tokenizer")
        return dict(clips=[], mean_psnr_db=0.0, steps=0, steps_per_s=0.0)

    monkeypatch.setattr(demo, "run_demo", with_another_tokenizer)
    monkeypatch.setattr(demo, "SHORT_SIDE", 16)
    monkeypatch.setattr(generator_run, "VIEWS", "flip")
    narrow = partial(generator_run.train_generator, model=dict(dim=16, depth=1, heads=2))
    monkeypatch.setattr(generator_run, "train_generator", narrow)
    words = ["demo", "--output", str(out), "--data", str(tmp_path / "videos"), "--generate"]
    assert main([*words, "--generate_minutes", "0.001"]) == 0
    said = capsys.readouterr().out
    report = json.loads((out / "continuations" / "report.json").read_text())
    likely, repeated = (report["prediction"][n][0] for n in ("most_likely", "repeated"))
    assert f"{likely:.2f} dB, last frame repeated {repeated:.2f} dB" in said
    assert f"{report['bits']:.2f} bits a code" in said
    (row,) = report["videos"]
    # Of two frames each: they lie within the 17 frames that the tokenizer has not seen.
    assert (row["video"], row["held_out_latents"]) == ("a.codes.safetensors", 8)
    assert (out / "continuations" / row["picture"]).is_file()
    assert len(list((out / "codes").iterdir())) == 2
    assert main([*words, "--generate_minutes", "0"]) == 2


def test_a_sharper_decoder_of_the_same_codes(videos, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"

    def with_a_small_tokenizer(paths, folder, *args, **options):
        layers = (("factorized_residual", 1), ("compress_space", 8))
        tokenizer = VideoTokenizer.from_preset("small", init_dim=8, layers=layers, image_size=32)
        tokenizer.save_pretrained(folder / "tokenizer")
        return dict(clips=[], mean_psnr_db=0.0, steps=0, steps_per_s=0.0)

    monkeypatch.setattr(demo, "run_demo", with_a_small_tokenizer)
    monkeypatch.setattr(demo, "SHORT_SIDE", 64)
    monkeypatch.setattr(demo, "SHARP", demo.SHARP | dict(adversarial_start_step=0))
    words = ["demo", "--output", str(out), "--data", str(videos / "deep"), "--sharp"]
    assert main([*words, "--sharp_minutes", "0.02"]) == 0
    figures = json.loads((out / "sharp" / "metrics.json").read_text())
    (before,), (after,) = figures["before"], figures["after"]
    assert before["name"] == after["name"] == "wide"
    assert before["psnr_db"] != after["psnr_db"]
    said = capsys.readouterr().out
    for name in ("psnr_db", "block_edges", "flicker"):
        assert f"{before[name]:7.2f} {after[name]:7.2f}\n" in said
    assert (out / "sharp" / "wide.png").is_file()
    lines = read_log(out / "sharp" / "log.jsonl")
    assert any("frame_adversarial" in line for line in lines)
    video = torch.randn(1, 3, 5, 32, 32).clamp(-1, 1)
    tokenizers = [VideoTokenizer.from_pretrained(x / "tokenizer") for x in (out, out / "sharp")]
    codes = [tokenizer.eval().tokenize(video) for tokenizer in tokenizers]
    assert torch.equal(*codes)
    assert tokenizers[1].config.codes_of == fingerprint(tokenizers[0])
    assert main([*words, "--sharp_minutes", "0"]) == 2


def test_every_quantizer_makes_a_tokenizer_of_at_most_16_bits():
    for name, options in demo.QUANTIZERS.items():
        tokenizer = VideoTokenizer.from_preset("small", **options)
        assert tokenizer.config.use_fsq == (name == "fsq")
        assert tokenizer.bits_per_pixel <= 0.0625


def test_frames_held_out_are_not_trained_on(videos):
    paths = demo.usable_clips(sorted(videos.rglob("*.mp4")))
    spec_end = -(demo.HELD_OUT_FRAMES + demo.GAP_FRAMES)
    for path, clip in zip(paths, demo.held_out_clips(paths), strict=True):
        file = VideoFile(path)
        last = file.read(range(file.num_frames - 17, file.num_frames), size=tuple(clip.shape[-2:]))
        difference = clip - (last.permute(3, 0, 1, 2) / 127.5 - 1)
        assert difference.abs().mean() < 0.05  # two ways of resizing; frames differ by far more
        assert file.num_frames + spec_end < file.num_frames - 17


def test_clips_that_do_not_do_are_named(videos, capsys):
    make_video(videos / "short.mp4", num_frames=20)
    (videos / "broken.mp4").write_bytes(b"nothing")
    paths = sorted(videos.rglob("*.mp4"))
    with pytest.warns(UserWarning, match="skipped") as caught:
        assert len(demo.usable_clips(paths)) == 2
    said = "\n".join(str(warning.message) for warning in caught)
    assert "short.mp4: 20 frames, but the demo needs 42" in said
    assert "broken.mp4" in said


def test_mistakes_are_said_in_one_line(tmp_path, capsys):
    assert main(["demo", "--data", str(tmp_path / "nowhere")]) == 1
    (tmp_path / "empty").mkdir()
    assert main(["demo", "--data", str(tmp_path / "empty")]) == 1
    assert main(["demo", "--minutes", "0", "--output", str(tmp_path / "out")]) == 2
    errors = capsys.readouterr().err
    assert errors.count("magvit2: error: ") == 3
    assert "Traceback" not in errors
    assert not (tmp_path / "out").exists()


def test_the_real_clips_are_found():
    names = [path.stem for path in demo.demo_clips()]
    assert names == ["bigbuckbunny", "bikes", "carphone_pristine"]


def test_coding_goes_through_the_codes_alone():
    tokenizer = VideoTokenizer.from_preset("tiny").eval()
    video = torch.rand(1, 3, 5, 16, 16) * 2 - 1
    recon, codes, result = demo.reconstruct_from_codes(tokenizer, video, "x", 10.0)
    assert torch.equal(codes, tokenizer.tokenize(video))
    expected = tokenizer.decode_from_code_indices(codes).clamp(-1, 1)
    assert torch.equal(recon, expected)
    error = (expected - video).square().mean()
    assert result["psnr_db"] == pytest.approx(float(10 * (4 / error).log10()), abs=1e-3)
    assert result["tokens_per_second_of_video"] == pytest.approx(codes.numel() / 5 * 10)
