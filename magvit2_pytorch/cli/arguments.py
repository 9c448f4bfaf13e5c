"""Command-line arguments from function signatures and docstrings.

Parameters before the `/` are positional on the command line too (a list takes one or more
words); those after `*` are options, required if they have no default. A boolean option that is
False by default takes no value, a tuple one or more. A parameter whose type is a dataclass stands
for one option per field. The help text comes from the docstring's `Args`, from the docstring below
a field, or from the type: `Annotated[str, "the help"]`.
"""

import ast
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass
from importlib import import_module
from inspect import Parameter, getsource, signature
from typing import Annotated, Any, get_args, get_origin

from docstring_parser import parse, parse_from_object
from jsonargparse import ArgumentParser

from magvit2_pytorch.cli.options import UsageError, user_errors
from magvit2_pytorch.config import to_tuples

OTHER_NAMES = {"output": "-o", "dry_run": "--dry-run"}
"""Second names of options."""
SLOW_TYPES = {
    "Sampling": "generators.sampling",
    "FilmOptions": "evaluation.film_work",
    "ShotRules": "media.shots",
}
"""Modules of dataclasses that take a second to import: a signature has their names as text."""


def add_function(
    parser: ArgumentParser, function: Callable[..., int], skip: Iterable[str] = ()
) -> None:
    """Adds an argument for each parameter of `function`."""
    for name, kind in function.__annotations__.items():
        if kind in SLOW_TYPES:
            module = import_module(f"magvit2_pytorch.{SLOW_TYPES[kind]}")
            function.__annotations__[name] = getattr(module, kind)
    help_of = _texts(parse(docstring(function)))
    for name, parameter in signature(function).parameters.items():
        if name in skip:
            continue
        arguments = [parameter]
        if is_dataclass(parameter.annotation):
            texts = _field_texts(parameter.annotation)
            for field, text in texts.items():
                for other in texts:
                    text = text.replace(f"`{other}`", f"--{other}")
                help_of[field] = text
            arguments = signature(parameter.annotation).parameters.values()
        for argument in arguments:
            _add_argument(parser, argument, help_of.get(argument.name))


def call_function(function: Callable[..., int], values: Mapping[str, Any]) -> int:
    """Calls a function with parsed values; `UsageError` if options refuse theirs."""
    positional, keywords = [], {}
    for name, parameter in signature(function).parameters.items():
        if is_dataclass(parameter.annotation):
            with user_errors(to=UsageError):
                options = {field.name: values[field.name] for field in fields(parameter.annotation)}
                keywords[name] = parameter.annotation(**to_tuples(options))
        elif parameter.kind is Parameter.POSITIONAL_ONLY:
            positional.append(values[name])
        else:
            keywords[name] = values[name]
    return function(*positional, **keywords)


def add_fields(
    parser: Any,
    config: type,
    defaults: Mapping[str, Any],
    section: str,
    prefix: str = "",
    skip: Iterable[str] = (),
) -> None:
    """Adds an option --`prefix``name` under `section` for each dataclass field."""
    help_of = _field_texts(config)
    for field in fields(config):
        if field.name not in skip:
            parser.add_argument(
                f"--{prefix}{field.name}",
                dest=f"{section}.{field.name}",
                type=field.type,
                default=defaults.get(field.name, field.default),
                help=help_of.get(field.name) or field.name.replace("_", " "),
            )


def summary(function: Callable[..., int]) -> str:
    """The first line of the docstring."""
    return parse(docstring(function)).short_description


def description(function: Callable[..., int]) -> str:
    """The docstring up to its `Args`, with its line breaks."""
    parsed = parse(docstring(function))
    return "\n\n".join(filter(None, (parsed.short_description, parsed.long_description)))


def docstring(function: Callable[..., int]) -> str:
    """The docstring, from the source if `python -OO` has removed it."""
    if function.__doc__ is not None:
        return function.__doc__
    (definition,) = ast.parse(getsource(function)).body
    return ast.get_docstring(definition) or ""


def _texts(parsed: Any) -> dict[str, str]:
    """Help of each name in a parsed docstring, on one line."""
    return {p.arg_name: " ".join((p.description or "").split()) for p in parsed.params}


def _field_texts(config: type) -> dict[str, str]:
    """Help of each field of a class and its bases."""
    texts = {}
    for cls in reversed(config.__mro__[:-1]):
        texts |= _texts(parse_from_object(cls))
    return texts


def _add_argument(parser: ArgumentParser, parameter: Parameter, text: str | None) -> None:
    name, kind, default = parameter.name, parameter.annotation, parameter.default
    if get_origin(kind) is Annotated:
        kind, *texts = get_args(kind)
        text = text or texts[0]
    required = default is Parameter.empty
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
    elif get_origin(kind) is tuple:
        parser.add_argument(*flags, nargs="+", type=get_args(kind)[0], default=default, help=text)
    elif required:
        parser.add_argument(*flags, type=kind, required=True, help=text)
    else:
        parser.add_argument(*flags, type=kind, default=default, help=text)
