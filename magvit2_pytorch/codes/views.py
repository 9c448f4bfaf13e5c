"""Mirrored and shifted views of a video: more codes from one film.

Codes of a convolutional tokenizer cannot be mirrored or shifted themselves: other pixels give other
codes. A view is a video of its own in a corpus, under the path of the video and its name.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from magvit2_pytorch.codes.code_file import CODE_SUFFIX

MARK = "@"
"""Between the path of a video and the name of the view."""

_PATH = re.compile(rf"{MARK}(flip|shift\d+|flip\+shift\d+)({re.escape(CODE_SUFFIX)})?$")


class View(NamedTuple):
    """A video that is mirrored, begins at a later frame, or both."""

    flip: bool = False
    shift: int = 0
    """Frames left out at the start."""

    @property
    def name(self) -> str:
        """The name in paths, empty for the video as it is."""
        return "+".join(["flip"] * self.flip + [f"shift{self.shift}"] * bool(self.shift))

    def path(self, path: str) -> str:
        """The path of this view of a video."""
        return f"{path}{MARK}{self.name}" if self.name else path


def is_view(path: str) -> bool:
    """True for the path of a mirrored or shifted view."""
    return _PATH.search(path) is not None


def without_view(path: str) -> str:
    """The path of the video itself."""
    return _PATH.sub(r"\2", path)


def parse_views(text: str) -> Sequence[View]:
    """Views by a text such as "flip,shift:4"; `ValueError` in another form.

    They are mirrored or not, and begin at one of the frames 0 to 3; the video as it is comes first.
    """
    flips, num_shifts = [False], 1
    for word in text.split(","):
        name, _, number = word.strip().partition(":")
        if name == "flip" and not number:
            flips = [False, True]
        elif name == "shift" and number.isdecimal() and int(number) > 1:
            num_shifts = int(number)
        else:
            raise ValueError(
                f"views {text!r}: give flip, shift:N with N of at least 2, or flip,shift:N"
            )
    return [View(flip, shift) for shift in range(num_shifts) for flip in flips]
