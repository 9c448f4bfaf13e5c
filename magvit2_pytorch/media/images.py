"""Reading and writing of image files, and of grids of images."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from magvit2_pytorch.atomic import replacing
from magvit2_pytorch.media.frames import as_channels, check_channels, resize_array, to_uint8
from magvit2_pytorch.media.unusable import check_regular_file, decoding_errors

Picture = Float[Tensor, "c h w"] | UInt8[Tensor, "h w c"]
"""Floats in [-1, 1], channels first, or bytes, channels last."""


def read_image(
    path: str | os.PathLike, channels: int = 3, size: tuple[int, int] | None = None
) -> UInt8[Tensor, "h w c"]:
    """Reads an image as bytes, upright (EXIF).

    Of an animation this is the first frame. An image with opacity is composed over black unless 4
    channels are asked for. `size` (height, width) resizes as videos are resized. Raises
    `UnusableMedia` if the file cannot be read or its header claims more pixels than Pillow accepts
    (twice `PIL.Image.MAX_IMAGE_PIXELS`).
    """
    from PIL import Image

    check_channels(channels)
    with decoding_errors(path):
        check_regular_file(path)
        with Image.open(path) as image:
            levels = as_channels(np.array(_upright(image)), channels)
        return torch.from_numpy(levels if size is None else resize_array(levels, size))


def _upright(image: Any) -> Any:
    """Applies the EXIF orientation and converts to RGB or RGBA."""
    from PIL import Image, ImageOps

    # 16 bits a pixel: Pillow's own conversion clips them to white.
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image, np.uint16) >> 8).astype(np.uint8))
    image = ImageOps.exif_transpose(image)
    has_opacity = "A" in image.getbands() or "transparency" in image.info
    return image.convert("RGBA" if has_opacity else "RGB")


def write_image(path: str | os.PathLike, picture: Picture) -> None:
    """Writes one image atomically, in the format of the suffix."""
    from PIL import Image

    levels = _to_bytes(picture)
    if levels.shape[-1] == 4 and os.fspath(path).lower().endswith((".jpg", ".jpeg")):
        levels = as_channels(levels, 3)
    image = Image.fromarray(levels[..., 0] if levels.shape[-1] == 1 else levels)
    with replacing(path) as part:
        image.save(part)


def write_grid(
    path: str | os.PathLike,
    rows: Sequence[Sequence[Picture] | Tensor],
    separator: int = 2,
) -> None:
    """Writes rows of pictures of one size as one image.

    Thin white lines separate them. A row is a list of pictures, or a video (`c t h w` floats or `t
    h w c` bytes) whose frames are placed side by side: `write_grid("step.png", [original,
    reconstruction])`. Rows may differ in length.
    """
    cells = [[as_channels(_to_bytes(cell), 3) for cell in _cells(row)] for row in rows]
    sizes = {cell.shape for row in cells for cell in row}
    if len(sizes) != 1:
        shapes = ", ".join(f"{h}x{w}" for h, w, _ in sorted(sizes)) or "none"
        raise ValueError(f"a grid needs one or more pictures of one size; got {shapes}")
    height, width, _ = sizes.pop()
    num_columns = max(map(len, cells))
    grid = np.full(
        (
            len(cells) * (height + separator) - separator,
            num_columns * (width + separator) - separator,
            3,
        ),
        255,
        np.uint8,
    )
    for i, row in enumerate(cells):
        for j, cell in enumerate(row):
            top, left = i * (height + separator), j * (width + separator)
            grid[top : top + height, left : left + width] = cell
    write_image(path, torch.from_numpy(grid))


def _cells(row: Sequence[Picture] | Tensor) -> list[Picture]:
    if isinstance(row, Tensor):
        if row.ndim != 4:
            raise ValueError(
                f"a row is a list of pictures or one video of 4 axes, not {tuple(row.shape)}"
            )
        return list(row if row.dtype == torch.uint8 else row.unbind(1))
    return list(row)


def _to_bytes(picture: Picture) -> UInt8[np.ndarray, "h w c"]:
    levels = picture if picture.dtype == torch.uint8 else to_uint8(picture)
    if levels.ndim != 3 or levels.shape[-1] not in (1, 3, 4):
        raise ValueError(
            f"a picture is `h w c` bytes or `c h w` floats with 1, 3 or 4 channels, "
            f"not {picture.dtype} of shape {tuple(picture.shape)}"
        )
    return levels.cpu().numpy()
