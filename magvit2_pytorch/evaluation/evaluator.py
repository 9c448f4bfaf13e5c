"""Evaluation of a tokenizer on a folder of videos and images.

Memory is that of one clip, plus 8 bytes per value of a clip while the report is computed. An
interrupted run can be continued; its report equals that of an uninterrupted run.
"""

import os
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from magvit2_pytorch.evaluation.evaluation_clips import (
    Clip,
    ClipChoice,
    EvaluatedFile,
    SkippedFile,
    files_digest,
    find_files,
    iter_clips,
)
from magvit2_pytorch.evaluation.journal import SAVE_EVERY_S, EvaluationError, Journal
from magvit2_pytorch.evaluation.measure import ClipMeasurement, EvaluationNetworks, Totals, measure
from magvit2_pytorch.evaluation.report import FORMAT, FORMAT_VERSION, summarize, write_report
from magvit2_pytorch.evaluation.report_picture import write_pictures
from magvit2_pytorch.media.sources import Source
from magvit2_pytorch.pipelines.corpus import OUT_OF_MEMORY
from magvit2_pytorch.pipelines.fingerprint import TokenizerId, check_supports_files, weights_hash
from magvit2_pytorch.pipelines.inference import Inference
from magvit2_pytorch.pipelines.media_file import media_kind
from magvit2_pytorch.pipelines.prefetch import prefetch
from magvit2_pytorch.tokenizer.model import VideoTokenizer


class EvaluationProgress:
    """Callbacks of an evaluation; an exception ends the run."""

    def planned(self, done_before: int, max_total: int) -> None:
        """`done_before` of at most `max_total` clips were measured by earlier runs."""

    def measured(self, done: int, max_total: int) -> None:
        """`done` of at most `max_total` clips are measured."""

    def skipped(self, name: str, reason: str) -> None:
        """A file cannot be used."""


class Evaluation:
    """An evaluation to `run`, or to continue.

    Raises `ValueError` if the tokenizer is conditional, a network does not accept such clips or
    `find_media` finds no files, and `FileNotFoundError` if `source` does not exist.
    """

    def __init__(
        self,
        tokenizer: VideoTokenizer,
        source: Source,
        choice: ClipChoice | None = None,
        *,
        networks: EvaluationNetworks = EvaluationNetworks(),
        inference: Inference = Inference(),
        tokenizer_id: TokenizerId | None = None,
    ):
        check_supports_files(tokenizer, needs_codes=False)
        inference.check(tokenizer)
        self.tokenizer, self.inference = tokenizer, inference
        self.choice, self.networks = choice or ClipChoice(), networks
        self.tokenizer_id = tokenizer_id or TokenizerId.of(tokenizer)
        self.source = _source_name(source)
        self.files = find_files(source, self.choice)
        has_videos = any(media_kind(file.path) == "video" for file in self.files)
        if self.networks.i3d is not None and has_videos:
            self.networks.i3d.check(self.choice.num_frames, tokenizer.config.channels)

    def run(
        self, folder: str | os.PathLike, progress: EvaluationProgress | None = None
    ) -> dict[str, Any]:
        """Measures all clips, writes a report to `folder` and returns its contents.

        The report is `report.json`, and `report.md` for people, with pictures of the worst, the
        median and the best clip. `clips.jsonl` has a line for each clip. Files that cannot be used
        are named. An interrupted run is continued. Raises `EvaluationError` if `folder` holds
        another evaluation, no clip can be measured, or a reconstruction is not finite.
        """
        metadata = self._metadata()
        times = dict(digest_with_times=files_digest(self.files, with_times=True))
        with Journal(folder, metadata | dict(data=metadata["data"] | times)) as journal:
            totals = {kind: Totals(self.tokenizer, self.networks) for kind in ("video", "image")}
            _load(totals, journal.state)
            self._measure_all(journal, totals, progress or EvaluationProgress())
            report = dict(
                metadata,
                model=_model_metadata(self.tokenizer, self.tokenizer_id),
                data=metadata["data"] | dict(source=self.source),
                **summarize(journal.lines, totals, self.networks, self.choice.seed),
                elapsed_s=round(journal.total_s, 1),
            )
        pictures = write_pictures(
            Path(folder), report, self.files, self.choice, self.tokenizer, self.inference
        )
        write_report(Path(folder), report, pictures)
        return report

    def _measure_all(
        self, journal: Journal, totals: dict[str, Totals], progress: EvaluationProgress
    ) -> None:
        """Measures the remaining clips and adds their lines to the journal."""
        position = _Position(self.files, self.choice)
        for line in journal.lines():
            position.advance(line)
        progress.planned(position.num_clips, position.max_total)
        channels = self.tokenizer.config.channels
        remaining = iter_clips(self.files[position.file :], self.choice, channels, position.clip)
        state = partial(_state, totals)
        consistent = True
        try:
            with prefetch(remaining) as clips:
                while not position.at_end and (clip := next(clips, None)) is not None:
                    measurement, line = self._measure(clip)
                    consistent = False
                    if measurement is not None:
                        totals[clip.kind].add(measurement)
                    journal.append(line)
                    consistent = True
                    position.advance(line)
                    journal.save(state, SAVE_EVERY_S)
                    if isinstance(clip, SkippedFile):
                        progress.skipped(clip.name, clip.reason)
                    progress.measured(position.num_clips, position.max_total)
        finally:
            if consistent:  # no interrupt came between a clip's sums and its line
                journal.save(state)

    def _measure(self, clip: Clip | SkippedFile) -> tuple[ClipMeasurement | None, dict[str, Any]]:
        """Measurement, None for an unusable file, and line of a clip."""
        if isinstance(clip, SkippedFile):
            return None, dict(path=clip.name, skipped=clip.reason)
        num_frames, height, width = clip.frames.shape[:3]
        try:
            measurement = measure(self.tokenizer, clip, self.networks, self.inference)
        except OUT_OF_MEMORY as error:
            raise EvaluationError(
                f"{num_frames} frames of {height} x {width} of {clip.name} do not fit into memory: "
                "set tile_size to auto, or give a size"
            ) from error
        return measurement, dict(
            path=clip.name,
            clip=clip.number,
            num_clips=clip.num_clips,
            kind=clip.kind,
            start_frame=clip.start_frame,
            num_frames=num_frames,
            height=height,
            width=width,
            fps=clip.fps,
            **measurement.values,
        )

    def _metadata(self) -> dict[str, Any]:
        """All that the results depend on, in plain values."""
        perceptual, i3d = self.networks
        networks = dict(perceptual=None, i3d=None)
        if perceptual is not None:
            networks["perceptual"] = dict(name=perceptual.name, weights=weights_hash(perceptual))
        if i3d is not None:
            networks["i3d"] = dict(protocol=i3d.protocol, file=i3d.file_hash)
        computing = dict(precision=self.inference.precision, tile_size=self.inference.tile_size)
        return dict(
            format=FORMAT,
            format_version=FORMAT_VERSION,
            model=dict(fingerprint=self.tokenizer_id.fingerprint),
            settings=asdict(self.choice) | computing,
            device=self.tokenizer.device.type,
            judges=networks,
            data=dict(num_files=len(self.files), digest=files_digest(self.files)),
        )


class _Position:
    """The next file and clip, given the lines written so far."""

    def __init__(self, files: Sequence[EvaluatedFile], choice: ClipChoice):
        self.names = [file.name for file in files]
        self.max_clips = choice.max_clips
        self.clips_in = [
            choice.clips_per_video if media_kind(file.path) == "video" else 1 for file in files
        ]
        """Of each file, at most."""
        self.file = self.clip = self.num_clips = 0
        self._expected = sum(self.clips_in)

    @property
    def at_end(self) -> bool:
        return self.num_clips == self.max_clips

    @property
    def max_total(self) -> int:
        """Upper bound of the number of clips in all files."""
        expected = self._expected
        return expected if self.max_clips is None else min(expected, self.max_clips)

    def advance(self, line: dict[str, Any]) -> None:
        """Moves past the clip or file of a line."""
        while self.names[self.file] != line["path"]:
            self._next_file(self.clip)
        if "skipped" in line:
            self._next_file(self.clip)
            return
        self.clip = line["clip"] + 1
        self.num_clips += 1
        self._expected += line["num_clips"] - self.clips_in[self.file]
        self.clips_in[self.file] = line["num_clips"]

    def _next_file(self, num_clips: int) -> None:
        self._expected += num_clips - self.clips_in[self.file]
        self.file, self.clip = self.file + 1, 0


def _state(totals: dict[str, Totals]) -> dict[str, Tensor]:
    return {
        f"{kind}/{name}": tensor
        for kind, total in totals.items()
        for name, tensor in total.state_dict().items()
    }


def _load(totals: dict[str, Totals], state: dict[str, Tensor]) -> None:
    for kind, total in totals.items():
        prefix = f"{kind}/"
        total.load_state_dict(
            {name.removeprefix(prefix): x for name, x in state.items() if name.startswith(prefix)}
        )


def _source_name(source: Source) -> str:
    return os.fspath(source) if isinstance(source, str | os.PathLike) else f"{len(source)} files"


def _model_metadata(tokenizer: VideoTokenizer, tokenizer_id: TokenizerId) -> dict[str, Any]:
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
