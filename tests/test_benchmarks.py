"""What the benchmarks that train for equal time rest on."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from magvit2_pytorch import VideoTokenizer, VideoTokenizerTrainer
from magvit2_pytorch.tokenizer.presets import preset, recipe
from magvit2_pytorch.training.tracking import read_log
from magvit2_pytorch.training.training_config import TrainingConfig
from tests.data.clip_files import make_video

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def load(monkeypatch):
    """A benchmark as a module."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return __import__


def test_random_clips_are_windows_of_the_videos_mirrored_or_not(load, tmp_path):
    height, width, length = 6, 9, 8
    shape = (length, height, width)
    # Each pixel says where it is.
    places = np.stack(np.indices(shape), axis=-1).astype(np.uint8)
    np.save(tmp_path / "a.npy", places)
    clips = load("equal_time").RandomClips(tmp_path, num_frames=3, size=4, low=-1.0, seed=0)
    corners, mirrored = set(), set()
    for number in range(len(clips)):
        clip = clips[number]
        assert clip.shape == (3, 3, 4, 4)
        assert clip.dtype == torch.float32
        frames, rows, columns = ((clip + 1) * 127.5).round().long()
        first = (int(frames.min()), int(rows.min()), int(columns.min()))
        step = int(columns[0, 0, 1] - columns[0, 0, 0])
        across = torch.arange(4)[::1] if step == 1 else torch.arange(4).flip(0)
        assert torch.equal(frames, (first[0] + torch.arange(3))[:, None, None].expand(3, 4, 4))
        assert torch.equal(rows, (first[1] + torch.arange(4))[None, :, None].expand(3, 4, 4))
        assert torch.equal(columns, (first[2] + across)[None, None].expand(3, 4, 4))
        corners.add(first)
        mirrored.add(step)
    assert mirrored == {1, -1}
    assert {corner[0] for corner in corners} == set(range(length - 3 + 1))
    assert {corner[1] for corner in corners} == set(range(height - 4 + 1))
    assert {corner[2] for corner in corners} == set(range(width - 4 + 1))


def test_attention_one_by_one_is_that_of_groups(load):
    tokens = load("any_number_of_tokens")
    pairs = [((0, 3), (0, 3)), ((3, 5), (3, 5)), ((5, 8), (5, 8))]
    q, k, v = torch.randn(3, 1, 2, 8, 4)
    grouped = tokens.transformer.attend_spans(pairs)(q, k, v)
    torch.testing.assert_close(tokens.attend_one_by_one(pairs)(q, k, v), grouped)


def test_mean_colours_of_blocks(load):
    tokens = load("any_number_of_tokens")
    clip = torch.randn(3, 8, 16, 16)
    assert tokens.blocks_of_mean_colour(clip, 4).shape == clip.shape
    flat = torch.full((3, 8, 16, 16), 0.3)
    torch.testing.assert_close(tokens.blocks_of_mean_colour(flat, 128), flat)
    crops = tokens.crops([clip, flat], (4, 8, 8), 4, seed=1)
    assert [tuple(crop.shape) for crop in crops] == [(3, 4, 8, 8)] * 4
    assert torch.equal(crops[1], flat[:, :4, :8, :8])


def test_weights_are_kept_at_even_parts_and_as_they_were(load):
    kept = load("equal_time").Kept(4)
    weights = {"weight": torch.zeros(1)}
    for step in range(1, 101):
        weights["weight"] += 1
        kept.offer(step / 100, step, float(step), weights.copy)
    kept.keep(100, 100.0, weights)
    assert [point.step for point in kept.points] == [25, 50, 75, 100]
    assert [float(point.weights["weight"]) for point in kept.points] == [25, 50, 75, 100]


def test_long_steps_keep_no_point_twice(load):
    kept = load("equal_time").Kept(4)
    kept.offer(0.9, 1, 9.0, dict)
    kept.offer(1.3, 2, 13.0, dict)
    kept.keep(2, 13.0, {})
    assert [point.step for point in kept.points] == [1, 2]


@pytest.mark.parametrize("parallel", [1, 2])
def test_what_is_missing_runs_and_what_fails_is_named(
    load, tmp_path, parallel, capsys, monkeypatch
):
    equal_time = load("equal_time")
    monkeypatch.setattr(equal_time.os, "sched_getaffinity", lambda _: {4, 7}, raising=False)
    (tmp_path / "there.json").write_text('"old"', encoding="utf-8")
    cores = []

    def command(name: str, core: int | None) -> list[str]:
        cores.append(core)
        code = "import sys; print('said'); open(sys.argv[1], 'w').write('\"new\"')"
        return [
            sys.executable,
            "-c",
            "1/0" if name == "bad" else code,
            str(tmp_path / f"{name}.json"),
        ]

    names = ["there", "bad", "good", "last"]
    assert equal_time.run_missing(tmp_path, names, command, parallel) == ["bad"]
    assert len(cores) == 3
    assert set(cores) == {1: {None}, 2: {4, 7}}[parallel]
    assert equal_time.read_results(tmp_path, names) == {
        "there": "old",
        "good": "new",
        "last": "new",
    }
    assert "ZeroDivisionError" in (tmp_path / "bad.log").read_text(encoding="utf-8")
    assert (tmp_path / "good.log").read_text(encoding="utf-8") == "said\n"
    assert "bad failed" in capsys.readouterr().err


def test_more_at_once_than_cores_is_refused(load, tmp_path, monkeypatch):
    equal_time = load("equal_time")
    monkeypatch.setattr(equal_time.os, "sched_getaffinity", lambda _: {4, 7}, raising=False)
    with pytest.raises(ValueError, match="3 at once, but this process may use 2"):
        equal_time.run_missing(tmp_path, [], lambda *_: [], parallel=3)


def test_figures_are_those_of_the_definition(load, tmp_path):
    demo_training = load("demo_training")
    real = {"a": torch.zeros(3, 5, 8, 8), "b": torch.zeros(3, 5, 8, 8)}
    codes = [torch.tensor([[[[0, 1]]]]), torch.tensor([[[[2, 3]]]])]
    early = [clip + 1.0 for clip in real.values()]
    late = [clip + error for clip, error in zip(real.values(), (0.1, 0.01), strict=True)]
    points = [
        demo_training.Reconstructions(1, 2.0, early, codes),
        demo_training.Reconstructions(3, 4.0, late, codes),
    ]
    result = demo_training.evaluate("x", points, real, 16, 7, "fp32")
    # Against a peak to peak of 2.
    assert result.psnr_db == {"a": 26.02, "b": 46.02}
    assert result.curve == [(1, 2.0, 6.021), (3, 4.0, 36.021)]
    assert (result.steps, result.seconds, result.mean_psnr_db) == (3, 4.0, 36.021)
    assert (result.codes_used, result.perplexity) == (4, 4.0)
    assert result.bits_per_pixel == pytest.approx(4 * 4 / (2 * 5 * 64), abs=1e-4)
    result.write(tmp_path / "x.json")
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))["curve"][0] == [
        1,
        2.0,
        6.021,
    ]


def test_frames_trained_on_end_before_those_held_out(load, tmp_path, monkeypatch):
    demo_training = load("demo_training")
    videos = [tmp_path / "wide.mp4", tmp_path / "high.mp4"]
    make_video(videos[0], num_frames=50, height=32, width=48)
    make_video(videos[1], num_frames=43, height=40, width=32)
    monkeypatch.setattr(demo_training, "demo_clips", lambda: videos)
    folder = demo_training.write_training_frames(tmp_path / "frames", 16)
    frames = {path.stem: np.load(path) for path in folder.glob("*.npy")}
    assert {name: video.shape for name, video in frames.items()} == {
        "wide": (50 - 17 - 8, 16, 24, 3),
        "high": (43 - 17 - 8, 20, 16, 3),
    }
    real = demo_training.held_out(16)
    assert {name: clip.shape for name, clip in real.items()} == {
        "wide": (3, 17, 16, 16),
        "high": (3, 17, 16, 16),
    }
    # The first frame trained on is the file's first, and the last frame held out its last.
    first = demo_training.VideoFile(videos[0]).read([0], size=(16, 24)).numpy()
    assert np.array_equal(frames["wide"][:1], first)
    written = np.load(demo_training.write_held_out(tmp_path / "held-out") / "high.npy")
    assert written.shape[0] == 17
    assert written.dtype == np.uint8


def test_other_networks_have_the_size_and_codes_of_small(load):
    small = VideoTokenizer.from_preset("small")
    size = sum(p.numel() for p in small.parameters())
    for name, options in load("baselines").NETWORKS.items():
        tokenizer = VideoTokenizer(**options)
        assert tokenizer.codebook_size == small.codebook_size, name
        assert tokenizer.latent_grid(17, 64, 64) == small.latent_grid(17, 64, 64), name
        assert 0.9 * size < sum(p.numel() for p in tokenizer.parameters()) < size, name


def test_per_frame_knows_no_time_at_the_rate_of_small(load):
    baselines = load("baselines")
    tokenizer = VideoTokenizer(**(baselines.OURS["per-frame"])).eval()
    video = torch.rand(1, 3, 5, 32, 32) * 2 - 1
    with torch.no_grad():
        whole = tokenizer.encode(video)
        quantized, _ = tokenizer.quantize(whole)
        decoded = tokenizer.decode(quantized)
        for at in range(5):
            alone = tokenizer.encode(video[:, :, at : at + 1])
            torch.testing.assert_close(alone, whole[:, :, at : at + 1])
            back = tokenizer.decode(quantized[:, :, at : at + 1])
            torch.testing.assert_close(back, decoded[:, :, at : at + 1], atol=1e-5, rtol=1e-4)
    small = VideoTokenizer.from_preset("small")
    rates = [
        math.prod(x.latent_grid(17, 128, 128)) * math.log2(x.codebook_size)
        for x in (small, tokenizer)
    ]
    assert 1 <= rates[1] / rates[0] < 1.02
    counts = [sum(p.numel() for p in x.parameters()) for x in (small, tokenizer)]
    assert 0.9 < counts[1] / counts[0] < 1.1


def test_every_variant_can_be_built_and_differs_from_small(load):
    ablations = load("ablations")
    seen = []
    for name, variant in ablations.VARIANTS.items():
        with torch.device("meta"):
            model = VideoTokenizer(**(preset("small") | variant.model)).config.to_dict()
        training = TrainingConfig(**(recipe("small") | variant.training)).to_dict()
        assert (model, training) not in seen, name
        seen.append((model, training))


@pytest.mark.parametrize("way", ["gan", "patch gan"])  # the gentle one only begins later
def test_adversarial_ways_train(load, tmp_path, way):
    trainer = VideoTokenizerTrainer(
        VideoTokenizer.from_preset("tiny"),
        dataset=list(torch.rand(8, 3, 17, 16, 16) * 2 - 1),
        batch_size=2,
        results_folder=str(tmp_path),
        checkpoints_folder=str(tmp_path / "checkpoints"),
        progress_bar=False,
        log_every_step=1,
        **(load("adversarial").WAYS[way] | dict(num_train_steps=2, adversarial_start_step=1)),
    )
    trainer.train()
    last = [line for line in read_log(trainer.tracking.path) if "loss" in line][-1]
    assert last["weight/frame_adversarial"] == 1
    assert last["frame_adaptive_weight"] > 0


def test_ways_differ(load):
    ways = list(load("adversarial").WAYS.values())
    assert all(way not in ways[:i] for i, way in enumerate(ways))
    for way in ways:
        TrainingConfig(**way)


def test_operations_beside_the_other_library_are_counted(load):
    """Twice the videos, twice the operations, and more than those of the maps at the pixels."""
    tokenizer = VideoTokenizer(
        image_size=16, init_dim=8, layers=("compress_space",), codebook_size=16,
        separate_first_frame_encoding=True, input_conv_kernel_size=1, output_conv_kernel_size=1,
    ).eval()  # fmt: skip
    worker, one = load("upstream_worker"), torch.rand(1, 3, 1, 16, 16)
    for name in ("encode", "decode"):
        single, double = (
            worker.flops_of(tokenizer, one.repeat(batch, 1, 1, 1, 1), name) for batch in (1, 2)
        )
        assert double == 2 * single
        assert single > 2 * 16 * 16 * 3 * 8


def test_memory_is_told_without_what_torch_takes(load):
    measured = load("side_by_side").Measured(peak_mb=[900.0, 1000.0, 5000.0])
    assert (measured.memory, measured.beyond_torch) == ("1000 MB", "")
    measured.imported_mb = [600.0, 600.0, 700.0]
    assert measured.beyond_torch == "400 MB"


LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@LINUX
def test_live_tensors_are_told_apart(load):
    training_memory = load("training_memory")
    weight, batch = torch.ones(50, 50, requires_grad=True), torch.ones(50, 50)
    held = {"weights": [weight], "batch": [batch]}
    with (
        training_memory.Census(held, [weight]) as census,
        torch.autograd.graph.saved_tensors_hooks(census.pack, lambda tensor: tensor),
    ):
        (batch @ weight).exp().sum().backward()
    size = weight.nbytes
    # At most: the exponentials, which backward needs, and the gradient of the product.
    assert (census.at_peak["weights"], census.at_peak["batch"]) == (size, size)
    assert census.at_peak["kept for backward"] == size
    assert size <= census.at_peak["for a moment"] < 2 * size
    assert census.at_peak.total() == 2 * size + census.peak
    assert census.live == size  # the weight's gradient


@LINUX
def test_the_peak_of_a_step_has_parts(load, monkeypatch, tmp_path, capsys):
    training_memory = load("training_memory")

    def build(name, folder):
        video = torch.rand(2, 3, 5, 16, 16)
        options = dict(results_folder=folder, checkpoints_folder=f"{folder}/c", batch_size=2)
        data = dict(dataset=list(video), valid_dataset=list(video))
        return VideoTokenizerTrainer(VideoTokenizer.from_preset("tiny"), **data, **options), video

    monkeypatch.setattr(training_memory, "build", build)
    training_memory.explain("tiny")
    lines = capsys.readouterr().out.splitlines()
    names = [line.strip().split("  ")[0] for line in lines[1:]]
    assert names[:5] == ["torch and other imports", "weights", "averages", "moments", "batch"]
    assert names[-4:] == ["workspace", "slack of malloc", "code read later", "sum"]


@LINUX
def test_threads_of_a_command_are_told_apart(load, monkeypatch, tmp_path, capsys):
    command_shares = load("command_shares")
    make_video(tmp_path / "bunny.mp4", num_frames=20, height=32, width=48)
    monkeypatch.setattr(command_shares, "demo_clips", lambda: [tmp_path / "bunny.mp4"])
    VideoTokenizer.from_preset("tiny").save_pretrained(tmp_path / "model")
    words = ["--model", str(tmp_path / "model"), "--heights", "36", "--num_frames", "18"]
    monkeypatch.setattr(sys, "argv", ["command_shares.py", *words])
    command_shares.main()
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[3].rstrip(":") for line in lines[::4]] == ["tokenize", "reconstruct"]
    seconds = {(number // 4, line[0]): float(line[1]) for number, line in enumerate(lines)
               if line[0] in ("decoding", "computing", "writing")}  # fmt: skip
    assert len(seconds) == 6
    assert seconds[1, "computing"] > 0


def test_tables_hold_a_row_for_each_result(load):
    ablations, baselines = load("ablations"), load("baselines")
    result = dict(parameters=5_900_000, bits_per_pixel=0.07, steps=3, psnr_db={"a": 20.0})
    result |= dict(mean_psnr_db=20.0, codes_used=5, perplexity=4.0)
    lines = ablations.table({"small": result, "l1": result | dict(mean_psnr_db=19.5)}).splitlines()
    assert len(lines) == 4
    assert "| 19.50 | -0.50 |" in lines[3]
    lines = baselines.table({"lfq": result}).splitlines()
    assert lines[2] == "| lfq | 5.90 M | 0.0700 | 3 | 20.00 | **20.00** | 5 | 4 |"
