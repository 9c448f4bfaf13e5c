"""Options that choose the clips of an evaluation; imports nothing heavy."""

from dataclasses import dataclass
from typing import Literal

from magvit2_pytorch.config import check_at_least_one

Split = Literal["all", "train", "valid"]


@dataclass(frozen=True, kw_only=True)
class ClipChoice:
    """Options for selecting clips; an image is a one-frame clip."""

    num_frames: int = 17
    """Frames per video clip; shorter videos are skipped."""
    frame_stride: int = 1
    """Take every n-th frame."""
    clips_per_video: int = 1
    """Maximum number of clips per video, spread over it without overlap; a single clip is taken
    from the middle."""
    max_clips: int | None = None
    """Maximum number of clips in all, from files drawn at random with `seed`."""
    size: int | None = None
    """Resize the short side to this many pixels; by default the file's own size."""
    crop: bool = False
    """Crop the central square of `size` pixels, as most papers do."""
    frame_range: tuple[int | float | None, int | float | None] | None = None
    """Part of each video to take clips from, as in '[-17, null]', its last 17 frames, or
    '[0.9, 1.0]', its last tenth."""
    split: Split = "all"
    """Use all files, or only those that training on this folder used (train) or held out
    (valid)."""
    valid_frac: float = 0.05
    """For `split`, the fraction that training used, if its run has no record of the files."""
    random_split_seed: int = 42
    """For `split`, the seed that training used, if its run has no record of the files."""
    seed: int = 0
    """Random seed of the files that `max_clips` draws and of the confidence intervals."""

    def __post_init__(self):
        names = ("num_frames", "frame_stride", "clips_per_video", "max_clips", "size")
        check_at_least_one(**{name: getattr(self, name) for name in names})
        if self.crop and self.size is None:
            raise ValueError("crop cuts out a square of `size` pixels: give a size")
        if self.split not in ("all", "train", "valid"):
            raise ValueError(f"split is {self.split!r}: use 'all', 'train' or 'valid'")
        if self.frame_range is not None:
            from magvit2_pytorch.data.clips import check_frame_range

            check_frame_range(self.frame_range)

    @property
    def span(self) -> int:
        """Frames of the video from a clip's first to its last."""
        return (self.num_frames - 1) * self.frame_stride + 1
