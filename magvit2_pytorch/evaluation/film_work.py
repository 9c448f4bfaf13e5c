"""Options and shared values of the stages of one film."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch

from magvit2_pytorch.atomic import replace_json
from magvit2_pytorch.codes.views import parse_views
from magvit2_pytorch.config import check_at_least_one
from magvit2_pytorch.data.clips import ClipSpec
from magvit2_pytorch.evaluation.generator_run import VIEWS
from magvit2_pytorch.generators.generator import GENERATOR_PRESETS
from magvit2_pytorch.media.shots import ShotRules
from magvit2_pytorch.pipelines.media_file import frame_size
from magvit2_pytorch.tokenizer.model import VideoTokenizer
from magvit2_pytorch.tokenizer.presets import preset, recipe

SHARES = {"tokenizer": 0.40, "codes": 0.10, "generator": 0.25, "super_resolution": 0.15}
"""Shares of `minutes`; the rest is for cutting, measuring and scenes, which take as they need."""


@dataclass(frozen=True, kw_only=True)
class FilmOptions:
    """Options of all stages from a film to new scenes."""

    minutes: float = 45.0
    """Time for all stages: 40 % for the tokenizer, 10 % for codes (further views of the film are
    left out then), 25 % for the generator, 15 % for super-resolution; the rest is for cutting,
    measuring and scenes, which take as long as they need."""
    tokenizer_minutes: float | None = None
    """Time to train the tokenizer instead of its share."""
    codes_minutes: float | None = None
    """Time to tokenize views of the film instead of its share; the film itself is always done."""
    generator_minutes: float | None = None
    """Time to train the generator instead of its share."""
    super_resolution_minutes: float | None = None
    """Time to train the decoder of larger frames instead of its share."""
    size: int = 128
    """Short side of the frames that are tokenized, in pixels."""
    scale: Literal[1, 2, 4] = 2
    """Pixels of a scene to the side of one that is tokenized; 1 leaves super-resolution out."""
    grey: Literal["auto", "yes", "no"] = "auto"
    """One channel (yes) or three (no); auto looks for colour."""
    min_frames: int | None = None
    """Frames of the shortest shot to use; by default two clips of training and a gap of 8."""
    preset: str = "small"
    """Preset of the tokenizer, and its recipe."""
    generator_preset: str = "ar-tiny"
    """Preset of the generator, and its recipe."""
    views: str = VIEWS
    """Views that are tokenized besides the film itself, as in `magvit2 tokenize`."""
    scenes: int = 4
    """Number of new scenes: half of them go on from the end of a shot, half begin from nothing."""
    seconds: float = 4.0
    """Length of the new part of a scene."""
    seed: int = 42
    """Random seed of weights, data and scenes."""

    def __post_init__(self):
        for name in ("minutes", *(f"{stage}_minutes" for stage in SHARES), "seconds"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name} is {value}: give a number above 0")
        check_at_least_one(size=self.size, scenes=self.scenes)
        if self.scale not in (1, 2, 4):
            raise ValueError(f"scale is {self.scale}: use 1, 2 or 4")
        # Unknown names raise errors.
        GENERATOR_PRESETS[self.generator_preset]
        parse_views(self.views)
        image_size = preset(self.preset)["image_size"]
        if self.size < image_size:
            raise ValueError(
                f"size is {self.size}: {self.preset} trains on crops of {image_size} pixels, so "
                "give as many or more"
            )

    def minutes_of(self, stage: str) -> float:
        own = getattr(self, f"{stage}_minutes")
        return SHARES[stage] * self.minutes if own is None else own


@dataclass
class FilmWork:
    """A film, the folder of its stages, and what they share."""

    film: Path
    folder: Path
    options: FilmOptions = field(default_factory=FilmOptions)
    rules: ShotRules = field(default_factory=ShotRules)
    # Changes of the presets' options, under "model" and "training".
    tokenizer_options: dict[str, dict[str, Any]] = field(default_factory=dict)
    generator_options: dict[str, dict[str, Any]] = field(default_factory=dict)
    say: Callable[[str], object] = print

    @property
    def training(self) -> dict[str, Any]:
        """Options of the tokenizer's training."""
        return recipe(self.options.preset) | self.tokenizer_options.get("training", {})

    @property
    def clip_frames(self) -> int:
        """Frames of a training clip, a held-out tail and a prompt."""
        return self.training.get("num_frames", 17)

    @cached_property
    def shots(self) -> dict[str, Path]:
        """The shots to use, by name, once the film is cut."""
        return {path.stem: path for path in sorted((self.folder / "cut" / "shots").glob("*.mp4"))}

    @cached_property
    def tokenizer(self) -> VideoTokenizer:
        """The trained tokenizer."""
        return self.trained("tokenizer")

    def trained(self, stage: str) -> VideoTokenizer:
        """The tokenizer that a stage has trained."""
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return VideoTokenizer.from_pretrained(self.folder / stage / "tokenizer").to(device)

    @property
    def num_valid_latents(self) -> int:
        """Latent frames within a held-out tail."""
        return max(1, (self.clip_frames - 1) // self.tokenizer.time_factor)

    def frame_size(self, tokenizer: VideoTokenizer, scale: int = 1) -> tuple[int, int]:
        """Height and width of `scale` times the frames that are tokenized."""
        factor = tokenizer.space_factor // scale
        sides = frame_size(*self.figures("cut")["size"], self.options.size)
        height, width = (max(factor, side // factor * factor) * scale for side in sides)
        return height, width

    def clip_specs(self, tokenizer: VideoTokenizer, scale: int = 1) -> tuple[ClipSpec, ClipSpec]:
        """Formats of training clips, which are crops, and of held-out tails."""
        times = self.options.size * scale / min(tokenizer.config.height_and_width)
        whole = ClipSpec(
            num_frames=self.clip_frames,
            image_size=self.frame_size(tokenizer, scale),
            channels=tokenizer.config.channels,
            flip=self.training.get("flip", False),
        )
        crops = replace(
            whole,
            image_size=tokenizer.config.image_size,
            random_scale=(times, times) if times > 1 else None,
        )
        return crops, whole

    def figures(self, stage: str) -> dict[str, Any]:
        """The figures of a stage that is done."""
        return read_record(self.folder / stage)["figures"]


RECORD = "stage.json"


def read_record(folder: Path) -> dict[str, Any] | None:
    """Settings of a stage once begun, and figures once done."""
    path = folder / RECORD
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def write_record(folder: Path, settings: dict[str, Any], figures: dict[str, Any] | None) -> None:
    """Writes the record of a stage atomically."""
    replace_json(folder / RECORD, {"settings": settings, "figures": figures})
