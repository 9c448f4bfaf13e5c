"""User errors, printed as one line; bugs keep their traceback."""

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """An error that the user can fix; the message says how."""

    exit_code = 1


class UsageError(UserError):
    """Invalid command line."""

    exit_code = 2


@contextmanager
def user_errors(
    kind: type[Exception] | tuple[type[Exception], ...] = ValueError,
    to: type[UserError] = UserError,
    prefix: str = "",
) -> Iterator[None]:
    """Converts exceptions of `kind` into `UserError` or `UsageError`.

    The library raises `ValueError` for mistakes of the user; put this around the calls where
    `ValueError` can mean nothing else, and never around a whole command.
    """
    try:
        yield
    except kind as error:
        raise to(f"{prefix}: {error}" if prefix else str(error)) from error


def check_counts(**counts: int | None) -> None:
    """Raises `UsageError` on a number below 1; None passes."""
    for name, count in counts.items():
        if count is not None and count < 1:
            raise UsageError(f"--{name} {count}: must be at least 1")
