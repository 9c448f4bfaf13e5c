"""Generators of one film's codes: bits of held-out codes, and speed, of each way to build one.

magvit2 tokenize CLIPS --model RUN -o codes --size 128 --views flip,shift:4
python benchmarks/generators.py train codes --minutes 5
python benchmarks/generators.py ablations codes --steps 300
python benchmarks/generators.py speed
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch

from magvit2_pytorch.codes.code_windows import read_grid
from magvit2_pytorch.codes.codes_dataset import CodesDataset
from magvit2_pytorch.generators import GENERATOR_PRESETS, build_generator
from magvit2_pytorch.generators.autoregressive import AutoregressiveGenerator, GeneratorState
from magvit2_pytorch.generators.compression import compress_codes
from magvit2_pytorch.training.generator_task import GeneratorTrainer, generator_for

LEFT_ONLY = ((0, 0, -1),)
ABLATIONS = {
    "ar-tiny": {},
    "without stem (left neighbour only)": dict(neighbours=LEFT_ONLY, order="raster"),
    "independent digits": dict(head="independent"),
    "two sub-tokens (512, 125)": dict(group=512),
    "raster order": dict(order="raster"),
    "ALiBi over the sequence": dict(positions="alibi"),
    "ALiBi over the grid": dict(positions="grid_alibi"),
}
LEVELS = {"FSQ 64,000": (8, 8, 8, 5, 5, 5), "LFQ 2^18": (2,) * 18}


def train(folder: str, preset: str, model: dict, **options) -> tuple[float, float, int]:
    """Held-out bits of a code, codes per second and steps of one training."""
    with tempfile.TemporaryDirectory() as work:
        options = GENERATOR_PRESETS.training(preset) | dict(
            validate_every_step=10**9, checkpoint_every_step=10**9, num_valid_latents=5,
            results_folder=work, checkpoints_folder=f"{work}/checkpoints", progress_bar=False,
        ) | options  # fmt: skip
        torch.manual_seed(0)
        model = GENERATOR_PRESETS.model(preset) | model
        generator = generator_for(CodesDataset(folder), crop=options["crop"], **model)
        trainer = GeneratorTrainer(generator, dataset_folder=folder, **options)
        trainer.train()
        bits = trainer.validate()["valid/bits"]
        codes = trainer.step * options["batch_size"] * options["num_latent_frames"]
        rows, columns = trainer.task.windows.size
        return bits, codes * rows * columns / trainer.elapsed_s, trainer.step


def median_s(work: Callable[[], object], repeats: int = 9) -> float:
    """Median time of a call after a first one, in seconds of the process."""
    return medians_s([work], repeats)[0]


def medians_s(works: Sequence[Callable[[], object]], repeats: int = 9) -> list[float]:
    """Median times of calls in turn, after a first one of each, in seconds of the process."""
    times = [[] for _ in works]
    for _ in range(1 + repeats):
        for work, own in zip(works, times, strict=True):
            started = time.process_time()
            work()
            own.append(time.process_time() - started)
    return [statistics.median(own[1:]) for own in times]


def speed() -> None:
    """Training step and generation of `ar-tiny`, in codes per second of one core."""
    torch.set_num_threads(1)
    for name, levels in LEVELS.items():
        generator = build_generator(**GENERATOR_PRESETS.model("ar-tiny"), levels=(levels,))
        size = 2 ** len(levels) if name.startswith("LFQ") else 64_000
        codes = torch.randint(size, (1, 3, 16, 16))
        optimizer = torch.optim.AdamW(generator.parameters())

        def step(codes=codes, generator=generator, optimizer=optimizer):
            optimizer.zero_grad()
            generator.loss(codes)[0].backward()
            optimizer.step()

        print(f"{name}: training {codes.numel() / median_s(step):,.0f} codes/s", flush=True)
        for batch in (1, 8):
            early = after_frames(generator.eval(), generator.begin(batch, (16, 28)), 4)
            rate = batch * 16 * 28 / median_s(partial(generator.next_frame, early))
            print(f"  generating, {batch} film(s) of 16 x 28: {rate:,.0f} codes/s", flush=True)
        early = after_frames(generator, generator.begin(1, (16, 28)), 5)
        late = after_frames(generator, early, 195)
        first, last = medians_s([partial(generator.next_frame, state) for state in (early, late)])
        print(f"  a frame after 200 latents over one after 5: {last / first:.3f}", flush=True)


def after_frames(
    generator: AutoregressiveGenerator, state: GeneratorState, number: int
) -> GeneratorState:
    """The state after a number of drawn frames."""
    for _ in range(number):
        state = generator.next_frame(state)[1]
    return state


def compression(folder: str, generator_folder: str) -> None:
    """Length of each held-out end, coded by itself, over that of codes of a fixed length."""
    from magvit2_pytorch.generators import load_generator

    generator, codes = load_generator(generator_folder), CodesDataset(folder)
    for number, path in enumerate(codes.paths):
        length = codes.grid(number)[0]
        end = read_grid(codes, number, length - 5, length)
        bits = 8 * len(compress_codes(end, generator))
        print(f"{path}: {bits / end.numel():.2f} bits a code, {bits / end.numel() / 16:.1%}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=["train", "ablations", "speed", "compression"])
    parser.add_argument("codes", nargs="?")
    parser.add_argument("generator", nargs="?")
    parser.add_argument("--preset", default="ar-tiny")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--crop", type=int, nargs=2, default=[16, 16], help="of ablations")
    args = parser.parse_args()
    if args.what == "speed":
        speed()
    elif args.what == "compression":
        compression(args.codes, args.generator)
    elif args.what == "train":
        limits = dict(num_train_steps=10**6, max_duration_s=60 * args.minutes)
        bits, rate, steps = train(args.codes, args.preset, {}, **limits)
        print(f"{args.preset}: {bits:.3f} bits, {rate:,.0f} codes/s, {steps} steps")
    else:
        options = dict(num_train_steps=args.steps, crop=tuple(args.crop))
        codes = CodesDataset(args.codes)
        widths = {codes.grid(number)[2] for number in range(len(codes.paths))}
        for name, model in ABLATIONS.items():
            if model.get("positions") == "alibi" and widths != {args.crop[1]}:
                print(f"{name}: needs codes of one width and --crop as wide")
                continue
            started = time.process_time()
            bits, rate, _ = train(args.codes, args.preset, model, **options)
            seconds = time.process_time() - started
            print(f"{name}: {bits:.3f} bits, {seconds:.0f} CPU s", flush=True)


if __name__ == "__main__":
    main()
