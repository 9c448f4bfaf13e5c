"""Command lines from functions: signature and docstring say everything once.

Parameters before the `/` are positional on the command line too (a list takes one or more
words), those after `*` are options, required if they have no default. A switch that is False by
default takes no value. The help is the docstring's `Args`.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from inspect import Parameter, signature
from typing import Any, get_origin

from docstring_parser import parse, parse_from_object
from jsonargparse import ArgumentParser

OTHER_NAMES = {"output": "-o", "dry_run": "--dry-run"}
"""Options that have another name besides."""


def add_function(
    parser: ArgumentParser, function: Callable[..., int], skip: Iterable[str] = ()
) -> None:
    """Adds an argument for each parameter of `function`."""
    help_of = {param.arg_name: param.description for param in parse(function.__doc__).params}
    for name, parameter in signature(function).parameters.items():
        if name not in skip:
            _add_parameter(parser, parameter, help_of[name])


def call(function: Callable[..., int], values: Mapping[str, Any]) -> int:
    """Calls a function with what was parsed by the arguments that `add_function` made."""
    names = signature(function).parameters
    before = [values[n] for n, p in names.items() if p.kind is Parameter.POSITIONAL_ONLY]
    after = {n: values[n] for n, p in names.items() if p.kind is not Parameter.POSITIONAL_ONLY}
    return function(*before, **after)


def add_fields(
    parser: Any, config: type, defaults: Mapping[str, Any], prefix: str = "", skip: Iterable = ()
) -> None:
    """Adds an option for each field of a dataclass; `defaults` go before the field's own."""
    help_of = {param.arg_name: param.description for param in parse_from_object(config).params}
    for field in fields(config):
        if field.name not in skip:
            parser.add_argument(
                f"--{prefix}{field.name}",
                type=field.type,
                default=defaults.get(field.name, field.default),
                help=_one_line(help_of.get(field.name) or field.name.replace("_", " ")),
            )


def summary(function: Callable[..., int]) -> str:
    """The first line of the docstring."""
    return parse(function.__doc__).short_description


def description(function: Callable[..., int]) -> str:
    """The docstring up to its `Args`, laid out as it was written."""
    parsed = parse(function.__doc__)
    return "\n\n".join(filter(None, (parsed.short_description, parsed.long_description)))


def _add_parameter(parser: ArgumentParser, parameter: Parameter, text: str) -> None:
    name, kind, default = parameter.name, parameter.annotation, parameter.default
    required = default is Parameter.empty
    text = _one_line(text)
    if parameter.kind is Parameter.POSITIONAL_ONLY:
        if get_origin(kind) is list:
            metavar = name.removesuffix("s").upper()
            parser.add_argument(name, nargs="+", type=str, metavar=metavar, help=text)
        else:
            options = {} if required else dict(nargs="?", default=default)
            parser.add_argument(name, type=kind, metavar=name.upper(), help=text, **options)
        return
    flags = [f for f in (OTHER_NAMES.get(name), f"--{name}") if f]
    if kind is bool and default is False:
        parser.add_argument(*flags, action="store_true", help=text)
    elif required:
        parser.add_argument(*flags, type=kind, required=True, help=text)
    else:
        parser.add_argument(*flags, type=kind, default=default, help=text)


def _one_line(text: str) -> str:
    # argparse takes % for its own.
    return " ".join(text.split()).replace("%", "%%")
