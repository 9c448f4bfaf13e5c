"""Continuations of held-out ends equal those made from scratch, and measures their definitions."""

import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch

from magvit2_pytorch.codes.code_file import write_codes
from magvit2_pytorch.codes.code_windows import Stretch
from magvit2_pytorch.codes.codes_dataset import CodesDataset
from magvit2_pytorch.evaluation.continuations import (
    VideoDistances,
    compare,
    continuations,
    perceptual_of_pairs,
    psnr_of_pairs,
)
from magvit2_pytorch.evaluation.generator_measures import HeldOut, nearest_shares, state_before
from magvit2_pytorch.evaluation.generator_report import evaluate_generator
from magvit2_pytorch.evaluation.measure import EvaluationNetworks
from magvit2_pytorch.generators import GENERATORS, Sampling
from magvit2_pytorch.media.video_reader import VideoFile
from magvit2_pytorch.metrics import frechet_distance, psnr
from magvit2_pytorch.metrics.fvd import I3D
from magvit2_pytorch.pipelines.files import tokenize_file
from magvit2_pytorch.pipelines.inference import Inference
from tests.conftest import build, random_video
from tests.data.clip_files import make_video
from tests.evaluation.reports import fake_i3d, small_perceptual
from tests.generators.models import generator, random_codes

LAYERS = ("residual", "compress_space", "compress_space")
LEVELS = ((8, 5, 5),)


@pytest.fixture(scope="module")
def tokenizer():
    torch.manual_seed(0)
    return build(*LAYERS, "compress_time", quantizer="fsq")


@pytest.fixture(scope="module")
def i3d(tmp_path_factory):
    return I3D(fake_i3d(tmp_path_factory.mktemp("i3d") / "i3d.pt"), "stylegan-v")


AHEAD = "vidtok_compress_time_linear"
"""A layer whose decoder looks ahead."""


@pytest.mark.parametrize(
    ("kind", "time"), [*((kind, "compress_time") for kind in GENERATORS), ("masked", AHEAD)]
)
def test_a_continuation_is_that_of_all_codes_before_it(kind, time):
    model, tokenizer = generator(kind, LEVELS), build(*LAYERS, time, quantizer="fsq").double()
    video = HeldOut("v", random_codes(model, 1, 9, 2, 2), start=6, size=(8, 8))
    films, correct = continuations(
        model, tokenizer, video, state_before(model, video), 2, 2, Inference(chunk_frames=4)
    )
    before = video.codes[:, :6]
    codes = {"true codes": video.codes[:, :8]}
    drawn = {"most likely": (Sampling(temperature=0.0), 0)}
    drawn |= {f"sample {n}": (Sampling(), n) for n in range(2)}
    for name, (sampling, number) in drawn.items():
        state, codes[name] = model.read(before, model.begin(1, (2, 2))), before
        for _ in range(2):
            frame, state, _ = model.next_frame(state, sampling, torch.tensor([number]))
            codes[name] = torch.cat((codes[name], frame), dim=1)
    for name, all_codes in codes.items():
        whole = tokenizer.decode_from_code_indices(all_codes)
        torch.testing.assert_close(films[name], whole[:, :, 11:15], atol=1e-10, rtol=0)
    last = tokenizer.decode_from_code_indices(before)[:, :, 10:11].expand(-1, -1, 4, -1, -1)
    torch.testing.assert_close(films["repeated"], last, atol=1e-10, rtol=0)
    right = (codes["most likely"] == codes["true codes"])[:, 6:].flatten(2).double().mean(dim=-1)
    assert correct == pytest.approx(right[0].tolist())


def made_films(num_samples=3, num_frames=6):
    names = ("true codes", "most likely", *(f"sample {n}" for n in range(num_samples)))
    return {name: random_video(num_frames, (16, 20)) for name in (*names, "repeated", "original")}


def by_hand(films, distance, best):
    """Comparison of films in parts of 4 frames, by the definitions."""
    samples = [films[f"sample {n}"] for n in range(3)]

    def parts(a, b):
        pairs = zip(a.split(4, 2), b.split(4, 2), strict=True)
        return np.array([float(distance(*pair)) for pair in pairs])

    original = films["original"]
    of_samples = np.array([parts(sample, original) for sample in samples])
    return {
        "most_likely": parts(films["most likely"], original),
        "sampled": of_samples.mean(0),
        "best": best(of_samples, axis=0),
        "repeated": parts(films["repeated"], original),
        "ceiling": parts(films["true codes"], original),
        "pairwise": np.mean([parts(*pair) for pair in combinations(samples, 2)], axis=0),
    }


def test_measures_compare_each_latent_frame_by_their_definitions():
    films, network = made_films(), small_perceptual()
    measured = {
        psnr: (compare(films, psnr_of_pairs, 4), np.max),
        network: (
            compare(films, lambda *given: perceptual_of_pairs(*given, network), 4, np.min),
            np.min,
        ),
    }
    for distance, (comparison, best) in measured.items():
        wanted = by_hand(films, distance, best)
        assert set(vars(comparison)) == set(wanted)
        for name, values in vars(comparison).items():
            assert values == pytest.approx(wanted[name], rel=1e-5), name


def test_samples_that_are_alike_have_no_diversity():
    films, network = made_films(), small_perceptual()
    films |= {f"sample {n}": films["most likely"] for n in range(3)}
    comparison = compare(films, lambda *given: perceptual_of_pairs(*given, network), 4, np.min)
    assert comparison.pairwise == pytest.approx([0, 0], abs=1e-9)
    assert comparison.best == comparison.most_likely


def test_video_distances_are_those_of_all_features(i3d):
    distances = VideoDistances(i3d, 6, 3)
    videos = [made_films() for _ in range(9)]
    for films in videos:
        distances.add(films)
    distances.add(made_films(num_frames=5))  # too short, left out
    report = distances.report()

    def moments(*names):
        rows = [i3d.features(films[name])[0].double() for films in videos for name in names]
        rows = torch.stack(rows)
        return rows.mean(0), rows.T.cov(correction=0)

    for key, names in (
        ("sampled", ["sample 0", "sample 1", "sample 2"]),
        ("most_likely", ["most likely"]),
        ("repeated", ["repeated"]),
        ("ceiling", ["true codes"]),
    ):
        (mean, covariance), (real_mean, real_covariance) = moments(*names), moments("original")
        wanted = frechet_distance(mean, real_mean, covariance, real_covariance)
        assert report[key] == pytest.approx(wanted, rel=1e-6)
    assert (report["num_generated"], report["num_real"], report["num_frames"]) == (27, 9, 6)


def test_one_clip_has_no_video_distance(i3d):
    distances = VideoDistances(i3d, 6, 3)
    distances.add(made_films())
    assert distances.report()["ceiling"] is None


@pytest.fixture(scope="module")
def coded(tokenizer, tmp_path_factory):
    """Codes of three videos, and the folder of these."""
    tokenizer = tokenizer.float()
    folder = tmp_path_factory.mktemp("coded")
    (folder / "videos").mkdir()
    for number in range(3):
        path = folder / "videos" / f"{number}.mkv"
        make_video(path, 16 + number, 16, 16, codec="ffv1")
        write_codes(
            folder / "codes" / f"{number}.codes.safetensors",
            *tokenize_file(tokenizer, path),
        )
    return folder


def test_nearest_shares_by_brute_force(coded):
    codes = CodesDataset(coded / "codes")
    stretches = [Stretch(0, 0, 5), Stretch(2, 6, 9)]
    frames = [codes[1].codes[8], codes[0].codes[4], codes[0].codes[0][:2]]
    shares = nearest_shares(frames, codes, stretches)
    every = [codes[s.video].codes[t] for s in stretches for t in range(s.start, s.stop)]
    wanted = [
        max([float((frame == x).float().mean()) for x in every if x.shape == frame.shape] or [0.0])
        for frame in frames
    ]
    assert shares == pytest.approx(wanted)
    assert shares[1:] == [1, 0]


def test_a_report_reads_no_frames_but_those_to_predict(coded, tokenizer, tmp_path, monkeypatch):
    read, plain = [], VideoFile.read

    def spy(self, indices, size=None):
        frames = plain(self, indices, size)
        read.append((Path(self.path).name, list(indices), frames))
        return frames

    monkeypatch.setattr(VideoFile, "read", spy)
    monkeypatch.setattr(VideoFile, "frames", lambda *_: (frame for frame in ()))
    model = generator("masked", LEVELS, torch.float32, num_steps=2)
    evaluate_generator(
        model, tokenizer.float(), CodesDataset(coded / "codes"), tmp_path,
        data=coded / "videos", num_valid_latents=4, num_samples=2,
    )  # fmt: skip
    monkeypatch.undo()
    assert sorted(name for name, *_ in read) == ["0.mkv", "1.mkv", "2.mkv"]
    for name, indices, frames in read:
        whole = torch.stack(list(VideoFile(coded / "videos" / name).frames()))
        # The last 4 of 1 + n // 2 latents are held out: all have 2 frames, but for the first.
        start = 1 + (len(whole) // 2 - 4) * 2
        assert indices == list(range(start, start + 4))
        assert torch.equal(frames, whole[start : start + 4])


def test_networks_add_to_a_report_and_change_nothing_else(coded, tokenizer, i3d, tmp_path):
    model = generator("masked", LEVELS, torch.float32, num_steps=2)
    options = dict(data=coded / "videos", num_valid_latents=4, num_latents=3, num_samples=2)
    reports = []
    for networks in (EvaluationNetworks(), EvaluationNetworks(small_perceptual(), i3d)):
        evaluate_generator(
            model, tokenizer.float(), CodesDataset(coded / "codes"), tmp_path, networks=networks,
            **options,
        )  # fmt: skip
        reports.append(json.loads((tmp_path / "report.json").read_text()))
    plain, full = reports
    text = (tmp_path / "report.md").read_text()
    assert full.pop("fvd")["num_generated"] == 6
    assert len(full.pop("perceptual")["pairwise"]) == 3
    assert full.pop("networks")["i3d"]["protocol"] == "stylegan-v"
    assert plain.pop("networks") == dict(perceptual=None, i3d=None)
    for row in full["videos"]:
        assert min(row.pop("perceptual")["pairwise"]) > 0
    assert full == plain
    assert "| 6 samples |" in text
    assert "fewer than the 7 features" in text


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (dict(num_latents=1), "I3D needs at least 10 frames.*num_latents is 1"),
        (dict(num_latents=5), "0 videos have 5 held-out latent frames"),
        (dict(max_videos=1), "1 videos have 2"),
    ],
)
def test_what_networks_cannot_measure_is_said_at_once(
    coded, tokenizer, i3d, tmp_path, options, said
):
    model = generator("autoregressive", LEVELS, torch.float32)
    codes, networks = CodesDataset(coded / "codes"), EvaluationNetworks(None, i3d)
    with pytest.raises(ValueError, match=said):
        evaluate_generator(
            model, tokenizer.float(), codes, tmp_path / "out", networks=networks,
            num_valid_latents=4, **options,
        )  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_frames_too_small_for_a_network_are_refused(coded, tokenizer, tmp_path):
    network = small_perceptual()
    network.trunk.min_size = 17
    with pytest.raises(ValueError, match=r"frames of 16 pixels: .* needs 17"):
        evaluate_generator(
            generator("masked", LEVELS, torch.float32), tokenizer.float(),
            CodesDataset(coded / "codes"), tmp_path / "out",
            networks=EvaluationNetworks(network), num_valid_latents=4,
        )  # fmt: skip


def test_another_video_than_the_one_tokenized_is_noticed(coded, tokenizer, tmp_path):
    model = generator("masked", LEVELS, torch.float32, num_steps=1)
    for frames, height, said in ((3, 16, "has 3 frames"), (40, 24, "24 x 16")):
        path = tmp_path / f"{frames}.mkv"
        make_video(path, frames, height, 16, codec="ffv1")
        with pytest.raises(ValueError, match=f"{said}.*is it the one of 0.codes"):
            evaluate_generator(
                model, tokenizer.float(), CodesDataset(coded / "codes"), tmp_path / "out",
                data={f"{n}.codes.safetensors": path for n in range(3)}, num_valid_latents=4,
            )  # fmt: skip
