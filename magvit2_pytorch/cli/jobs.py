"""Which file becomes which: inputs as the user names them, outputs that mirror them."""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from magvit2_pytorch.cli.errors import UserError


class Job(NamedTuple):
    """One file to read and the one to write."""

    source: Path
    target: Path


def plan_jobs(
    inputs: Sequence[str],
    output: str,
    sources: Sequence[str],
    target_suffix: Callable[[Path], str],
    file_suffixes: Sequence[str],
) -> list[Job]:
    """A job for each input file; a folder stands for all files below it that can be read.

    `sources` are the suffixes that can be read, `target_suffix` gives that of the file a source
    becomes. One input file may become one named file, which `output` is if it ends in one of
    `file_suffixes`; otherwise `output` is a folder, that gets the names and sub-folders of the
    inputs. Raises `UserError` before any work where something is missing or in the way.
    """
    found = [pair for given in inputs for pair in _find(Path(given).expanduser(), sources)]
    target = Path(output).expanduser()
    one_file = len(inputs) == 1 and not Path(inputs[0]).expanduser().is_dir()
    if has_suffix(target, file_suffixes) and not target.is_dir():
        if not one_file:
            raise UserError(f"{output} names a file, but the input is not one file: name a folder")
        jobs = [Job(found[0][0], target)]
    else:
        _check_folder(target, one_file, file_suffixes)
        jobs = _mirror(found, target, sources, target_suffix)
    for job in jobs:
        # Not Path.resolve, which raises on a link to itself.
        if os.path.realpath(job.target) == os.path.realpath(job.source):
            raise UserError(f"{job.source} would be replaced by its own output: choose another -o")
    return jobs


def has_suffix(path: Path, suffixes: Sequence[str]) -> bool:
    """Whether a name ends in one of these, in capitals or not."""
    return path.name.lower().endswith(tuple(suffixes))


def _find(given: Path, sources: Sequence[str]) -> list[tuple[Path, Path]]:
    """Files, each with its place below what the user named."""
    from magvit2_pytorch.data.sources import walk

    if not given.exists():
        raise UserError(f"there is no {given}")
    known = ", ".join(suffix.lstrip(".") for suffix in sources)
    if given.is_dir():
        paths = sorted(path for path in walk(given) if has_suffix(path, sources))
        if not paths:
            raise UserError(f"{given} holds no file that can be used here ({known})")
        return [(path, path.relative_to(given)) for path in paths]
    if not has_suffix(given, sources):
        raise UserError(f"{given} cannot be used here: give a folder, or a file ({known})")
    return [(given, Path(given.name))]


def _check_folder(target: Path, one_file: bool, file_suffixes: Sequence[str]) -> None:
    if target.is_dir():
        return
    if target.exists():
        raise UserError(f"{target} is a file: name a folder that can be made")
    if one_file and target.suffix:
        known = ", ".join(file_suffixes)
        raise UserError(f"cannot write {target}: use {known}, or name a folder")


def _mirror(
    found: Sequence[tuple[Path, Path]],
    folder: Path,
    sources: Sequence[str],
    target_suffix: Callable[[Path], str],
) -> list[Job]:
    """`clip.mp4` becomes `clip` + suffix, or `clip.mp4` + suffix where there is a clip.gif too."""
    short = [
        folder / place.with_name(_stem(place, sources) + target_suffix(source))
        for source, place in found
    ]
    times = Counter(short)
    targets = [
        target
        if times[target] == 1
        else folder / place.with_name(place.name + target_suffix(source))
        for target, (source, place) in zip(short, found, strict=True)
    ]
    by_target: dict[Path, Path] = {}
    for target, (source, _) in zip(targets, found, strict=True):
        if by_target.setdefault(target, source) != source:
            raise UserError(
                f"{by_target[target]} and {source} would both become {target}: "
                "give the folder they have in common"
            )
    return [Job(source, target) for target, source in by_target.items()]


def _stem(path: Path, sources: Sequence[str]) -> str:
    """The name without the longest suffix of these that it has."""
    suffix = max((s for s in sources if path.name.lower().endswith(s)), key=len)
    return path.name[: -len(suffix)]
