"""Videos completed by a masked generator: what is visible stays, whatever is hidden."""

from contextlib import contextmanager

import pytest
import torch

from magvit2_pytorch.generators import MaskedGenerator
from magvit2_pytorch.generators.tasks import TASKS
from magvit2_pytorch.media.frames import to_uint8
from magvit2_pytorch.media.video_reader import VideoFile
from magvit2_pytorch.pipelines import generation
from magvit2_pytorch.pipelines.completion import (
    complete_films,
    complete_pixels,
    complete_video,
    read_clip,
    visible_codes,
    visible_pixels,
)
from magvit2_pytorch.pipelines.inference import Inference
from magvit2_pytorch.super_resolution import SuperResolution
from tests.conftest import build, random_video
from tests.data.clip_files import make_video


def small_models(dtype=torch.float64, time="compress_time"):
    """A tokenizer and a masked generator of its codes."""
    tokenizer = build("residual", "compress_space", time, quantizer="fsq").to(dtype)
    torch.manual_seed(0)
    generator = MaskedGenerator(levels=((8, 5, 5),), dim=16, depth=1, heads=2, num_steps=2)
    return tokenizer, generator.to(dtype).eval()


@pytest.mark.parametrize("task", TASKS)
def test_known_codes_are_those_of_the_video(task):
    tokenizer, generator = small_models()
    video = random_video(5, (32, 32), dtype=torch.float64)
    visible = visible_pixels(task, video, 3)
    films = []
    for hidden in (video, random_video(5, (32, 32), dtype=torch.float64)):
        films.append(
            complete_video(generator, tokenizer, torch.where(visible, video, hidden), task, given=3)
        )
    # Hidden pixels have no effect at all.
    assert torch.equal(*films)
    same = (films[0] == tokenizer.tokenize(video)).double()
    if task == "frame_prediction":
        assert same[:, :2].all()
        assert same[:, 2].mean() < 0.5
    if task.startswith("inpainting"):
        # Cells far from the hidden box are known, in all frames.
        assert same[..., 0, 0].all()
        assert same[..., 6:10, 6:10].mean() < 0.5


def test_hidden_pixels_are_guessed_from_the_frames_beside():
    video = torch.arange(5.0).view(1, 1, 5, 1, 1).expand(1, 1, 5, 2, 2).clone() ** 2 / 16
    visible = torch.zeros(5, 2, 2, dtype=torch.bool)
    visible[[0, 4], 0, 0] = True
    visible[2, 0, 1] = True
    visible[:, 1, 0] = True
    completed = complete_pixels(video, visible)[0, 0]
    assert completed[:, 0, 0].tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert completed[:, 0, 1].tolist() == [0.25] * 5
    assert torch.equal(completed[:, 1, 0], video[0, 0, :, 1, 0])
    assert completed[:, 1, 1].tolist() == [0] * 5


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    return make_video(tmp_path_factory.mktemp("film") / "film.mkv", 12, 15, 22, codec="ffv1")


@pytest.fixture
def written(monkeypatch):
    """Frames that are written, by the names of their files."""
    films = {}

    @contextmanager
    def writer(path, kind, fps):
        films[path.name] = []
        yield films[path.name].append

    monkeypatch.setattr(generation, "media_writer", writer)
    return films


@pytest.mark.parametrize("task", TASKS)
def test_films_are_beside_what_their_task_shows(task, film, written, tmp_path):
    tokenizer, generator = small_models(torch.float32)
    paths = [tmp_path / "0.mp4", tmp_path / "1.mp4"]
    options = dict(given=3, num_frames=6, side_by_side=True)
    prompt = complete_films(generator, tokenizer, paths, film, task, **options)
    # Six frames do not fit a time factor of 2.
    assert (prompt.num_frames, prompt.height, prompt.width) == (5, 15, 22)
    video, _ = read_clip(tokenizer, film, 6)
    visible = visible_pixels(task, video, 3)
    real = torch.stack(list(VideoFile(film).frames())[:5])
    left = torch.where(visible[:, :15, :22, None], real, 128)
    codes = complete_video(
        generator, tokenizer, video.expand(2, -1, -1, -1, -1), task, 3, samples=torch.arange(2)
    )
    for path, film_codes in zip(paths, codes, strict=True):
        frames = torch.cat(written[path.name])
        assert torch.equal(frames[:, :, :22], left)
        right = tokenizer.decode_stream(num_frames=5).push(film_codes[None])[0]
        assert torch.equal(frames[:, :, 22:], to_uint8(right)[:, :15, :22])


def test_frames_that_a_decoder_holds_back_are_written(film, written, tmp_path):
    tokenizer, generator = small_models(torch.float32, "vidtok_compress_time_linear")
    assert tokenizer.look_ahead
    path = tmp_path / "0.mp4"
    complete_films(generator, tokenizer, [path], film, "interpolation", num_frames=5)
    video, _ = read_clip(tokenizer, film, 5)
    codes = complete_video(generator, tokenizer, video, "interpolation")
    recon = tokenizer.decode_from_code_indices(codes)[0, ..., :15, :22]
    difference = torch.cat(written[path.name]).int() - to_uint8(recon.clamp(-1, 1)).int()
    assert difference.abs().max() <= 1


def test_both_sides_of_an_enlarged_film_have_one_size(film, written, tmp_path):
    tokenizer, generator = small_models(torch.float32)
    for name, upscaler in (("plain", None), ("large", SuperResolution.from_preset("x2-tiny"))):
        complete_films(
            generator, tokenizer, [tmp_path / f"{name}.mp4"], film, "interpolation",
            num_frames=5, side_by_side=True, upscaler=upscaler and upscaler.eval(),
        )  # fmt: skip
    plain, large = (torch.cat(written[f"{name}.mp4"]) for name in ("plain", "large"))
    assert (plain.shape[1:3], large.shape[1:3]) == ((15, 44), (30, 88))
    for corner in (large[:, ::2, :44:2], large[:, 1::2, 1:44:2]):
        assert torch.equal(corner, plain[:, :, :22])


@pytest.mark.parametrize("task", TASKS)
def test_tiles_and_precision_are_those_asked_for(task):
    tokenizer, generator = small_models()
    video = random_video(5, (32, 48), dtype=torch.float64)
    whole = complete_video(generator, tokenizer, video, task, given=3)
    asked, plain = [], tokenizer.encode_stream
    tokenizer.encode_stream = lambda **options: asked.append(options) or plain(**options)
    tiled = complete_video(
        generator, tokenizer, video, task, given=3, inference=Inference(tile_size=16)
    )
    assert torch.equal(tiled, whole)
    assert asked == [dict(precision="fp32", tile_size=16)]


def test_nothing_to_complete_is_an_error():
    tokenizer, generator = small_models()
    image, video = (random_video(n, (16, 16), dtype=torch.float64) for n in (1, 5))
    for shown, task, given in ((image, "interpolation", 1), (video, "frame_prediction", 5)):
        with pytest.raises(ValueError, match="nothing is left to complete in"):
            complete_video(generator, tokenizer, shown, task, given)
    with pytest.raises(ValueError, match="6 given frames are more than the 5 of the video"):
        complete_video(generator, tokenizer, video, "frame_prediction", 6)
    # A frame that does not complete its latent leaves that to be made.
    assert not visible_codes(tokenizer, visible_pixels("frame_prediction", video, 4)).known[2].any()
