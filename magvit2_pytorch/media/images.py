"""Reading and writing of image files, and of grids of images."""

import io
import struct
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from magvit2_pytorch.atomic import AnyPath, as_path, replacing
from magvit2_pytorch.media.frames import (
    Orientation,
    as_channels,
    check_channels,
    resize_array,
    to_uint8,
)
from magvit2_pytorch.media.unusable import check_regular_file, decoding_errors, printable

Picture = Float[Tensor, "c h w"] | UInt8[Tensor, "h w c"]
"""Floats in [-1, 1], channels first, or bytes, channels last."""

# Orientations by EXIF's number; 1 is upright.
_ORIENTATIONS = {
    2: Orientation(False, False, True),
    3: Orientation(False, True, True),
    4: Orientation(False, True, False),
    5: Orientation(True, False, False),
    6: Orientation(True, False, True),
    7: Orientation(True, True, True),
    8: Orientation(True, True, False),
}

# Pillow drops the opacity of these, or refuses it.
_WITHOUT_OPACITY = (".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".ppm", ".pgm", ".pbm", ".pnm")

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Chunks without which there is no picture, and chunks that say how to show it.
_PNG_PIXELS = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
_PNG_SHOWN = (b"tRNS", b"eXIf")


def read_image(
    path: AnyPath, channels: int = 3, size: tuple[int, int] | None = None
) -> UInt8[Tensor, "h w c"]:
    """Reads an image as bytes, upright (EXIF).

    Of an animation this is the first frame. An image with opacity is composed over black unless 4
    channels are asked for. `size` (height, width) resizes as videos are resized. Raises
    `UnusableMedia` if the file cannot be read or its header claims more pixels than Pillow accepts
    (twice `PIL.Image.MAX_IMAGE_PIXELS`). Metadata that cannot be read is left out with a warning.
    """
    check_channels(channels)
    path = as_path(path)
    with decoding_errors(path):
        check_regular_file(path)
        with open(path, "rb") as file:
            image, raw_mode = _decode(file, path)
            orientation = _exif_orientation(image, path)
            array = np.array(_to_rgb(image, raw_mode))
        levels = np.ascontiguousarray(as_channels(orientation.apply(array), channels))
        return torch.from_numpy(levels if size is None else resize_array(levels, size))


def _decode(file: io.BufferedIOBase, path: Path) -> tuple[Any, str]:
    """The decoded image, and Pillow's name of the pixel format."""
    try:
        return _load(file)
    except Exception as error:
        # Pillow refuses a PNG for its texts, profiles and check sums: the pixels may be intact.
        reduced, left_out = _without_metadata(file)
        if not left_out:
            raise
        try:
            image = _load(io.BytesIO(reduced))
        except Exception:
            raise error from None
        warnings.warn(
            f"{printable(path)}: read without its {left_out} metadata ({error})", stacklevel=4
        )
        return image


def _load(file: io.BufferedIOBase) -> tuple[Any, str]:
    from PIL import Image

    image = Image.open(file)
    tiles = getattr(image, "tile", None)
    arguments = tiles[0][3] if tiles else ""
    image.load()
    return image, arguments if isinstance(arguments, str) else ""


def _without_metadata(file: io.BufferedIOBase) -> tuple[bytes, str]:
    """A PNG of its necessary, intact chunks, and names of the others."""
    file.seek(0)
    signature = file.read(8)
    kept, left_out = [signature], []
    while signature == _PNG_SIGNATURE and len(head := file.read(8)) == 8:
        length, name = struct.unpack(">I4s", head)
        body = file.read(length + 4)
        intact = body[length:] == struct.pack(">I", zlib.crc32(name + body[:length]))
        if name in _PNG_PIXELS or (name in _PNG_SHOWN and intact):
            kept.append(head + body)
        else:
            left_out.append(name.decode("ascii", "replace"))
    return b"".join(kept), ", ".join(sorted(set(left_out)))


def _exif_orientation(image: Any, path: Path) -> Orientation:
    try:
        return _ORIENTATIONS.get(image.getexif().get(0x0112), Orientation())
    except Exception as error:  # Pillow raises what comes: SyntaxError, struct.error, KeyError
        warnings.warn(
            f"{printable(path)}: EXIF metadata cannot be read ({error}), it may not be upright",
            stacklevel=3,
        )
        return Orientation()


def _to_rgb(image: Any, raw_mode: str) -> Any:
    """Converts to RGB, or to RGBA if there is opacity."""
    transparency = image.info.get("transparency")
    if image.mode.startswith("I") or image.mode == "F":
        return _deep_to_rgb(image, transparency)
    # Pillow keeps the transparent colour of a PNG in the file's depth: 2, 4 or 16 bits.
    if raw_mode in ("L;2", "L;4") and isinstance(transparency, int):
        image.info["transparency"] = transparency * (85 if raw_mode == "L;2" else 17)
    elif raw_mode == "RGB;16B" and isinstance(transparency, tuple):
        image.info["transparency"] = tuple(level >> 8 for level in transparency)
    if image.mode == "LAB":
        from PIL import ImageCms

        profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(image, *profiles, outputMode="RGB")
    if image.mode == "La":  # opacity is multiplied in; there is no way from here to RGBA
        image = image.convert("LA")
    has_opacity = {"A", "a"} & set(image.getbands()) or transparency is not None
    return image.convert("RGBA" if has_opacity else "RGB")


def _deep_to_rgb(image: Any, transparency: Any) -> Any:
    """Converts grey of 16 or 32 bits or floats, which Pillow clips.

    White is 65535 in formats that say so. A TIFF of 32 bits or floats does not: white is then
    the first of 1 (floats only), 255, 65535 and 2^31 - 1 that no level exceeds.
    """
    from PIL import Image

    if image.mode == "F":
        values = np.nan_to_num(np.asarray(image, np.float64), nan=0.0)
        scale = 255 / _white(values, (1, 255, 65535, 2**31 - 1))
        levels = np.rint(np.clip(values * scale, 0, 255))
    else:
        values = np.asarray(image, np.int64)
        is_16_bit = image.mode.startswith("I;16") or image.format in ("PNG", "PPM")
        white = 65535 if is_16_bit else _white(values, (255, 65535, 2**31 - 1))
        # As Pillow does with colours of 16 bits: the upper byte.
        levels = np.clip(values // ((white + 1) // 256), 0, 255)
    grey = Image.fromarray(levels.astype(np.uint8))
    if transparency is None:
        return grey.convert("RGB")
    grey.putalpha(Image.fromarray(np.where(values == transparency, 0, 255).astype(np.uint8)))
    return grey.convert("RGBA")


def _white(values: np.ndarray, candidates: Sequence[int]) -> int:
    highest = values.max()
    return next((white for white in candidates if highest <= white), candidates[-1])


def write_image(path: AnyPath, picture: Picture) -> None:
    """Writes one image atomically, in the format of the suffix."""
    from PIL import Image

    levels, path = _to_bytes(picture), as_path(path)
    if levels.shape[-1] == 4 and path.suffix.lower() in _WITHOUT_OPACITY:
        levels = as_channels(levels, 3)
    image = Image.fromarray(levels[..., 0] if levels.shape[-1] == 1 else levels)
    with replacing(path) as part:
        image.save(part)


def write_grid(
    path: AnyPath, rows: Sequence[Sequence[Picture] | Tensor], separator: int = 2
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
    down, right = height + separator, width + separator
    sides = len(cells) * down - separator, num_columns * right - separator
    grid = np.full((*sides, 3), 255, np.uint8)
    for i, row in enumerate(cells):
        for j, cell in enumerate(row):
            grid[i * down :, j * right :][:height, :width] = cell
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
