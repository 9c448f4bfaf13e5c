"""Stages from a film to new scenes; each can be done again."""

from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from magvit2_pytorch.codes.codes_dataset import CodesDataset
from magvit2_pytorch.codes.views import View, parse_views
from magvit2_pytorch.convert.inflate import enlarged
from magvit2_pytorch.data.clips import ClipSpec
from magvit2_pytorch.data.datasets import VideoDataset
from magvit2_pytorch.evaluation.clip_choice import ClipChoice
from magvit2_pytorch.evaluation.evaluator import Evaluation
from magvit2_pytorch.evaluation.film_work import FilmWork
from magvit2_pytorch.evaluation.generator_report import evaluate_generator
from magvit2_pytorch.evaluation.generator_run import (
    encode_views,
    psnr_sentence,
    timed_run,
    train_generator,
)
from magvit2_pytorch.generators.generator import load_generator
from magvit2_pytorch.generators.sampling import Sampling
from magvit2_pytorch.layers.resample import BicubicUpsample
from magvit2_pytorch.media.frames import to_uint8
from magvit2_pytorch.media.images import write_grid
from magvit2_pytorch.media.shots import (
    FrameMeasures,
    find_shots,
    is_grey,
    measure_frames,
    write_shots,
    write_table,
)
from magvit2_pytorch.media.video_reader import VideoFile
from magvit2_pytorch.metrics.quality import psnr
from magvit2_pytorch.pipelines.fingerprint import TokenizerId, fingerprint
from magvit2_pytorch.pipelines.generation import empty_prompt, generate_films, read_prompt
from magvit2_pytorch.pipelines.inference import reconstruct_clip
from magvit2_pytorch.pipelines.media_file import frame_size
from magvit2_pytorch.tokenizer.model import VideoTokenizer
from magvit2_pytorch.tokenizer.presets import recipe
from magvit2_pytorch.training.tokenizer_task import VideoTokenizerTrainer
from magvit2_pytorch.training.training_config import TrainingConfig
from magvit2_pytorch.types import VALUE_RANGE

GAP_FRAMES = 8
"""Frames between those that the tokenizer trains on and those that are held out."""
CACHE_GB = 4.0
MAX_SHOWN = 8
"""Shots or frames in a row of a picture; half as many videos in a report, which takes a while."""
TOP_P = 0.9
"""Of scenes: later frames go on from all that was drawn, so unlikely values break a scene up."""


def cut(work: FilmWork, folder: Path) -> dict[str, Any]:
    """Finds the shots of the film and writes the usable ones, small."""
    options, least = work.options, 2 * work.clip_frames + GAP_FRAMES
    min_frames = options.min_frames or least
    if min_frames < least:
        raise ValueError(
            f"min_frames is {min_frames}: a shot needs {least}, for a clip of {work.clip_frames} "
            f"frames to train on, a gap of {GAP_FRAMES} and as long a tail to hold out"
        )
    film = VideoFile(work.film)
    if not (folder / "measures.npy").exists():
        measure_frames(film).save(folder / "measures.npy")
    measures = FrameMeasures.load(folder / "measures.npy")
    shots = find_shots(measures, min_frames, work.rules)
    used = [shot for shot in shots if shot.kind == "shot"]
    grey = is_grey(measures, shots, work.rules) if options.grey == "auto" else options.grey == "yes"
    table = folder / "shots.csv"
    write_table(table, shots, film.fps)
    counts = Counter(shot.kind for shot in shots)
    if not used:
        raise ValueError(
            f"{work.film.name} has no shot of {min_frames} frames or more ({dict(counts)}): see "
            f"{table}; --still 0 keeps pictures without motion, a larger --cut joins shots"
        )
    full = VideoFile(work.film, channels=1 if grey else 3)
    short_side = min(full.height, full.width, options.size * options.scale)
    size = frame_size(full.height, full.width, short_side)
    write_shots(full, used, folder / "shots", size)
    shown = used[:: -(-len(used) // (4 * MAX_SHOWN))]
    middles = full.read([(shot.start + shot.stop) // 2 for shot in shown], (72, 128))
    write_grid(folder / "shots.png", middles.split(MAX_SHOWN))
    seconds = sum(shot.num_frames for shot in used) / film.fps
    left_out = ", ".join(f"{n} {kind}" for kind, n in sorted(counts.items()) if kind != "shot")
    return {
        "sentence": f"{len(used)} shots, {seconds:.0f} s of {len(measures) / film.fps:.0f} s; "
        f"left out: {left_out or 'nothing'}; the film is {'grey' if grey else 'in colour'}",
        "channels": 1 if grey else 3,
        "num_frames": len(measures),
        "fps": film.fps,
        "size": list(size),
        "parts": dict(counts),
        "min_frames": min_frames,
    }


def train_tokenizer(work: FilmWork, folder: Path) -> dict[str, Any]:
    """Trains on the shots without their tails, and measures on these."""
    options, held = work.options, work.clip_frames
    torch.manual_seed(options.seed)
    model = {"channels": work.figures("cut")["channels"]} | work.tokenizer_options.get("model", {})
    tokenizer = VideoTokenizer.from_preset(options.preset, **model)
    training = recipe(options.preset) | timed_run(folder, options.minutes_of("tokenizer"))
    training |= {"seed": options.seed} | work.tokenizer_options.get("training", {})
    clips = shot_clips(work, work.clip_specs(tokenizer), folder / "frames")
    trainer = VideoTokenizerTrainer(tokenizer, **clips, **training)
    trainer.train(resume="auto")
    choice = ClipChoice(
        num_frames=held, size=options.size, frame_range=(-held, None), max_clips=4 * MAX_SHOWN
    )
    report = Evaluation(work.tokenizer, list(work.shots.values()), choice).run(folder / "report")
    decibels = report["videos"]["metrics"]["psnr"]["mean"]
    return {
        "sentence": f"{decibels:.2f} dB on held-out tails after {trainer.step} steps",
        "psnr": decibels,
        "steps": trainer.step,
        "trained_s": round(trainer.elapsed_s, 1),
        "parameters": sum(p.numel() for p in tokenizer.parameters()),
        "bits_per_pixel": tokenizer.bits_per_pixel,
    }


def shot_clips(
    work: FilmWork, specs: tuple[ClipSpec, ClipSpec], cache: Path
) -> dict[str, VideoDataset]:
    """Clips of the shots and their held-out tails, for a trainer."""
    paths, held = list(work.shots.values()), work.clip_frames
    dataset = VideoDataset(
        paths,
        specs[0],
        seed=work.options.seed,
        clips_per_video=64,
        frame_range=(None, -(held + GAP_FRAMES)),
        cache_dir=cache,
        cache_max_gb=CACHE_GB,
    )
    tails = VideoDataset(paths, specs[1], train=False, frame_range=(-held, None))
    return dict(dataset=dataset, valid_dataset=tails)


def tokenize(work: FilmWork, folder: Path) -> dict[str, Any]:
    """Encodes the shots, and views of them as far as time allows."""
    views = parse_views(work.options.views)
    done = encode_views(
        work.tokenizer,
        work.shots,
        folder,
        views,
        size=work.options.size,
        max_duration_s=60 * work.options.minutes_of("codes"),
    )
    codes = CodesDataset(folder)
    number = sum(torch.Size(shape).numel() for shape in codes.shapes)
    return {
        "sentence": f"{number:,} codes of {done} of {len(work.shots) * len(views)} shots and views",
        "num_codes": number,
        "num_files": done,
    }


def train_generator_of_film(work: FilmWork, folder: Path) -> dict[str, Any]:
    """Trains the generator on the codes and measures it on the tails."""
    options, held_out = work.options, dict(num_valid_latents=work.num_valid_latents)
    torch.manual_seed(options.seed)
    codes = work.folder / "codes"
    trainer = train_generator(
        codes,
        folder,
        options.minutes_of("generator"),
        options.generator_preset,
        work.generator_options.get("model"),
        resume="auto",
        seed=options.seed,
        **held_out,
        **work.generator_options.get("training", {}),
    )
    report = evaluate_generator(
        load_generator(folder / "generator").to(work.tokenizer.device),
        work.tokenizer,
        CodesDataset(codes),
        folder / "report",
        data=work.folder / "cut" / "shots",
        max_videos=MAX_SHOWN // 2,
        **held_out,
    )
    return {
        "sentence": f"{psnr_sentence(report)}; {trainer.step} steps",
        "steps": trainer.step,
        "trained_s": round(trainer.elapsed_s, 1),
        "bits": report.get("bits"),
        "prediction": report["prediction"],
        "pictures": [row["picture"] for row in report["videos"]],
    }


def train_super_resolution(work: FilmWork, folder: Path) -> dict[str, Any]:
    """Trains a decoder of larger frames, if the film has them."""
    options, rows = work.options, min(work.figures("cut")["size"])
    high = options.size * options.scale
    if options.scale == 1 or rows < high:
        reason = f": the film has {rows} rows, and {high} are needed" if rows < high else ""
        return {"sentence": f"left out{reason}", "trained": False}
    torch.manual_seed(options.seed)
    tokenizer = enlarged(work.tokenizer, options.scale, fingerprint(work.tokenizer))
    training = recipe(options.preset) | timed_run(folder, options.minutes_of("super_resolution"))
    training |= {"seed": options.seed} | work.tokenizer_options.get("training", {})
    training["freeze_encoder"] = True
    # A quarter of the rate of the tokenizer, whose weights it begins with.
    training["learning_rate"] = TrainingConfig(**work.training).learning_rate / 4
    clips = shot_clips(work, work.clip_specs(tokenizer, options.scale), folder / "frames")
    trainer = VideoTokenizerTrainer(tokenizer, **clips, **training)
    trainer.train(resume="auto")
    bicubic, ours = measure_enlarged(work, clips["valid_dataset"], folder / "frames.png")
    return {
        "sentence": f"{ours:.2f} dB on held-out tails at {high} rows after {trainer.step} steps, "
        f"the tokenizer's frames enlarged by bicubic interpolation {bicubic:.2f} dB",
        "trained": True,
        "psnr": ours,
        "bicubic_psnr": bicubic,
        "steps": trainer.step,
        "trained_s": round(trainer.elapsed_s, 1),
        "pictures": ["frames.png"],
    }


@torch.no_grad()
def measure_enlarged(work: FilmWork, tails: VideoDataset, picture: Path) -> tuple[float, float]:
    """Mean PSNR in dB of enlarged tails: by bicubic interpolation, as trained.

    `picture` shows frames of the first: original, bicubic, as trained.
    """
    tokenizer, scale, values = work.trained("super_resolution"), work.options.scale, []
    for number in range(min(len(tails), 4 * MAX_SHOWN)):
        large = tails[number][None].to(tokenizer.device)
        small, _ = reconstruct_clip(work.tokenizer, F.avg_pool3d(large, (1, scale, scale)))
        recons = [BicubicUpsample(scale)(small)[0], reconstruct_clip(tokenizer, large)[0]]
        recons = [recon.clamp(*VALUE_RANGE) for recon in recons]
        values.append([float(psnr(recon, large)) for recon in recons])
        if not number:
            every = -(-large.shape[2] // 3)
            write_grid(picture, [list(to_uint8(video[0])[::every]) for video in (large, *recons)])
    bicubic, ours = torch.tensor(values).mean(0).tolist()
    return bicubic, ours


def make_scenes(work: FilmWork, folder: Path) -> dict[str, Any]:
    """Generates new scenes, half of them from the ends of shots."""
    options, scale, tokenizer = work.options, 1, work.tokenizer
    if work.figures("super_resolution")["trained"]:
        scale, tokenizer = options.scale, work.trained("super_resolution")
    generator = load_generator(work.folder / "generator" / "generator").to(tokenizer.device)
    record = {"tokenizer": str(TokenizerId.of(tokenizer)), "film": work.film.name}
    shots = list(work.shots.values())
    num_prompts = min(options.scenes // 2 or 1, len(shots))
    prompts = [shots[i * len(shots) // num_prompts] for i in range(num_prompts)]
    fps = work.figures("cut")["fps"]
    num_frames = max(1, round(options.seconds * fps))
    scenes = []
    for number in range(options.scenes):
        shot = prompts[number] if number < num_prompts else None
        path = folder / (f"scene-{number}.mp4" if shot is None else f"after-{shot.name}")
        scenes.append(path.name)
        if path.exists():
            continue
        if shot is None:
            prompt = empty_prompt(tokenizer, *work.frame_size(tokenizer, scale))
        else:
            tail = View(shift=VideoFile(shot).num_frames - work.clip_frames)
            prompt = read_prompt(tokenizer, shot, None, options.size * scale, view=tail)
        generate_films(
            generator, tokenizer, [path], prompt, prompt.num_frames + num_frames,
            sampling=Sampling(seed=options.seed, top_p=TOP_P), first_sample=number, fps=fps,
            record=record,
        )  # fmt: skip
    rows = []
    for scene in scenes:
        video = VideoFile(folder / scene)
        last = video.num_frames - 1
        rows.append(video.read([round(i * last / (MAX_SHOWN - 1)) for i in range(MAX_SHOWN)]))
    height, width = min(row.shape[1:3] for row in rows)
    write_grid(folder / "scenes.png", [row[:, :height, :width] for row in rows])
    return {
        "sentence": f"{len(scenes)} scenes of {num_frames} new frames, "
        f"{num_prompts} from ends of shots",
        "scenes": scenes,
        "num_prompts": num_prompts,
        "prompt_frames": work.clip_frames,
    }
