"""Evaluation of a tokenizer on a folder of videos and images."""

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict
from typing import Any

from magvit2_pytorch.atomic import AnyPath, as_path
from magvit2_pytorch.data.split import HeldOut
from magvit2_pytorch.evaluation.clip_choice import ClipChoice
from magvit2_pytorch.evaluation.evaluation_clips import (
    Clip,
    EvaluatedFile,
    SkippedFile,
    files_digest,
    find_files,
    iter_clips,
)
from magvit2_pytorch.evaluation.journal import SAVE_EVERY_S, EvaluationError, Journal
from magvit2_pytorch.evaluation.measure import (
    ClipMeasurement,
    EvaluationNetworks,
    Totals,
    measure,
    reconstruct,
)
from magvit2_pytorch.evaluation.report import FORMAT, FORMAT_VERSION, summarize, write_report
from magvit2_pytorch.evaluation.report_picture import Example, write_pictures, write_token_curve
from magvit2_pytorch.media.frames import to_uint8
from magvit2_pytorch.media.sources import Source, check_not_output
from magvit2_pytorch.media.unusable import printable
from magvit2_pytorch.pipelines.corpus import OUT_OF_MEMORY
from magvit2_pytorch.pipelines.fingerprint import TokenizerId, check_supports_files
from magvit2_pytorch.pipelines.inference import Inference
from magvit2_pytorch.pipelines.media_file import media_kind
from magvit2_pytorch.pipelines.prefetch import prefetch
from magvit2_pytorch.pipelines.progress import FileProgress, Plan
from magvit2_pytorch.tokenizer_1d import AnyTokenizer

Line = dict[str, Any]
"""Values of a clip, or the reason why a file is skipped, as in clips.jsonl."""


class Evaluation:
    """An evaluation to `run`, or to continue.

    Raises `ValueError` if the tokenizer is conditional, a network does not accept such clips or
    `find_media` finds no files, and `FileNotFoundError` if `source` does not exist. For a split,
    `held_out` is the record of the training run, `data.split.read_held_out` of its folder.
    """

    def __init__(
        self,
        tokenizer: AnyTokenizer,
        source: Source,
        choice: ClipChoice | None = None,
        *,
        networks: EvaluationNetworks = EvaluationNetworks(),
        inference: Inference = Inference(),
        tokenizer_id: TokenizerId | None = None,
        held_out: HeldOut | None = None,
    ):
        check_supports_files(tokenizer, needs_codes=False)
        inference.check(tokenizer)
        self.tokenizer, self.inference = tokenizer, inference
        self.choice, self.networks = choice or ClipChoice(), networks
        self.tokenizer_id = tokenizer_id or TokenizerId.of(tokenizer)
        is_path = isinstance(source, AnyPath)
        self.source = printable(as_path(source)) if is_path else f"{len(source)} files"
        self._read_folder = as_path(source) if is_path else None
        self.files = find_files(source, self.choice, held_out)
        has_videos = any(media_kind(file.path) == "video" for file in self.files)
        if self.networks.i3d is not None and has_videos:
            self.networks.i3d.check(self.choice.num_frames, tokenizer.config.channels)

    def run(
        self, folder: str | os.PathLike, progress: FileProgress | None = None
    ) -> dict[str, Any]:
        """Measures all clips, writes a report to `folder` and returns its contents.

        The report is `report.json`, and `report.md` for people, with pictures of the worst, the
        median and the best clip. `clips.jsonl` has a line for each clip. An interrupted run is
        continued, and its report equals that of an uninterrupted one. Raises `EvaluationError` if
        `folder` is the one that is read or holds another evaluation, no clip can be measured, or a
        reconstruction is not finite.
        """
        if self._read_folder is not None:
            try:
                check_not_output(self._read_folder, [folder])
            except ValueError as error:
                raise EvaluationError(str(error)) from error
        metadata = self._metadata()
        times = dict(digest_with_times=files_digest(self.files, with_times=True))
        with Journal(folder, metadata | dict(data=metadata["data"] | times)) as journal:
            totals = Totals(self.tokenizer, self.networks)
            totals.load_state_dict(journal.state)
            self._measure_all(journal, totals, progress or FileProgress())
            tokenizer = self.tokenizer
            names = (
                "codebook_size", "num_codebooks", "time_factor", "space_factor", "bits_per_pixel",
            )  # fmt: skip
            model = dict(
                self.tokenizer_id._asdict(),
                parameters=sum(parameter.numel() for parameter in tokenizer.parameters()),
                quantizer=type(tokenizer.quantizer).__name__,
                **{name: getattr(tokenizer, name) for name in names},
            )
            report = dict(
                metadata,
                model=model,
                data=metadata["data"] | dict(source=self.source),
                **summarize(journal.lines, totals, self.networks, self.choice.seed),
                elapsed_s=round(journal.total_s, 1),
            )
        pictures = []
        for kind in ("videos", "images"):
            if report[kind] is not None:
                examples = self._examples(report[kind]["examples"])
                pictures += write_pictures(as_path(folder), report, kind, examples)
                pictures += write_token_curve(as_path(folder), report, kind)
        write_report(as_path(folder), report, pictures)
        return report

    def _measure_all(self, journal: Journal, totals: Totals, progress: FileProgress) -> None:
        """Measures the remaining clips and adds their lines to the journal."""
        position = _Position(self.files, self.choice)
        for line in journal.lines():
            position.advance(line)
        progress.planned(Plan(position.max_total, position.num_clips))
        channels = self.tokenizer.config.channels
        remaining = iter_clips(self.files[position.file :], self.choice, channels, position.clip)
        consistent = True
        try:
            with prefetch(remaining) as clips:
                while not position.at_end and (clip := next(clips, None)) is not None:
                    measurement, line = self._measure(clip)
                    consistent = False
                    if measurement is not None:
                        totals.add(clip.kind, measurement)
                    journal.append(line)
                    consistent = True
                    position.advance(line)
                    journal.save(totals.state_dict, SAVE_EVERY_S)
                    if isinstance(clip, SkippedFile):
                        progress.finished(clip.name, clip.reason)
                    progress.counted(position.num_clips, position.max_total)
        finally:
            if consistent:  # no interrupt came between a clip's sums and its line
                journal.save(totals.state_dict)

    def _measure(self, clip: Clip | SkippedFile) -> tuple[ClipMeasurement | None, Line]:
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

    def _examples(self, lines: dict[str, Line]) -> Iterator[Example]:
        """Reads and reconstructs a few clips once more, one at a time."""
        for which, line in lines.items():
            file = [file for file in self.files if file.name == line["path"]]
            channels = self.tokenizer.config.channels
            with closing(iter_clips(file, self.choice, channels, line["clip"])) as clips:
                clip = next(clips, None)
            if isinstance(clip, Clip):
                _, recon, _ = reconstruct(self.tokenizer, clip, self.inference)
                yield Example(which, line, clip.frames, to_uint8(recon[0]).cpu())
            else:
                reason = clip.reason if clip else "it has fewer clips than before"
                warnings.warn(f"{line['path']} is not shown: {reason}", stacklevel=2)

    def _metadata(self) -> dict[str, Any]:
        """All that the results depend on, in plain values."""
        computing = dict(precision=self.inference.precision, tile_size=self.inference.tile_size)
        if self.inference.num_tokens is not None:
            computing["num_tokens"] = self.inference.num_tokens
        return dict(
            format=FORMAT,
            format_version=FORMAT_VERSION,
            model=dict(fingerprint=self.tokenizer_id.fingerprint),
            settings=asdict(self.choice) | computing,
            device=self.tokenizer.device.type,
            judges=self.networks.metadata(),
            data=dict(num_files=len(self.files), digest=files_digest(self.files)),
        )


class _Position:
    """The next file and clip, given the lines written so far."""

    def __init__(self, files: Sequence[EvaluatedFile], choice: ClipChoice):
        self.names = [file.name for file in files]
        self.max_clips = choice.max_clips
        self.left = [choice.clips_per_video if media_kind(f.path) == "video" else 1 for f in files]
        """Clips left in each file, at most."""
        self.sum_left = sum(self.left)
        self.file = self.clip = self.num_clips = 0

    @property
    def at_end(self) -> bool:
        return self.num_clips == self.max_clips

    @property
    def max_total(self) -> int:
        """Upper bound of the number of clips in all files."""
        expected = self.num_clips + self.sum_left
        return expected if self.max_clips is None else min(expected, self.max_clips)

    def advance(self, line: Line) -> None:
        """Moves past the clip or file of a line."""
        while self.names[self.file] != line["path"]:
            self._next_file()
        if "skipped" in line:
            self._next_file()
            return
        self._set_left(line["num_clips"] - line["clip"] - 1)
        self.clip = line["clip"] + 1
        self.num_clips += 1

    def _next_file(self) -> None:
        self._set_left(0)
        self.file, self.clip = self.file + 1, 0

    def _set_left(self, number: int) -> None:
        self.sum_left += number - self.left[self.file]
        self.left[self.file] = number
