"""Strict options: a typo is an error with the nearest name, never swallowed."""

from collections.abc import Iterable, Mapping
from dataclasses import fields
from difflib import get_close_matches
from inspect import Parameter, Signature
from typing import Any


def check_known(
    owner: str,
    options: Iterable[str],
    known: Iterable[str],
    elsewhere: Mapping[str, str] | None = None,
) -> None:
    """Raises `ValueError` on the first option that is not known, with what was likely meant.

    `elsewhere` says of options that live in another place where that is.
    """
    known = list(known)
    for option in options:
        if option in known:
            continue
        if elsewhere and option in elsewhere:
            raise ValueError(f"{option!r} is no option of {owner}: {elsewhere[option]}")
        near = get_close_matches(option, known, n=2)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(known)}"
        raise ValueError(f"{owner} has no option {option!r}: {hint}")


def keyword_signature(config: type, *names: str, **defaults: Any) -> Signature:
    """The signature of a constructor that takes a dataclass's fields by keyword.

    Help and editors then show the options one by one, though they are written once. `names` are
    positional parameters before them, `defaults` further keywords.
    """
    first = [Parameter(name, Parameter.POSITIONAL_OR_KEYWORD) for name in names]
    more = [Parameter(n, Parameter.KEYWORD_ONLY, default=d) for n, d in defaults.items()]
    rest = [
        Parameter(f.name, Parameter.KEYWORD_ONLY, default=f.default, annotation=f.type)
        for f in fields(config)
    ]
    return Signature([*first, *more, *rest])


def to_tuples(value: Any) -> Any:
    """Lists, which is what JSON and YAML make of tuples, to tuples again, within dicts too."""
    if isinstance(value, dict):
        return {name: to_tuples(item) for name, item in value.items()}
    return tuple(to_tuples(item) for item in value) if isinstance(value, list | tuple) else value
