"""Registries of names, presets, checks of option names, and suggestions for unknown ones."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields
from difflib import get_close_matches
from inspect import Parameter, Signature
from pathlib import Path
from typing import Any, Generic, TypeVar

import yaml

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


class Presets(Registry[Path]):
    """Files NAME.yaml of a folder: a model's options and its recipe.

    A file has the form of a run's `config.yaml`: options of the model under `model:`, options of
    training, the recipe, under `training:`. Its first lines say the size, cost and expected
    quality. `preset:` is the name on which a copy of the file is based when it is given to
    `--config`.
    """

    def __init__(self, folder: Path):
        super().__init__("preset")
        for path in sorted(folder.glob("*.yaml"), key=lambda path: path.stem):
            self.register(path.stem)(path)

    def model(self, name: str) -> dict[str, Any]:
        """Options of a model, a new dict of keyword arguments."""
        return to_tuples(self._read(name)["model"])

    def training(self, name: str) -> dict[str, Any]:
        """Training options, a new dict of keyword arguments.

        They are a paper's or were found by experiment. A preset without any is trained with the
        defaults of its trainer.
        """
        training = self._read(name).get("training", {})
        # Options that are dicts stay as JSON has them.
        return {n: tuple(v) if isinstance(v, list) else v for n, v in training.items()}

    def _read(self, name: str) -> dict[str, Any]:
        return yaml.safe_load(self[name].read_text(encoding="utf-8"))


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
