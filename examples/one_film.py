"""Make new scenes of one film, as `magvit2 film` does, from Python.

python examples/one_film.py path/to/film.mp4 out --minutes 45

Shots are found, a tokenizer, a generator and a decoder of larger frames are trained on them, and
new scenes are drawn. The same call again goes on where the last one stopped. out/film.md shows all
results.
"""

import argparse
from pathlib import Path

from magvit2_pytorch.evaluation.film_run import run_film
from magvit2_pytorch.evaluation.film_work import FilmOptions, FilmWork
from magvit2_pytorch.media.shots import ShotRules, find_shots, measure_frames
from magvit2_pytorch.media.video_reader import VideoFile


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("film", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--minutes", type=float, default=45.0)
    parser.add_argument("--preset", default="small")
    parser.add_argument("--scale", type=int, default=2, help="of scenes over --size; 1, 2 or 4")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--still", type=float, default=1.0, help="0 keeps title cards")
    args = parser.parse_args()

    # What will be used, and what not, before hours of work.
    rules = ShotRules(still=args.still)
    video = VideoFile(args.film)
    for shot in find_shots(measure_frames(video), min_frames=26, rules=rules):
        print(f"{shot.start / video.fps:8.2f} s: {shot.num_frames} frames, {shot.kind}")

    options = FilmOptions(
        minutes=args.minutes,
        preset=args.preset,
        scale=args.scale,
        size=args.size,
        scenes=2,
        seconds=args.seconds,
    )
    print(run_film(FilmWork(args.film, args.output, options, rules)))


if __name__ == "__main__":
    main()
