"""A folder evaluated: numbers against what they are made of, runs that stop, files that break."""

import json
import math
import os
import shutil

import pytest
import torch

from magvit2_pytorch.evaluation import evaluator as evaluate
from magvit2_pytorch.evaluation import journal
from magvit2_pytorch.evaluation.clip_choice import ClipChoice
from magvit2_pytorch.evaluation.journal import EvaluationError, EvaluationMismatch
from magvit2_pytorch.evaluation.measure import EvaluationNetworks
from magvit2_pytorch.media.frames import to_float
from magvit2_pytorch.media.images import read_image
from magvit2_pytorch.media.video_reader import VideoFile
from magvit2_pytorch.metrics.codebook import CodebookUsage
from magvit2_pytorch.metrics.fvd import I3D
from magvit2_pytorch.metrics.moments import frechet_distance
from magvit2_pytorch.metrics.quality import psnr, ssim
from magvit2_pytorch.pipelines.inference import Inference, reconstruct_clip
from tests.conftest import build
from tests.evaluation.clips import exact
from tests.evaluation.reports import (
    CHOICE,
    Counter,
    StopAfter,
    copied,
    evaluated,
    fake_i3d,
    make_folder,
    small_perceptual,
    without_time,
)

NAMES = ["a.mkv", "more/b.mkv", "c.mkv", "picture-0.png", "picture-1.png", "broken.mp4"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    torch.manual_seed(1)
    return make_folder(tmp_path_factory.mktemp("evaluated") / "data")


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    path = fake_i3d(tmp_path_factory.mktemp("i3d") / "i3d.pt")
    return EvaluationNetworks(small_perceptual(), I3D(path, "stylegan-v"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory, data, networks):
    """The folder of a report, what was told, and the report."""
    torch.manual_seed(2)
    tokenizer, progress = exact(), Counter()
    folder = tmp_path_factory.mktemp("whole") / "report"
    report = evaluated(tokenizer, data, folder, progress=progress, networks=networks)
    return folder, progress, report, tokenizer


def lines_of(folder):
    return [json.loads(line) for line in (folder / "clips.jsonl").read_text().splitlines()[1:]]


def test_each_clip_is_measured_as_it_would_be_alone(whole, data):
    folder, _, report, tokenizer = whole
    lines = {(x["path"], x["clip"]): x for x in lines_of(folder) if "skipped" not in x}
    places = {
        **{("a.mkv", 0): 0, ("a.mkv", 1): 6, ("a.mkv", 2): 11},
        **{("more/b.mkv", 0): 0, ("c.mkv", 0): 0, ("c.mkv", 1): 6},
        **{("picture-0.png", 0): 0, ("picture-1.png", 0): 0},
    }
    assert {place: line["start_frame"] for place, line in lines.items()} == places
    codes = []
    for (name, _), line in lines.items():
        start = line["start_frame"]
        if name.endswith("png"):
            frames = read_image(data / name)[None]
        else:
            frames = VideoFile(data / name).read(range(start, start + 5))
        real = to_float(frames)[None]
        height, width = real.shape[3:]
        below, right = -height % 4, -width % 4
        padded = torch.nn.functional.pad(real, (0, right, 0, below, 0, 0), mode="replicate")
        codes.append(tokenizer.tokenize(padded.double()))
        recon = tokenizer.decode_from_code_indices(codes[-1], num_frames=len(frames))
        recon = recon[..., :height, :width].clamp(-1, 1).float()
        assert line["psnr"] == pytest.approx(float(psnr(recon, real)), abs=1e-3)
        assert line["ssim"] == pytest.approx(float(ssim(recon, real)), abs=1e-4)
        assert line["ms_ssim"] is None
        assert line["tokens"] == codes[-1].numel()
        bits = codes[-1].numel() * math.log2(tokenizer.codebook_size)
        assert line["bits_per_pixel"] == pytest.approx(bits / (len(frames) * height * width))
        if line["fps"] is not None:
            seconds = len(frames) / line["fps"]
            assert line["tokens_per_second"] == pytest.approx(line["tokens"] / seconds)
    assert lines["more/b.mkv", 0]["fps"] == pytest.approx(10, rel=1e-3)
    of_videos = torch.cat([x.flatten() for x in codes if x.shape[1] > 1])
    usage = CodebookUsage(tokenizer.codebook_size)
    usage.update(of_videos)
    use = usage.compute()
    assert report["videos"]["codebook"]["usage"] == use.usage
    assert report["videos"]["codebook"]["perplexity"] == pytest.approx(use.perplexity)
    assert report["images"]["codebook"]["num_codes"] == sum(
        x.numel() for x in codes if x.shape[1] == 1
    )


def test_a_mean_is_over_clips_and_an_interval_over_files(whole):
    folder, _, report, _ = whole
    psnrs = [x["psnr"] for x in lines_of(folder) if x.get("kind") == "video"]
    said = report["videos"]["metrics"]["psnr"]
    assert said["mean"] == pytest.approx(sum(psnrs) / 6)
    assert (said["min"], said["max"], said["num_clips"]) == (min(psnrs), max(psnrs), 6)
    assert said["low"] <= said["mean"] <= said["high"]
    assert (report["videos"]["num_clips"], report["videos"]["num_files"]) == (6, 3)
    assert (report["images"]["num_clips"], report["images"]["num_files"]) == (2, 2)
    examples = report["videos"]["examples"]
    assert list(examples) == ["worst", "median", "best"]
    assert examples["worst"]["psnr"] == min(psnrs)
    assert examples["best"]["psnr"] == max(psnrs)
    assert sorted(psnrs)[2] <= examples["median"]["psnr"] <= sorted(psnrs)[3]
    assert list(report["images"]["examples"]) == ["worst", "best"]
    energy = report["videos"]["metrics"]["motion_energy"]["mean"]
    error = report["videos"]["metrics"]["temporal_error"]["mean"]
    assert report["videos"]["temporal_error_of_motion"] == pytest.approx(error / energy)
    assert report["images"]["temporal_error_of_motion"] is None


def test_frechet_distances_are_those_of_all_features(whole, data, networks):
    _, _, report, tokenizer = whole
    found, wanted = [], []
    tokenizer.requires_grad_(False)
    for name, start in (("a.mkv", 0), ("a.mkv", 6), ("a.mkv", 11), ("more/b.mkv", 0),
                        ("c.mkv", 0), ("c.mkv", 6)):  # fmt: skip
        real = to_float(VideoFile(data / name).read(range(start, start + 5)))[None]
        padded = torch.nn.functional.pad(
            real, (0, -real.shape[4] % 4, 0, -real.shape[3] % 4, 0, 0), mode="replicate"
        )
        recon = tokenizer(padded.double())[..., : real.shape[3], : real.shape[4]].clamp(-1, 1)
        for kept, clip in ((found, recon.float()), (wanted, real)):
            kept.append(networks.perceptual.features(clip)[-1].mean(dim=(2, 3)))
    both = {"frechet_frames": [torch.cat(x) for x in (found, wanted)]}
    both["frechet_motion"] = [torch.cat([y.diff(dim=0) for y in x]) for x in (found, wanted)]
    for name, sides in both.items():
        moments = [(x.double().mean(dim=0), x.double().T.cov()) for x in sides]
        wanted_distance = frechet_distance(*(m[0] for m in moments), *(m[1] for m in moments))
        said = report["videos"]["frechet"][name]
        assert said["distance"] == pytest.approx(wanted_distance, rel=1e-3)
        assert (said["num_vectors"], said["dim"]) == (len(sides[0]), 6)
        assert said["is_rank_deficient"] is False
    fvd = report["videos"]["frechet"]["fvd_stylegan_v"]
    assert (fvd["num_vectors"], fvd["dim"], fvd["is_rank_deficient"]) == (6, 7, True)
    assert "frechet_motion" not in report["images"]["frechet"]
    assert "fvd_stylegan_v" not in report["images"]["frechet"]


def test_what_cannot_be_used_is_named_and_what_was_not_measured_too(whole):
    folder, progress, report, _ = whole
    names = ["broken.mp4", "broken.png", "short.mkv"]
    assert [x["path"] for x in report["skipped"]] == names == progress.names
    assert "too short: 4 frames to choose from, a clip needs 5" in report["skipped"][2]["reason"]
    assert progress.before == (0, 5 * 3 + 3)
    # What is expected falls as files turn out to have fewer clips.
    assert progress.told[-1] == (8, 8)
    assert [done for done, _ in progress.told] == [1, 2, 3, 3, 3, 4, 5, 6, 7, 8, 8]
    assert report["not_measured"] == {}
    text = (folder / "report.md").read_text()
    for said in (*names, "too few", "(not FVD)", "StyleGAN-V", "small features", "![worst"):
        assert said in text


def test_all_settings_are_written_down(whole):
    _, _, report, _ = whole
    settings = report["settings"]
    assert (settings["num_frames"], settings["clips_per_video"], settings["size"]) == (5, 3, None)
    assert (settings["split"], settings["seed"], settings["frame_stride"]) == ("all", 0, 1)
    assert len(report["model"]["fingerprint"]) == len(report["data"]["digest"]) == 64
    assert report["judges"]["i3d"]["protocol"] == "stylegan-v"
    assert len(report["judges"]["i3d"]["file"]) == len(report["judges"]["perceptual"]["weights"])


def test_a_run_that_was_stopped_gives_the_report_of_one_that_was_not(
    tmp_path, data, networks, whole
):
    folder, tokenizer = tmp_path / "report", whole[3]
    stops = (1, 4, 8)  # after the last one only the report is left
    for stop in stops:
        with pytest.raises(KeyboardInterrupt):
            evaluated(tokenizer, data, folder, progress=StopAfter(stop), networks=networks)
        assert not (folder / "report.json").exists()
    progress = Counter()
    evaluated(tokenizer, data, folder, progress=progress, networks=networks)
    assert progress.before[0] == stops[-1]
    assert without_time(folder) == without_time(whole[0])
    # And once more, with nothing left to do.
    evaluated(tokenizer, data, folder, networks=networks)
    assert without_time(folder) == without_time(whole[0])


@pytest.fixture(scope="module")
def after_three(tmp_path_factory, data, networks, whole):
    """The folder of a run that was stopped after three clips."""
    folder = tmp_path_factory.mktemp("stopped") / "report"
    with pytest.raises(KeyboardInterrupt):
        evaluated(whole[3], data, folder, progress=StopAfter(3), networks=networks)
    return folder


@pytest.fixture
def stopped(after_three, tmp_path):
    """A copy of it."""
    return shutil.copytree(after_three, tmp_path / "report")


def test_a_run_that_was_killed_loses_what_was_not_saved_and_nothing_else(
    stopped, data, networks, whole
):
    with (stopped / "clips.jsonl").open("ab") as file:  # lines that no sums belong to
        file.write(b'{"path": "c.mkv", "clip": 1, "num_clips": 2, "kind": "video"}\n{"pa')
    evaluated(whole[3], data, stopped, networks=networks)
    assert without_time(stopped) == without_time(whole[0])


@pytest.mark.parametrize("damage", ["rubbish", "gone", "too far"])
def test_sums_that_are_lost_cost_time_and_no_truth(stopped, data, networks, whole, damage):
    folder, tokenizer = stopped, whole[3]
    sums, lines = folder / "sums.safetensors", folder / "clips.jsonl"
    if damage == "gone":
        sums.unlink()
    elif damage == "rubbish":
        sums.write_bytes(b"nothing")
    else:
        lines.write_bytes(lines.read_bytes()[:-10])
    progress = Counter()
    evaluation = evaluate.Evaluation(tokenizer, data, CHOICE, networks=networks)
    if damage == "gone":
        evaluation.run(folder, progress)
    else:
        with pytest.warns(UserWarning, match="sums.safetensors is damaged"):
            evaluation.run(folder, progress)
    assert progress.before[0] == 0
    assert without_time(folder) == without_time(whole[0])


def test_who_takes_the_lines_away_begins_anew(stopped, data, networks, whole):
    (stopped / "clips.jsonl").unlink()
    progress = Counter()
    evaluated(whole[3], data, stopped, progress=progress, networks=networks)
    assert progress.before[0] == 0
    assert without_time(stopped) == without_time(whole[0])


def test_an_interrupt_between_sums_and_line_saves_neither(
    tmp_path, data, networks, whole, monkeypatch
):
    folder, tokenizer = tmp_path / "report", whole[3]
    append, count = journal.Journal.append, []

    def interrupted(self, line):
        count.append(line)
        if len(count) == 3:
            raise KeyboardInterrupt
        append(self, line)

    monkeypatch.setattr(evaluate, "SAVE_EVERY_S", 0.0)
    with monkeypatch.context() as context:
        context.setattr(journal.Journal, "append", interrupted)
        with pytest.raises(KeyboardInterrupt):
            evaluated(tokenizer, data, folder, networks=networks)
    progress = Counter()
    evaluated(tokenizer, data, folder, progress=progress, networks=networks)
    assert progress.before[0] == 2
    assert without_time(folder) == without_time(whole[0])


def test_the_order_in_which_files_are_found_does_not_matter(tmp_path, data, whole, monkeypatch):
    tokenizer = whole[3]
    walk, choice = os.walk, ClipChoice(num_frames=5, clips_per_video=3, max_clips=4, seed=3)

    def backwards(*args, **options):
        for here, folders, files in walk(*args, **options):
            yield here, folders, files[::-1]

    for name, names, way in (("one", NAMES, walk), ("two", NAMES[::-1], backwards)):
        with monkeypatch.context() as context:
            context.setattr(os, "walk", way)
            copied(data, tmp_path / name / "data", names)
            context.chdir(tmp_path / name)
            evaluated(tokenizer, "data", tmp_path / name / "report", choice)
    assert without_time(tmp_path / "one" / "report") == without_time(tmp_path / "two" / "report")


def test_max_clips_are_of_files_drawn_by_the_seed(tmp_path, data, whole):
    files = set()
    for seed in range(3):
        choice = ClipChoice(num_frames=5, max_clips=2, seed=seed)
        evaluated(whole[3], data, tmp_path / str(seed), choice)
        lines = [x for x in lines_of(tmp_path / str(seed)) if "skipped" not in x]
        assert len(lines) == 2
        files |= {line["path"] for line in lines}
    assert len(files) > 3


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (dict(choice=ClipChoice(num_frames=5, clips_per_video=2)), "clips_per_video 3, not 2"),
        (dict(inference=Inference("bf16")), "precision fp32, not bf16"),
        (dict(networks=EvaluationNetworks()), "judges i3d protocol stylegan-v, not None"),
        (dict(tokenizer=True), r"model fingerprint [0-9a-f]{12}, not [0-9a-f]{12}[;:]"),
        (dict(source=True), r"data num_files 8, not 7"),
    ],
)
def test_another_evaluation_in_the_folder_is_left_alone(
    tmp_path, data, networks, whole, options, said
):
    folder, _, _, tokenizer = whole
    before = without_time(folder)
    options = dict(networks=networks) | options
    if options.pop("tokenizer", None):
        tokenizer = build("residual")
    source = data
    if options.pop("source", None):
        names = [str(p.relative_to(data)) for p in data.rglob("*.*") if p.name != "c.mkv"]
        source = copied(data, tmp_path / "data", names)
    with pytest.raises(EvaluationMismatch, match=said):
        evaluated(tokenizer, source, folder, **options)
    assert without_time(folder) == before


def test_a_file_written_anew_is_other_data(tmp_path, data, whole):
    source = copied(data, tmp_path / "data", NAMES)
    evaluated(whole[3], source, tmp_path / "report")
    before = json.loads((tmp_path / "report" / "report.json").read_text())["data"]["digest"]
    os.utime(source / "a.mkv", ns=(0, 1))
    with pytest.raises(EvaluationMismatch, match="data digest_with_times"):
        evaluated(whole[3], source, tmp_path / "report")
    again = evaluated(whole[3], source, tmp_path / "other")
    assert again["data"]["digest"] == before


def test_a_foreign_file_of_that_name_is_no_journal(tmp_path, data, whole):
    (tmp_path / "clips.jsonl").write_text('{"mine": 1}\n')
    with pytest.raises(EvaluationError, match="not written by an evaluation"):
        evaluated(whole[3], data, tmp_path)
    assert (tmp_path / "clips.jsonl").read_text() == '{"mine": 1}\n'


def test_continuous_tokenizers_have_no_bits(tmp_path, data):
    report = evaluated(exact("continuous"), data, tmp_path / "report")
    metrics = report["videos"]["metrics"]
    assert metrics["bits_per_pixel"] is None
    assert metrics["tokens"]["min"] == 3 * 4 * 4
    assert report["videos"]["codebook"] is None
    assert "continuous" in report["not_measured"]["codebook"]
    assert "perceptual_weights" in report["not_measured"]["perceptual"]
    assert "I3D" in report["not_measured"]["fvd"]
    assert "continuous latents" in (tmp_path / "report" / "report.md").read_text()


def test_several_codebooks_are_counted_each(tmp_path, data):
    report = evaluated(exact("lfq-several"), data / "a.mkv", tmp_path / "report")
    assert report["videos"]["metrics"]["tokens"]["mean"] == 3 * 5 * 6 * 3
    assert report["data"]["num_files"] == 1
    assert report["videos"]["metrics"]["psnr"]["low"] is None
    assert "one file" in (tmp_path / "report" / "report.md").read_text()


def test_tiles_and_halves_are_near_the_whole(tmp_path, data, whole):
    wanted = [line["psnr"] for line in lines_of(whole[0]) if line["path"] == "a.mkv"]
    wanted = sum(wanted) / len(wanted)
    source, inference = data / "a.mkv", Inference(tile_size=8)
    tiled = evaluated(whole[3], source, tmp_path / "tiled", inference=inference)
    assert tiled["videos"]["metrics"]["psnr"]["mean"] == pytest.approx(wanted, abs=1e-3)
    assert tiled["settings"]["tile_size"] == 8


def test_a_clip_in_several_pieces_is_the_same_clip(tmp_path, data, whole):
    inference = Inference(chunk_frames=2)
    pieces = evaluated(whole[3], data, tmp_path / "report", inference=inference)
    wanted = whole[2]["videos"]
    for name in ("psnr", "ssim", "temporal_error"):
        assert pieces["videos"]["metrics"][name]["mean"] == pytest.approx(
            wanted["metrics"][name]["mean"], rel=1e-4
        )
    assert pieces["videos"]["codebook"] == wanted["codebook"]


def test_a_clip_equal_to_its_original_is_the_best(tmp_path, data, monkeypatch):
    def perfect(tokenizer, video, inference):
        found = reconstruct_clip(tokenizer, video, inference)
        return (video if video.shape[2] == 5 else found[0], *found[1:])

    monkeypatch.setattr("magvit2_pytorch.evaluation.measure.reconstruct_clip", perfect)
    report = evaluated(exact(), data, tmp_path / "report", ClipChoice(num_frames=5))
    assert report["videos"]["metrics"]["psnr"] is None
    assert report["videos"]["metrics"]["ssim"]["mean"] == pytest.approx(1)
    assert report["videos"]["temporal_error_of_motion"] == 0
    assert "equal to the originals" in (tmp_path / "report" / "report.md").read_text()


def test_a_reconstruction_that_is_not_finite_ends_it(tmp_path, data):
    tokenizer = build("residual")
    torch.nn.init.constant_(next(tokenizer.decoder.parameters()), math.nan)
    with pytest.raises(EvaluationError, match=r"a\.mkv is not finite"):
        evaluated(tokenizer, data, tmp_path / "report")


def test_what_does_not_fit_into_memory_is_said(tmp_path, data, monkeypatch):
    def too_large(*args, **options):
        raise MemoryError

    monkeypatch.setattr(evaluate, "measure", too_large)
    with pytest.raises(EvaluationError, match=r"5 frames of 18 x 22 of a\.mkv.*tile_size to auto"):
        evaluated(exact(), data, tmp_path / "report")


def test_nothing_that_can_be_measured_is_said(tmp_path, data):
    copied(data, tmp_path / "data", ["broken.mp4", "short.mkv"])
    with pytest.raises(EvaluationError, match=r"no clip could be measured: broken\.mp4: .*short"):
        evaluated(exact(), tmp_path / "data", tmp_path / "report")


def test_before_any_work(tmp_path, data, networks):
    for source, kind, said in (
        (tmp_path / "none", FileNotFoundError, "does not exist"),
        (tmp_path, ValueError, "no videos in"),
    ):
        with pytest.raises(kind, match=said):
            evaluate.Evaluation(exact(), source)
    with pytest.raises(ValueError, match="conditional"):
        evaluate.Evaluation(build("cond_residual"), data)
    with pytest.raises(ValueError, match="tile_size 6"):
        evaluate.Evaluation(exact(), data, inference=Inference(tile_size=6))
    with pytest.raises(ValueError, match="2 frames with the protocol stylegan-v"):
        evaluate.Evaluation(exact(), data, ClipChoice(num_frames=2), networks=networks)


def test_the_pictures_show_the_clips_that_are_meant(tmp_path, data, with_drawings):
    folder = tmp_path / "report"
    report = evaluated(exact(), data, folder)
    numbers = []
    for which, line in report["videos"]["examples"].items():
        start, width = line["start_frame"], line["width"]
        numbers.append(line["clip"])
        real = VideoFile(data / line["path"]).read(range(start, start + 5))
        shown = VideoFile(folder / f"videos-{which}.mp4")
        assert (shown.num_frames, shown.width) == (5, 2 * width)
        left = shown.read(range(5))[:, :, :width]
        # What a video codec leaves of it.
        assert (left.float() - real.float()).abs().mean() < 25
    assert max(numbers) > 0
    page = read_image(folder / "videos.png")
    assert page.shape[1] == 5 * 280 + 50
    assert read_image(folder / "images.png").shape[0] > 200
