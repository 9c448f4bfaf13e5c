"""Clips of data sets that users bring, with or without a length."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, count, islice, repeat
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from magvit2_pytorch.data.datasets import MediaDataset
from magvit2_pytorch.types import Clips

KEYS = ("video", "clip", "frames", "image", "pixel_values", "pixels", "x")
"""Keys of the clip in items that are dicts, the first that is there."""


def as_clip(item: Any) -> Tensor:
    """The clip `c t h w` or image `c h w` in an item.

    An item is a tensor or array; or a sequence whose first value is, such as (clip, label); or a
    dict with one of `KEYS`, or with one value of 3 or 4 axes. Raises `TypeError` on other items.
    """
    found = item
    if isinstance(found, Mapping):
        found = next((found[key] for key in KEYS if key in found), None)
        if found is None:
            clips = [value for value in item.values() if np.ndim(value) in (3, 4)]
            found = clips[0] if len(clips) == 1 else None
    elif isinstance(found, Sequence) and not isinstance(found, str) and len(found):
        found = found[0]
    if isinstance(found, np.ndarray):
        found = torch.from_numpy(found)
    if not isinstance(found, Tensor) or found.ndim not in (3, 4):
        raise TypeError(
            f"an item is {_describe(item)}: give a clip c t h w or an image c h w as a tensor or "
            f"array, a tuple that begins with it, or a dict with it under {KEYS[0]!r}"
        )
    if not found.is_floating_point():
        raise TypeError(
            f"a clip is {found.dtype}: give floating point in [-1, 1] "
            "(magvit2_pytorch.data.to_float converts bytes)"
        )
    return found.float()


def _describe(item: Any) -> str:
    if isinstance(item, Mapping):
        return f"a dict with the keys {', '.join(map(repr, item))}"
    if isinstance(item, Tensor | np.ndarray):
        return f"a {type(item).__name__} of shape {tuple(item.shape)}"
    return f"a {type(item).__name__}"


def stack_clips(clips: Sequence[Tensor]) -> Tensor:
    """A batch of clips, cut to the shortest; `ValueError` for unequal sizes."""
    shapes = {tuple(clip.shape) for clip in clips}
    if len(shapes) > 1:
        if len({(len(shape), shape[0], *shape[-2:]) for shape in shapes}) > 1:
            raise ValueError(
                f"clips of one batch have the shapes {', '.join(map(str, sorted(shapes)))}: give "
                "clips of one size, or batch_size 1"
            )
        warnings.warn("clips of unequal lengths are cut to the shortest of a batch", stacklevel=2)
        shortest = min(shape[1] for shape in shapes)
        clips = [clip[:, :shortest] for clip in clips]
    return torch.stack(list(clips))


class UserClips(Dataset):
    """Clips of a data set with a length."""

    def __init__(self, dataset: Any):
        self.dataset = dataset
        self.takes_epoch = getattr(dataset, "takes_epoch", False)

    def __getitem__(self, key: Any) -> Tensor:
        return as_clip(self.dataset[key])

    def __len__(self) -> int:
        return len(self.dataset)


class StreamedClips:
    """Clips of a data set without a length, read again and again."""

    def __init__(self, dataset: Any):
        if iter(dataset) is dataset:
            raise ValueError(
                f"a {type(dataset).__name__} can be read once: give an iterable data set, whose "
                "__iter__ starts anew"
            )
        self.dataset = dataset

    def __iter__(self) -> Iterator[Tensor]:
        return map(as_clip, iter(self.dataset))

    def batches(self, batch_size: int, position: int, rank: int, world_size: int):
        """Endless batches from number `position` on; all processes read all items.

        Those before are read and dropped, so that a resumed run gets the same batches if the data
        set gives the same items.
        """
        items = chain.from_iterable(self for _ in repeat(None) if self._has_items())
        for number in count():
            batch = list(islice(items, batch_size * world_size))
            if number >= position:
                yield stack_clips(batch[rank * batch_size : (rank + 1) * batch_size])

    def _has_items(self) -> bool:
        if next(iter(self), None) is None:
            raise ValueError("the data set is empty: batches need at least one item")
        return True


def user_clips(dataset: Any) -> Clips | None:
    """The clips of any data set; None stays None."""
    if dataset is None or isinstance(dataset, MediaDataset | UserClips | StreamedClips):
        return dataset
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__"):
        return StreamedClips(dataset)
    try:
        len(dataset)
    except (TypeError, NotImplementedError):  # it has __len__ but no length, as streams do
        return StreamedClips(dataset)
    return UserClips(dataset)


def num_clips(clips: Clips) -> int | None:
    """Number of clips, None if it is not known."""
    return None if isinstance(clips, StreamedClips) else len(clips)


def share_of_clips(
    clips: Clips, max_clips: int, rank: int = 0, world_size: int = 1, spread: bool = False
) -> Iterator[Tensor]:
    """Every `world_size`-th of `max_clips` clips, the first or evenly `spread`."""
    total = num_clips(clips)
    if total is None:
        yield from islice(clips, rank, max_clips, world_size)
        return
    number = min(total, max_clips)
    for index in range(rank, number, world_size):
        yield clips[index * total // number if spread else index]


class FirstClips(Dataset):
    """The first clips of a data set, each read once.

    A later reading could crop a clip in another way.
    """

    def __init__(self, clips: Clips, number: int):
        self.clips = list(share_of_clips(clips, number))
        self.always_in_range = isinstance(clips, MediaDataset)

    def __getitem__(self, number: int) -> Tensor:
        return self.clips[number]

    def __len__(self) -> int:
        return len(self.clips)
