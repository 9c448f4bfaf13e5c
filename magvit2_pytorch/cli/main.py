"""The command `magvit2`: runs sub-commands and turns errors into exit statuses.

Heavy imports happen only when a command runs, so that help appears at once.
"""

import os
import sys
import warnings
from argparse import RawDescriptionHelpFormatter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from jsonargparse import ArgumentParser, DefaultHelpFormatter

from magvit2_pytorch.cli.arguments import add_function, call_function, description, summary
from magvit2_pytorch.cli.demo import demo, film
from magvit2_pytorch.cli.evaluate import evaluate, evaluate_generator
from magvit2_pytorch.cli.generate import generate
from magvit2_pytorch.cli.media_commands import decode, reconstruct, upscale
from magvit2_pytorch.cli.model_commands import convert, export, info
from magvit2_pytorch.cli.options import UserError
from magvit2_pytorch.cli.tokenize import tokenize
from magvit2_pytorch.cli.train import TRAINING, train, train_generator, train_sr
from magvit2_pytorch.version import __version__

COMMANDS = {
    function.__name__.replace("_", "-"): function
    for function in (
        train,
        tokenize,
        decode,
        reconstruct,
        evaluate,
        train_generator,
        generate,
        evaluate_generator,
        train_sr,
        upscale,
        convert,
        export,
        info,
        demo,
        film,
    )
}

DESCRIPTION = """\
A video tokenizer to train, stream and build on.

  magvit2 demo                                             try it in five minutes
  magvit2 train videos/ -o run                             train a tokenizer
  magvit2 reconstruct clip.mp4 --model run -o out.mp4      see its quality
  magvit2 tokenize videos/ --model run -o codes/           encode to discrete codes
  magvit2 decode codes/ --model run -o decoded/            decode to videos
  magvit2 evaluate --model run --data videos/ -o report    measure it and write a report
  magvit2 train-generator codes/ -o gen                    train a generator of new video
  magvit2 generate --generator gen --model run -o films    sample films from it
  magvit2 train-sr videos/ --model run -o sr               train super-resolution
  magvit2 upscale clip.mp4 --model sr -o large.mp4         enlarge videos and images
  magvit2 film film.mp4 -o film                            make new scenes of one film
  magvit2 convert pytorch_model.bin -o o2                  convert O2-MAGVIT2 or VidTok weights
  magvit2 export run -o programs                           export to ONNX
"""

EPILOG = """\
`magvit2 COMMAND --help` lists a command's options.
exit status: 0 success, 1 something is missing, damaged or does not fit, 2 wrong usage, 130 Ctrl-C,
141 the reader of a pipe has gone, 143 terminated.
MAGVIT2_DEBUG=1 shows the tracebacks of errors, which are otherwise one line.
"""


def main(args: Sequence[str] | None = None) -> int:
    """Runs a command line, by default `sys.argv`; returns the status."""
    args = list(sys.argv[1:] if args is None else args)
    debug = os.environ.get("MAGVIT2_DEBUG", "") not in ("", "0")
    with _writable_streams():
        try:
            status = _run_and_report(args, debug)
            sys.stdout.flush()
            return status
        except BrokenPipeError:  # as `head` does; the interpreter would complain at its end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141


@contextmanager
def _writable_streams() -> Iterator[None]:
    """Makes printing safe on streams that lack letters or are closed."""
    streams = {name: getattr(sys, name) for name in ("stdout", "stderr")}
    with ExitStack() as stack:
        for name, stream in streams.items():
            if stream is None or stream.closed:
                nowhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
                setattr(sys, name, nowhere)
                stack.callback(setattr, sys, name, stream)
            elif hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")
        yield


def _run_and_report(args: list[str], debug: bool) -> int:
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            if args and args[0] in TRAINING:
                args = [args[0], *TRAINING[args[0]].files_first(args[1:])]
            parser = build_parser(args)
            parsed = parser.parse_args(args)
            name = parsed.subcommand
            if name is None:
                parser.print_help()
                return 2
            if name in TRAINING:
                return TRAINING[name].run(parsed[name])
            return call_function(COMMANDS[name], vars(parsed[name]))
    except SystemExit as error:  # from the parser, which has printed help, version or the error
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except KeyboardInterrupt:
        if debug:
            raise
        print("magvit2: interrupted", file=sys.stderr)
        return 130
    except (UserError, OSError) as error:
        if debug or isinstance(error, BrokenPipeError):
            raise
        print("magvit2: error:", *str(error).split(), file=sys.stderr)
        return getattr(error, "exit_code", 1)


def _show_warning(message: Warning | str, *args: object, **kwargs: object) -> None:
    """Prints a warning as one line, without its source line."""
    print(f"magvit2: warning: {message}", file=sys.stderr)


def build_parser(args: Sequence[str]) -> ArgumentParser:
    """The parser for this command line.

    Only the command that is called gets its options: some come from modules that take a second to
    import, and defaults of training from the selected preset.
    """
    parser = _parser("magvit2", DESCRIPTION, version=__version__, epilog=EPILOG)
    commands = parser.add_subcommands(required=False, metavar="COMMAND", title="commands")
    for name, function in COMMANDS.items():
        command = _parser(f"magvit2 {name}", description(function))
        if args and args[0] == name:
            if name in TRAINING:
                TRAINING[name].add_arguments(command, args[1:])
            else:
                add_function(command, function)
        commands.add_subcommand(name, command, help=summary(function))
        command.prog = f"magvit2 {name}"
    return parser


def _parser(prog: str, text: str, **options: str) -> ArgumentParser:
    return ArgumentParser(
        prog=prog, description=text, formatter_class=_HelpFormatter, allow_abbrev=False, **options
    )


class _HelpFormatter(RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Keeps line breaks of descriptions, and shows types and defaults of options."""
