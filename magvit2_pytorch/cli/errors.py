"""What a user can mend is one line on stderr; what we did wrong keeps its traceback."""

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """Something is missing, damaged or does not fit; the message says what to do."""

    exit_code = 1


class UsageError(UserError):
    """The command line asks for something that cannot be."""

    exit_code = 2


@contextmanager
def user_errors(
    kind: type[Exception] = ValueError, to: type[UserError] = UserError, about: str = ""
) -> Iterator[None]:
    """Errors of this kind become the user's.

    The library raises `ValueError` where a user's mistake is made; put this around the calls
    where that is all it can mean, and never around a whole command.
    """
    try:
        yield
    except kind as error:
        raise to(f"{about}: {error}" if about else str(error)) from error


def check_counts(**counts: int | None) -> None:
    """Raises `UsageError` on a number below 1; None is no number."""
    for name, count in counts.items():
        if count is not None and count < 1:
            raise UsageError(f"--{name} {count}: it is at least 1")
