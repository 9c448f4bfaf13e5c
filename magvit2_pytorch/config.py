"""Registries of names, checks of option names, and suggestions for unknown ones."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields
from difflib import get_close_matches
from inspect import Parameter, Signature
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """Mapping filled by decorators; an unknown name raises `ValueError` with similar names."""

    def __init__(self, kind: str):
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        if name in self._entries:
            raise ValueError(f"{self.kind} {name!r} is already registered")

        def add(entry: T) -> T:
            self._entries[name] = entry
            return entry

        return add

    def __getitem__(self, name: str) -> T:
        if name in self._entries:
            return self._entries[name]
        near = get_close_matches(name, self._entries, n=3)
        hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
        raise ValueError(f"there is no {self.kind} {name!r}: {hint}use one of {sorted(self)}")

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def check_known(
    owner: str,
    options: Iterable[str],
    known: Iterable[str],
    hints: Mapping[str, str] | None = None,
) -> None:
    """Raises `ValueError` on the first unknown option and suggests similar names.

    `hints` maps options that belong to something else to a sentence that says where to set them.
    """
    known = list(known)
    for option in options:
        if option in known:
            continue
        if hints and option in hints:
            raise ValueError(f"{option!r} is not an option of {owner}: {hints[option]}")
        near = get_close_matches(option, known, n=2)
        hint = f"did you mean {' or '.join(near)}?" if near else f"use one of {', '.join(known)}"
        raise ValueError(f"{owner} has no option {option!r}: {hint}")


def keyword_signature(config: type, *names: str, **defaults: Any) -> Signature:
    """Signature of a constructor with the fields of a dataclass as keywords.

    `help` and editors then list every option, though the options are defined only once. `names`
    are positional parameters before the fields, `defaults` are additional keywords.
    """
    positional = [Parameter(name, Parameter.POSITIONAL_OR_KEYWORD) for name in names]
    additional = [Parameter(n, Parameter.KEYWORD_ONLY, default=d) for n, d in defaults.items()]
    options = [
        Parameter(f.name, Parameter.KEYWORD_ONLY, default=f.default, annotation=f.type)
        for f in fields(config)
    ]
    return Signature([*positional, *additional, *options])


def to_tuples(value: Any) -> Any:
    """Converts the lists of JSON and YAML to tuples, also inside dicts."""
    if isinstance(value, dict):
        return {name: to_tuples(item) for name, item in value.items()}
    return tuple(to_tuples(item) for item in value) if isinstance(value, list | tuple) else value
