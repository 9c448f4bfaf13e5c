"""Other projects' checkpoints: their parts, and tables of their names and ours."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from magvit2_pytorch.config import Registry
from magvit2_pytorch.weights import Tensors, abbreviate, mismatches


class Layout(NamedTuple):
    """Bijection between a tensor of ours and `num` tensors of theirs."""

    split: Callable[[Tensor, int], Sequence[Tensor]]
    join: Callable[[Sequence[Tensor]], Tensor]


SAME = Layout(lambda ours, num: ours.chunk(num), torch.cat)
"""Equal tensors; several of theirs are concatenated along the first axis."""


def without_axes(*axes: int) -> Layout:
    """Layout of convolutions that lack these axes, of length 1 in ours."""

    def split(ours: Tensor, num: int) -> Sequence[Tensor]:
        return (ours.squeeze(axes) if ours.ndim == 5 else ours).chunk(num)

    def join(theirs: Sequence[Tensor]) -> Tensor:
        joined = torch.cat(theirs)
        for axis in axes if joined.ndim == 5 - len(axes) else ():
            joined = joined.unsqueeze(axis)
        return joined

    return Layout(split, join)


class Row(NamedTuple):
    """Name patterns of their tensors, one or several, and of ours.

    `{level}` stands for a number from 0 on. In `ours`, `{level+1}` stands for the number after it,
    and -1 for the last layer of a `ModuleList`. Both patterns may name modules: names below them
    are equal. Of several rows that fit a tensor of ours the first counts. Without `ours`, `theirs`
    are tensors that are not converted.
    """

    theirs: str | tuple[str, ...]
    ours: str | None
    layout: Layout = SAME

    @property
    def sources(self) -> tuple[str, ...]:
        return (self.theirs,) if isinstance(self.theirs, str) else self.theirs


Table = tuple[Row, ...]


def nested(theirs: str, ours: str, rows: Iterable[Row]) -> Table:
    """Rows of a part, such as a residual block, with prefixed names."""
    return tuple(
        Row(tuple(f"{theirs}.{name}" for name in row.sources), f"{ours}.{row.ours}", row.layout)
        for row in rows
    )


def renamed(table: Table, rename: Callable[[str], str], layout: Layout | None = None) -> Table:
    """The table with renamed tensors of theirs and optionally another layout."""
    return tuple(
        Row(tuple(map(rename, row.sources)), row.ours, layout or row.layout) for row in table
    )


def find_sources(table: Table, module: nn.Module) -> dict[str, Row]:
    """Their tensors for every tensor of a module; `ValueError` without a row."""
    patterns = [(_compile(_count_from_start(row.ours, module)), row) for row in table if row.ours]
    sources = {}
    for name in module.state_dict():
        for pattern, row in patterns:
            if (match := _numbers(pattern, name)) is not None:
                numbers, rest = match
                theirs = tuple(source.format(**numbers) + rest for source in row.sources)
                sources[name] = Row(theirs, name, row.layout)
                break
        else:
            raise ValueError(f"the table of names has no row for {name}")
    return sources


def convert(state: Tensors, table: Table, module: nn.Module, owner: str = "it") -> Tensors:
    """State dict of a module in float32; `owner` begins error messages.

    Raises `ValueError` unless every tensor of the module is made, every tensor of `state` is used
    or in a row without `ours`, and shapes fit.
    """
    rows, tensors, wanted = find_sources(table, module), module.state_dict(), {}
    for name, row in rows.items():
        parts = row.layout.split(tensors[name], len(row.sources))
        wanted |= {theirs: part.shape for theirs, part in zip(row.sources, parts, strict=True)}
    unused = [_compile(name) for row in table if row.ours is None for name in row.sources]
    state = {n: x for n, x in state.items() if not any(_numbers(p, n) for p in unused)}
    if wrong := mismatches(state, wanted):
        raise ValueError(f"{owner} {wrong}")
    wrong_types = sorted(f"{n} is {x.dtype}" for n, x in state.items() if not x.is_floating_point())
    if wrong_types:
        raise ValueError(f"weights must be floating-point numbers, but {abbreviate(wrong_types)}")
    return {
        name: row.layout.join([state[theirs].float() for theirs in row.sources])
        for name, row in rows.items()
    }


FIELD = re.compile(r"\{(\w+)(?:\+(\d+))?\}")


class Pattern(NamedTuple):
    """Regular expression of a name pattern, and offsets of its numbers."""

    regex: re.Pattern[str]
    offsets: dict[str, int]


def _compile(pattern: str) -> Pattern:
    first, *rest = FIELD.split(pattern)  # literals, with name and offset of a field between two
    fields = list(zip(rest[::3], rest[1::3], rest[2::3], strict=True))
    regex = "".join(rf"(?P<{name}>\d+){re.escape(literal)}" for name, _, literal in fields)
    return Pattern(
        re.compile(rf"{re.escape(first)}{regex}(?P<_rest>(\..+)?)"),
        {name: int(offset or 0) for name, offset, _ in fields},
    )


def _numbers(pattern: Pattern, name: str) -> tuple[dict[str, int], str] | None:
    """Numbers of the fields, and the rest of a matching name."""
    match = pattern.regex.fullmatch(name)
    if match is None:
        return None
    numbers = {field: int(match[field]) - offset for field, offset in pattern.offsets.items()}
    return (numbers, match["_rest"]) if min(numbers.values(), default=0) >= 0 else None


def _count_from_start(pattern: str, module: nn.Module) -> str:
    """Replaces positions from the end of a `ModuleList`, such as -1."""
    parts: list[str] = []
    for part in pattern.split("."):
        if part.startswith("-"):
            part = str(len(module.get_submodule(".".join(parts))) + int(part))
        parts.append(part)
    return ".".join(parts)


class Parts(NamedTuple):
    """Tensors of a checkpoint, by the names that its modules give them."""

    tokenizer: Tensors
    discriminator: Tensors
    """Empty if the checkpoint holds only the tokenizer, or one that cannot be converted."""
    left_out: dict[str, int]
    """Tensors that are not converted: their module or kind, and their number."""
    unknown: list[str]
    """Names that belong to no module of the project."""


@dataclass(frozen=True)
class Project:
    """Recognizes, splits and describes the checkpoints of one project."""

    name: str
    accepted: str
    """Its files, as the end of "give ..."."""
    matches: Callable[[Tensors], bool]
    """True if tensors have the names of a tokenizer of this project."""
    split: Callable[[Tensors], Parts]
    """The parts of a checkpoint that `matches`."""
    config: Callable[..., dict[str, Any]]
    """Options of the tokenizer with these weights: `config(state, source, **options)`.

    `source` is the path of the file. Options are what shapes do not show; `ValueError` names those
    that are missing, and says where weights fit no tokenizer.
    """
    names: Callable[[Tensors], Table]
    """Their names and ours."""
    options: tuple[str, ...] = ()
    """Names of the options of `config`."""


PROJECTS: Registry[Project] = Registry("project")
"""Every other project, in the order in which they are tried."""


def group_by_prefix(
    state: Tensors, prefixes: Mapping[str, str]
) -> tuple[dict[str, Tensors], list[str]]:
    """Tensors by the first known prefix's part, and names without one."""
    parts: dict[str, Tensors] = {part: {} for part in prefixes.values()}
    unknown = []
    for name, tensor in state.items():
        part = next((part for start, part in prefixes.items() if name.startswith(start)), None)
        if "." not in name and tensor.numel() <= 1:
            parts.setdefault("counters", {})[name] = tensor  # such as the number of steps
        elif part is not None:
            parts[part][name] = tensor
        else:
            unknown.append(name)
    return parts, unknown


def numbered(state: Tensors, start: str) -> Iterator[int]:
    """Numbers from 0 on, while a name begins with `start` of it."""
    for number in count():
        if not any(name.startswith(start.format(number)) for name in state):
            return
        yield number


def conv_shape(state: Tensors, name: str, owner: str = "it") -> tuple[int, ...]:
    """Shape of a convolution's or linear map's weight; `ValueError` if unusable."""
    if name not in state:
        raise ValueError(f"{owner} lacks {name}")
    shape = tuple(state[name].shape)
    if len(shape) < 2 or min(shape) < 1:
        raise ValueError(
            f"{name} has shape {shape}, which is not that of a convolution: give 2 axes or more"
        )
    return shape
