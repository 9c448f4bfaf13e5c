"""Pre-parsing of the command line of `train`: --config and --preset."""

from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path


def move_config_first(args: Sequence[str]) -> list[str]:
    """Moves the --config options to the front of the command line.

    The last of several values wins, so that typed options override those in files wherever
    --config stands.
    """
    files, rest = _split(args, "--config")
    return [*(word for file in files for word in ("--config", file)), *rest]


def selected_preset(args: Sequence[str], default: str) -> str:
    """The preset from --preset, the --config files, or `default`."""
    typed, _ = _split(args, "--preset")
    files, _ = _split(args, "--config")
    configured = (_preset_in(Path(file).expanduser()) for file in files)
    return [default, *filter(None, configured), *typed][-1]


def _split(args: Sequence[str], option: str) -> tuple[list[str], list[str]]:
    """The values of an option, and the remaining words."""
    parser = ArgumentParser(prog="magvit2 train", add_help=False, allow_abbrev=False)
    parser.add_argument(option, dest="values", action="append", default=[])
    known, rest = parser.parse_known_args(list(args))
    return known.values, rest


def _preset_in(path: Path) -> str | None:
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):  # the main parser reports the error
        return None
    name = values.get("preset") if isinstance(values, dict) else None
    return name if isinstance(name, str) else None
