"""A tokenizer on a folder of videos and images: measured clip by clip, reported as a whole.

Any number of files and clips go through in the memory of one clip, besides 8 bytes for each number
of a clip while the report is made. A run that was stopped goes on where it was, and its report is
the one that it would have been.
"""

import os
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from magvit2_pytorch.data.sources import Source
from magvit2_pytorch.evaluation.clips import (
    Clip,
    ClipChoice,
    EvaluatedFile,
    SkippedFile,
    files_digest,
    find_files,
    iter_clips,
)
from magvit2_pytorch.evaluation.compatibility import check_supports_files
from magvit2_pytorch.evaluation.corpus import OUT_OF_MEMORY
from magvit2_pytorch.evaluation.identity import TokenizerId, weights_hash
from magvit2_pytorch.evaluation.journal import SAVE_EVERY_S, EvaluationError, Journal
from magvit2_pytorch.evaluation.measure import ClipMeasurement, EvaluationNetworks, Totals, measure
from magvit2_pytorch.evaluation.media import media_kind
from magvit2_pytorch.evaluation.overlap import prefetch
from magvit2_pytorch.evaluation.report import FORMAT, FORMAT_VERSION, summarize, write_report
from magvit2_pytorch.evaluation.report_picture import write_pictures
from magvit2_pytorch.tokenizer.model import VideoTokenizer
from magvit2_pytorch.tokenizer.tile_size import TileSize, check_tile_size
from magvit2_pytorch.types import Precision


class EvaluationProgress:
    """Is told how an evaluation goes; what a method raises ends the run, which can go on later."""

    def planned(self, done_before: int, at_most: int) -> None:
        """So many clips were measured by earlier runs, of at most so many in all."""

    def measured(self, done: int, at_most: int) -> None:
        """So many clips are measured now."""

    def skipped(self, name: str, reason: str) -> None:
        """A file that cannot be used."""


class Evaluation:
    """What is to be measured, and how; `run` does it, or what is left of it.

    Raises `ValueError` on a conditional tokenizer, a network that does not take such clips and what
    `find_media` finds nothing in, and `FileNotFoundError` where there is no `source`.
    """

    def __init__(
        self,
        tokenizer: VideoTokenizer,
        source: Source,
        choice: ClipChoice | None = None,
        *,
        judges: EvaluationNetworks | None = None,
        precision: Precision = "fp32",
        tile_size: TileSize | None = None,
        tokenizer_id: TokenizerId | None = None,
    ):
        check_supports_files(tokenizer, needs_codes=False)
        check_tile_size(tile_size, tokenizer.space_factor)
        self.tokenizer = tokenizer
        self.choice, self.judges = choice or ClipChoice(), judges or EvaluationNetworks()
        self.how = dict(precision=precision, tile_size=tile_size)
        self.tokenizer_id = tokenizer_id or TokenizerId.of(tokenizer)
        self.source = _said(source)
        self.files = find_files(source, self.choice)
        has_videos = any(media_kind(file.path) == "video" for file in self.files)
        if self.judges.i3d is not None and has_videos:
            self.judges.i3d.check(self.choice.num_frames, tokenizer.config.channels)

    def run(
        self, folder: str | os.PathLike, progress: EvaluationProgress | None = None
    ) -> dict[str, Any]:
        """Measures all clips and writes a report into `folder`; gives what `report.json` holds.

        Beside it are `report.md`, pictures of the worst, the median and the best clip, and
        `clips.jsonl` with a line for each clip. Files that cannot be used are named in the report.
        Where an earlier run was stopped, this one goes on. Raises `EvaluationError` where `folder`
        holds another evaluation, no clip can be measured, or a reconstruction is not finite.
        """
        about = self._about()
        times = dict(digest_with_times=files_digest(self.files, with_times=True))
        with Journal(folder, about | dict(data=about["data"] | times)) as journal:
            totals = {kind: Totals(self.tokenizer, self.judges) for kind in ("video", "image")}
            _load(totals, journal.state)
            self._measure_all(journal, totals, progress or EvaluationProgress())
            report = dict(
                about,
                model=_about_model(self.tokenizer, self.tokenizer_id),
                data=about["data"] | dict(source=self.source),
                **summarize(journal.lines, totals, self.judges, self.choice.seed),
                elapsed_s=round(journal.total_s, 1),
            )
        there = (self.files, self.choice, self.tokenizer, self.how)
        pictures = write_pictures(Path(folder), report, *there)
        write_report(Path(folder), report, pictures)
        return report

    def _measure_all(
        self, journal: Journal, totals: dict[str, Totals], progress: EvaluationProgress
    ) -> None:
        """Measures what is left, a line in the journal for each clip and each unusable file."""
        position = _Position(self.files, self.choice)
        for line in journal.lines():
            position.pass_by(line)
        progress.planned(position.num_clips, position.at_most)
        channels = self.tokenizer.config.channels
        left = iter_clips(self.files[position.file :], self.choice, channels, position.clip)
        state = partial(_state, totals)
        in_step = True
        try:
            with prefetch(left) as coming:
                while not position.at_end and (clip := next(coming, None)) is not None:
                    measured, line = self._measure(clip)
                    in_step = False
                    if measured is not None:
                        totals[clip.kind].add(measured)
                    journal.append(line)
                    in_step = True
                    position.pass_by(line)
                    journal.save(state, SAVE_EVERY_S)
                    if isinstance(clip, SkippedFile):
                        progress.skipped(clip.name, clip.reason)
                    progress.measured(position.num_clips, position.at_most)
        finally:
            if in_step:  # not where an interrupt came between a clip's sums and its line
                journal.save(state)

    def _measure(self, clip: Clip | SkippedFile) -> tuple[ClipMeasurement | None, dict[str, Any]]:
        """What a clip gave, and its line; of an unusable file only that."""
        if isinstance(clip, SkippedFile):
            return None, dict(path=clip.name, skipped=clip.reason)
        num_frames, height, width = clip.frames.shape[:3]
        try:
            measured = measure(self.tokenizer, clip, self.judges, **self.how)
        except OUT_OF_MEMORY as error:
            raise EvaluationError(
                f"{num_frames} frames of {height} x {width} of {clip.name} do not fit into memory: "
                "give tile_size auto, or a size"
            ) from error
        return measured, dict(
            path=clip.name,
            clip=clip.number,
            num_clips=clip.num_clips,
            kind=clip.kind,
            start_frame=clip.start_frame,
            num_frames=num_frames,
            height=height,
            width=width,
            fps=clip.fps,
            **measured.values,
        )

    def _about(self) -> dict[str, Any]:
        """What the numbers depend on, in plain values."""
        perceptual, i3d = self.judges
        judges = dict(perceptual=None, i3d=None)
        if perceptual is not None:
            judges["perceptual"] = dict(name=perceptual.name, weights=weights_hash(perceptual))
        if i3d is not None:
            judges["i3d"] = dict(protocol=i3d.protocol, file=i3d.file_hash)
        return dict(
            format=FORMAT,
            format_version=FORMAT_VERSION,
            model=dict(fingerprint=self.tokenizer_id.fingerprint),
            settings=asdict(self.choice) | self.how,
            device=self.tokenizer.device.type,
            judges=judges,
            data=dict(num_files=len(self.files), digest=files_digest(self.files)),
        )


class _Position:
    """How far lines reach into the files: the next file, and the next clip within it."""

    def __init__(self, files: Sequence[EvaluatedFile], choice: ClipChoice):
        self.names = [file.name for file in files]
        self.max_clips = choice.max_clips
        self.clips_in = [
            choice.clips_per_video if media_kind(file.path) == "video" else 1 for file in files
        ]
        """At most, of each file."""
        self.file = self.clip = self.num_clips = 0
        self._expected = sum(self.clips_in)

    @property
    def at_end(self) -> bool:
        return self.num_clips == self.max_clips

    @property
    def at_most(self) -> int:
        """Clips in all, as far as can be known before all files were opened."""
        most = self._expected
        return most if self.max_clips is None else min(most, self.max_clips)

    def pass_by(self, line: dict[str, Any]) -> None:
        """Moves on by a line."""
        while self.names[self.file] != line["path"]:
            self._next_file(self.clip)
        if "skipped" in line:
            self._next_file(self.clip)
            return
        self.clip = line["clip"] + 1
        self.num_clips += 1
        self._expected += line["num_clips"] - self.clips_in[self.file]
        self.clips_in[self.file] = line["num_clips"]

    def _next_file(self, clips_seen: int) -> None:
        self._expected += clips_seen - self.clips_in[self.file]
        self.file, self.clip = self.file + 1, 0


def _state(totals: dict[str, Totals]) -> dict[str, Tensor]:
    return {f"{k}/{name}": x for k, it in totals.items() for name, x in it.state_dict().items()}


def _load(totals: dict[str, Totals], state: dict[str, Tensor]) -> None:
    for kind, it in totals.items():
        start = f"{kind}/"
        it.load_state_dict(
            {name.removeprefix(start): x for name, x in state.items() if name.startswith(start)}
        )


def _said(source: Source) -> str:
    return os.fspath(source) if isinstance(source, str | os.PathLike) else f"{len(source)} files"


def _about_model(tokenizer: VideoTokenizer, tokenizer_id: TokenizerId) -> dict[str, Any]:
    return dict(
        name=tokenizer_id.name,
        fingerprint=tokenizer_id.fingerprint,
        parameters=sum(parameter.numel() for parameter in tokenizer.parameters()),
        quantizer=type(tokenizer.quantizer).__name__,
        codebook_size=tokenizer.codebook_size,
        num_codebooks=tokenizer.num_codebooks,
        time_factor=tokenizer.time_factor,
        space_factor=tokenizer.space_factor,
        bits_per_pixel=tokenizer.bits_per_pixel,
    )
