"""Registries of names, presets, and options with their checks and JSON."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, fields
from difflib import get_close_matches
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

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


def check_at_least_one(**counts: int | None) -> None:
    """Raises `ValueError` on the first number below 1; None passes."""
    for name, count in counts.items():
        if count is not None and count < 1:
            raise ValueError(f"{name} is {count}: give at least 1")


class Options:
    """Base of frozen dataclasses of options, which round-trip through plain JSON."""

    owner: ClassVar[str]
    """What the options are of, for error messages."""
    hints: ClassVar[Mapping[str, str]] = {}
    """Those of `check_known`."""

    def to_dict(self) -> dict[str, Any]:
        """Fields as plain JSON values."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_dict(cls, options: Mapping[str, Any]):
        """Options from plain values; raises `ValueError` for unknown keys."""
        check_known(cls.owner, options, [field.name for field in fields(cls)], cls.hints)
        return cls(**to_tuples(dict(options)))


def keyword_signature(constructor: Callable, options: type) -> Signature:
    """A constructor's signature with a dataclass's fields instead of `**options`.

    `help` and editors then list every option, though the options are defined only once.
    """
    own = [p for p in signature(constructor).parameters.values() if p.kind != p.VAR_KEYWORD]
    keywords = [
        Parameter(f.name, Parameter.KEYWORD_ONLY, default=f.default, annotation=f.type)
        for f in fields(options)
    ]
    return Signature([*own[1:], *keywords])  # without self


def flatten(values: Mapping[str, Any], separator: str) -> dict[str, Any]:
    """Nested values under joined names, such as training.learning_rate."""
    flat = {}
    for name, value in values.items():
        if isinstance(value, dict):
            inner = flatten(value, separator)
            flat |= {f"{name}{separator}{key}": inner[key] for key in inner}
        else:
            flat[name] = value
    return flat


def to_tuples(value: Any) -> Any:
    """Converts the lists of JSON and YAML to tuples, also inside dicts."""
    if isinstance(value, dict):
        return {name: to_tuples(item) for name, item in value.items()}
    return tuple(to_tuples(item) for item in value) if isinstance(value, list | tuple) else value
