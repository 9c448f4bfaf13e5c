"""Other projects whose checkpoints can be converted, and the parts of a checkpoint."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from magvit2_pytorch.config import Registry
from magvit2_pytorch.convert.name_table import Table
from magvit2_pytorch.weights import Tensors


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
    """Tensors by part, and the names without a known prefix.

    `prefixes` has the name of the part for each prefix; the first that fits counts. Names keep
    their prefix.
    """
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
