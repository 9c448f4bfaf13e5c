"""Items are functions of a key; unusable files are replaced, counted and named once."""

import pickle
import warnings
from itertools import islice

import pytest
import torch
from PIL import Image

from magvit2_pytorch.data.clips import ClipSpec
from magvit2_pytorch.data.datasets import ImageDataset, VideoDataset
from magvit2_pytorch.data.loader import InfiniteBatches
from magvit2_pytorch.media.frames import check_range, to_float
from magvit2_pytorch.media.video_reader import VideoFile
from tests.data.clip_files import make_audio, make_format, make_video, pictures

SPEC = ClipSpec(num_frames=5, image_size=32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    make_format(folder, "b_frames.mp4")
    make_format(folder, "vp9.webm", 20)
    make_format(folder, "flat.gif", 12)
    return folder


@pytest.fixture
def mixed(tmp_path):
    """Three usable videos among one file of each kind of error."""
    make_format(tmp_path, "b_frames.mp4", 10)
    make_format(tmp_path, "mpeg4.avi", 10)
    make_format(tmp_path, "mpeg2.mpg", 10)
    make_format(tmp_path, "h264.mkv", 10).rename(tmp_path / "misnamed.mov")
    make_video(tmp_path / "short.mp4", 4)
    make_audio(tmp_path / "sound.mp4")
    (tmp_path / "empty.mkv").touch()
    (tmp_path / "text.webm").write_text("not a video")
    broken = make_video(tmp_path / "cut.mp4")
    broken.write_bytes(broken.read_bytes()[:3000])
    return tmp_path


def quiet(dataset_class, *args, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return dataset_class(*args, **options)


def test_an_item_is_a_clip(folder):
    dataset = VideoDataset(folder, SPEC)
    assert len(dataset) == 3
    for item in (dataset[i] for i in range(3)):
        assert item.shape == (3, 5, 32, 32)
        assert item.dtype == torch.float32
        check_range(item)
    with pytest.raises(IndexError):
        dataset[3]
    assert dataset.skipped == {}


def test_an_item_is_a_function_of_its_key(folder):
    spec = ClipSpec(num_frames=5, image_size=24, random_scale=(1, 1.5), flip=True)
    dataset = VideoDataset(folder, spec, seed=3)
    first = dataset[(1, 0)]
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert not torch.equal(dataset[(2, 0)], first)
    assert torch.equal(dataset[(1, 0)], first)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(pickle.loads(pickle.dumps(dataset))[(1, 0)], first)
    assert not torch.equal(VideoDataset(folder, spec, seed=4)[(1, 0)], first)
    dataset.set_epoch(1)
    assert torch.equal(dataset[0], first)


def test_without_training_nothing_is_random(folder):
    spec = ClipSpec(num_frames=5, image_size=32, flip=True, random_scale=(1.2, 1.5))
    dataset = VideoDataset(folder, spec, train=False)
    assert torch.equal(dataset[(0, 0)], dataset[(7, 0)])
    frames = VideoFile(dataset.paths[0]).read(range(12, 17), (32, 43))
    assert torch.equal(dataset[0], to_float(frames[:, :, 5:37]))


def test_flipping_mirrors_half_of_the_clips(tmp_path):
    path = make_video(tmp_path / "a.mp4", 5)
    plain = VideoDataset(path, ClipSpec(num_frames=5, image_size=(48, 64)))[0]
    dataset = VideoDataset(path, ClipSpec(num_frames=5, image_size=(48, 64), flip=True))
    flipped = [torch.equal(dataset[(epoch, 0)], plain.flip(-1)) for epoch in range(24)]
    same = [torch.equal(dataset[(epoch, 0)], plain) for epoch in range(24)]
    assert 5 < sum(flipped) < 19
    assert sum(flipped) + sum(same) == 24


def test_training_and_validation_share_no_frame(tmp_path):
    path = make_video(tmp_path / "a.mkv", 30, codec="ffv1")
    spec = ClipSpec(num_frames=5, image_size=(48, 64))
    train = VideoDataset(path, spec, frame_range=(None, -5))
    valid = VideoDataset(path, spec, frame_range=(-5, None), train=False)
    everything = to_float(VideoFile(path).read(range(30)))
    assert torch.equal(valid[0], everything[:, 25:])
    held_out = everything[:, 25]
    for epoch in range(20):
        assert not (train[(epoch, 0)] == held_out[:, None]).flatten(2).all(2).all(0).any()


def test_several_clips_per_video(folder):
    dataset = VideoDataset(folder, SPEC, train=False, clips_per_video=3)
    assert len(dataset) == 9
    first, last = dataset[0], dataset[6]
    video = VideoFile(dataset.paths[0])
    assert torch.equal(first, to_float(video.read(range(5), (32, 43))[:, :, 5:37]))
    assert torch.equal(last, to_float(video.read(range(25, 30), (32, 43))[:, :, 5:37]))


def test_unusable_files_are_named_once(mixed):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        dataset = VideoDataset(mixed, SPEC)
        items = [dataset[(epoch, i)] for epoch in range(2) for i in range(len(dataset))]
    assert len(items) == 18
    reasons = {path.rsplit("/", 1)[-1]: reason for path, reason in dataset.skipped.items()}
    assert sorted(reasons) == ["cut.mp4", "empty.mkv", "short.mp4", "sound.mp4", "text.webm"]
    assert "too short: 4 frames" in reasons["short.mp4"]
    assert "no video stream" in reasons["sound.mp4"]
    messages = [str(w.message) for w in caught if "skipped" in str(w.message)]
    assert len(messages) == len(set(messages)) == 5


def test_replacements_do_not_depend_on_earlier_reads(mixed):
    fresh, used = quiet(VideoDataset, mixed, SPEC), quiet(VideoDataset, mixed, SPEC)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for i in range(len(used)):
            used[(5, i)]
        for i in reversed(range(len(used))):
            assert torch.equal(fresh[(1, i)], used[(1, i)])


def test_workers_report_what_they_skip(mixed):
    dataset = quiet(VideoDataset, mixed, SPEC)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        batches = InfiniteBatches(dataset, 3, num_workers=2, shuffle=False)
        assert sum(len(batch) for batch in islice(batches, 3)) == 9
        assert len(dataset.skipped) == 5


def test_a_file_that_breaks_later_is_replaced(tmp_path):
    paths = [make_video(tmp_path / f"{i}.mp4", 8) for i in range(2)]
    dataset = VideoDataset(tmp_path, SPEC)
    dataset[1]
    paths[1].write_bytes(paths[1].read_bytes()[:500])
    with pytest.warns(UserWarning, match=r"skipped .*1\.mp4"):
        item = dataset[1]
    assert item.shape == (3, 5, 32, 32)
    assert list(dataset.skipped) == [str(paths[1])]


def test_pad_short_keeps_short_videos(tmp_path):
    path = make_video(tmp_path / "a.mp4", 3)
    spec = ClipSpec(num_frames=5, image_size=32, pad_short=True)
    item = VideoDataset(path, spec)[0]
    assert torch.equal(item[:, 2], item[:, 4])
    assert not torch.equal(item[:, 1], item[:, 2])


def test_no_usable_file_is_an_error_before_training(tmp_path):
    (tmp_path / "a.mp4").touch()
    make_video(tmp_path / "b.mp4", 2)
    with (
        pytest.warns(UserWarning, match="skipped"),
        pytest.raises(ValueError, match=r"none of the 2 videos in .* a clip needs 5 frames"),
    ):
        VideoDataset(tmp_path, SPEC)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        VideoDataset(tmp_path / "x", SPEC)


def test_wrong_settings_are_refused(tmp_path):
    path = make_video(tmp_path / "a.mp4", 6)
    with pytest.raises(ValueError, match="clips_per_video"):
        VideoDataset(path, SPEC, clips_per_video=0)
    with pytest.raises(ValueError, match="frame_range"):
        VideoDataset(path, SPEC, frame_range=(0.5, 3.0))


@pytest.fixture
def images(tmp_path):
    picture = Image.fromarray(next(pictures(1)))
    for name in ("a.jpg", "b.JPEG", "c.png", "d.webp", "e.bmp"):
        picture.save(tmp_path / name)
    picture.convert("L").save(tmp_path / "grey.png")
    picture.convert("P").save(tmp_path / "palette.png")
    picture.convert("CMYK").save(tmp_path / "print.jpg")
    (tmp_path / "empty.png").touch()
    whole = (tmp_path / "c.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    make_video(tmp_path / "video.mp4", 2).rename(tmp_path / "video.jpg")
    make_video(tmp_path / "video.mp4", 9)
    return tmp_path


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_images(images, channels):
    dataset = quiet(ImageDataset, images, ClipSpec(image_size=32, channels=channels, flip=True))
    assert len(dataset) == 11
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for i in range(11):
            assert dataset[i].shape == (channels, 32, 32)
            check_range(dataset[i])
    skipped = sorted(path.rsplit("/", 1)[-1] for path in dataset.skipped)
    assert skipped == ["cut.png", "empty.png", "video.jpg"]


def test_an_image_and_a_one_frame_video_are_resized_alike(tmp_path):
    picture = next(pictures(1))
    Image.fromarray(picture).save(tmp_path / "a.png")
    # RGB in a lossless codec, so that no colour matrix comes between.
    import av

    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "bgr0"
        frame = av.VideoFrame.from_ndarray(picture, "rgb24").reformat(format="bgr0")
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    spec = ClipSpec(num_frames=1, image_size=(20, 24))
    image = ImageDataset(tmp_path, spec, train=False)[0]
    video = VideoDataset(tmp_path, spec, train=False)[0]
    assert (image - video[:, 0]).abs().max() < 2 / 127.5


def test_an_image_is_read_upright(tmp_path):
    from magvit2_pytorch.media.images import read_image

    picture = Image.fromarray(next(pictures(1)))
    exif = picture.getexif()
    exif[0x0112] = 6  # the camera was held on its side
    picture.save(tmp_path / "a.png", exif=exif)
    assert read_image(tmp_path / "a.png").shape == (64, 48, 3)
    assert read_image(tmp_path / "a.png", size=(10, 9)).shape == (10, 9, 3)
    deep = Image.fromarray((torch.arange(256).reshape(16, 16) * 257).to(torch.uint16).numpy())
    deep.save(tmp_path / "deep.png")
    levels = read_image(tmp_path / "deep.png", channels=1)[..., 0]
    assert torch.equal(levels, torch.arange(256, dtype=torch.uint8).reshape(16, 16))
