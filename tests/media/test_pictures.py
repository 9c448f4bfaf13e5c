"""Pictures of every mode: right values, upright, with their opacity, whatever their metadata."""

import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from magvit2_pytorch.media.frames import resize_array
from magvit2_pytorch.media.images import read_image
from magvit2_pytorch.media.unusable import UnusableMedia
from magvit2_pytorch.pipelines.tokenizer_info import describe_file

# The EXIF standard's words: the side that the first row and the first column are shown at.
SIDES = {
    1: ("top", "left"),
    2: ("top", "right"),
    3: ("bottom", "right"),
    4: ("bottom", "left"),
    5: ("left", "top"),
    6: ("right", "top"),
    7: ("right", "bottom"),
    8: ("left", "bottom"),
}

HEIGHT, WIDTH = 3, 5
GREY = (np.arange(HEIGHT * WIDTH, dtype=np.uint8) * 17).reshape(HEIGHT, WIDTH)[:, ::-1]
ALPHA = np.roll(GREY, 4)
RGB = np.stack((GREY, GREY.T.reshape(HEIGHT, WIDTH), 255 - GREY), -1)
OPAQUE = np.full_like(GREY, 255)
CLEAR = np.where(GREY == 51, 0, 255)
"""Opacity where grey 51 is transparent."""


def upright(array: np.ndarray, exif: int) -> np.ndarray:
    """Pixel by pixel as the standard says."""
    height, width = array.shape[:2]
    shown = np.zeros((width, height, *array.shape[2:]) if exif > 4 else array.shape, array.dtype)
    for row in range(height):
        for column in range(width):
            place = {}
            for side, i, count in zip(SIDES[exif], (row, column), (height, width), strict=True):
                axis = "y" if side in ("top", "bottom") else "x"
                place[axis] = i if side in ("top", "left") else count - 1 - i
            shown[place["y"], place["x"]] = array[row, column]
    return shown


def rgba(colour: np.ndarray, alpha: np.ndarray = OPAQUE) -> np.ndarray:
    colour = np.broadcast_to(colour[..., None] if colour.ndim == 2 else colour, (*alpha.shape, 3))
    return np.concatenate((colour, alpha[..., None]), -1)


def palette_image(mode: str) -> Image.Image:
    image = Image.fromarray(np.arange(HEIGHT * WIDTH, dtype=np.uint8).reshape(HEIGHT, WIDTH))
    image = image.convert("P")
    image.putpalette(RGB.tobytes())
    if mode == "PA":
        image = image.convert("PA")
        image.putalpha(Image.fromarray(ALPHA))
    return image


def joined(*bands: np.ndarray, mode: str) -> Image.Image:
    return Image.merge(mode, [Image.fromarray(np.ascontiguousarray(band)) for band in bands])


INKS = np.stack((GREY, ALPHA, RGB[..., 1], GREY // 2), -1)
PAPER = np.rint((255.0 - INKS[..., :3]) * (255.0 - INKS[..., 3:]) / 255).astype(np.uint8)
FLOATS = (GREY / 255).astype(np.float32)

# name: the image, how it is saved, what it shows, and the error allowed by its format.
MODES = {
    "I;16 png": (Image.fromarray(GREY * np.uint16(257)), {}, rgba(GREY)),
    "I;16 tif": (Image.fromarray(GREY * np.uint16(257)), {}, rgba(GREY)),
    "I;16B tif": (Image.fromarray((GREY * np.uint16(257)).astype(">u2")), {}, rgba(GREY)),
    "I;16 transparent png": (
        Image.fromarray(GREY * np.uint16(257)),
        dict(transparency=51 * 257),
        rgba(GREY, CLEAR),
    ),
    "I of 16 bits tif": (Image.fromarray(GREY * np.int32(257)), {}, rgba(GREY)),
    "I of 8 bits tif": (Image.fromarray(GREY.astype(np.int32)), {}, rgba(GREY)),
    "I of 31 bits tif": (Image.fromarray(GREY * np.int32(2**23 + 2**15)), {}, rgba(GREY)),
    "F to 1 tif": (Image.fromarray(FLOATS), {}, rgba(GREY)),
    "F to 255 tif": (Image.fromarray(GREY.astype(np.float32)), {}, rgba(GREY)),
    "F to 65535 tif": (Image.fromarray(FLOATS * 65535), {}, rgba(GREY)),
    "1 png": (Image.fromarray(GREY > 99), {}, rgba(np.where(GREY > 99, 255, 0))),
    "1 transparent png": (
        Image.fromarray(GREY > 99),
        dict(transparency=0),
        rgba(np.where(GREY > 99, 255, 0), np.where(GREY > 99, 255, 0)),
    ),
    "L jpg": (Image.fromarray(np.full_like(GREY, 77)), {}, rgba(np.full_like(GREY, 77))),
    "L transparent png": (Image.fromarray(GREY), dict(transparency=51), rgba(GREY, CLEAR)),
    "LA png": (joined(GREY, ALPHA, mode="LA"), {}, rgba(GREY, ALPHA)),
    "LA tif": (joined(GREY, ALPHA, mode="LA"), {}, rgba(GREY, ALPHA)),
    "PA tif": (palette_image("PA"), {}, rgba(RGB, ALPHA)),
    "P png": (palette_image("P"), {}, rgba(RGB)),
    "P transparent png": (
        palette_image("P"),
        dict(transparency=ALPHA.tobytes()),
        rgba(RGB, ALPHA),
    ),
    "RGB transparent png": (
        Image.fromarray(RGB),
        dict(transparency=tuple(RGB[1, 1].tolist())),
        rgba(RGB, np.where((RGB[1, 1] == RGB).all(-1), 0, 255)),
    ),
    "RGBA png": (Image.fromarray(rgba(RGB, ALPHA)), {}, rgba(RGB, ALPHA)),
    "RGBA tif": (Image.fromarray(rgba(RGB, ALPHA)), {}, rgba(RGB, ALPHA)),
    "RGBA webp": (
        Image.fromarray(rgba(RGB, ALPHA)),
        dict(lossless=True, exact=True),
        rgba(RGB, ALPHA),
    ),
    "CMYK tif": (Image.fromarray(INKS, "CMYK"), {}, rgba(PAPER)),
    "CMYK jpg": (
        Image.new("CMYK", (WIDTH, HEIGHT), (10, 100, 200, 30)),
        dict(quality=100),
        rgba(np.broadcast_to(np.array((216, 137, 49)), (HEIGHT, WIDTH, 3))),
    ),
    "LAB tif": (
        joined(OPAQUE, OPAQUE // 2 + 1, OPAQUE // 2 + 1, mode="LAB"),
        {},
        rgba(OPAQUE),
    ),
}  # fmt: skip


@pytest.mark.parametrize("orientation", SIDES)
@pytest.mark.parametrize("case", MODES)
def test_values_turn_and_opacity_of_every_mode(tmp_path, case, orientation):
    image, options, expected = MODES[case]
    path = tmp_path / f"a.{case.split()[-1]}"
    exif = Image.Exif()
    exif[0x112] = orientation
    image.save(path, exif=exif, **options)
    with Image.open(path) as stored:
        assert stored.mode.startswith(case.split()[0])
    expected = upright(expected, orientation)
    allowed = 2 if path.suffix in (".jpg", ".webp") or "CMYK" in case or "LAB" in case else 0
    shown = read_image(path, 4).numpy().astype(int)
    assert np.abs(shown - expected).max() <= allowed
    over_black = np.rint(expected[..., :3] * (expected[..., 3:] / 255))
    assert np.abs(read_image(path).numpy() - over_black).max() <= allowed + 0.5
    height, width = expected.shape[:2]
    if path.suffix != ".tif":
        assert describe_file(path) == {"kind": "image", "height": height, "width": width}


def test_floats_without_a_value_are_black_and_signs_are_clipped(tmp_path):
    floats = np.array([[np.nan, -1, 0.5, 1]], np.float32)
    Image.fromarray(floats).save(tmp_path / "a.tif")
    assert read_image(tmp_path / "a.tif", 1).flatten().tolist() == [0, 0, 128, 255]
    Image.fromarray(np.array([[-5, 128, 255]], np.int32)).save(tmp_path / "b.tif")
    assert read_image(tmp_path / "b.tif", 1).flatten().tolist() == [0, 128, 255]


def test_dark_pictures_of_16_bits_stay_dark(tmp_path):
    """Their format says where white is, so it does not depend on the levels that occur."""
    dark = np.array([[0, 128, 250, 255]], np.uint16)
    Image.fromarray(dark).save(tmp_path / "a.png")
    Image.fromarray(dark.astype(np.int32)).save(tmp_path / "a.ppm")
    for name in ("a.png", "a.ppm"):
        image = tmp_path / name
        if name == "a.ppm":
            image = image.rename(tmp_path / "a.bmp")  # the contents decide
        assert read_image(image, 1).flatten().tolist() == [0, 0, 0, 0]


def chunk(name: bytes, body: bytes, intact: bool = True) -> bytes:
    check_sum = zlib.crc32(name + body) ^ (not intact)
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", check_sum)


def png(rows: list[bytes], width: int, depth: int, colour: int, *chunks: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, len(rows), depth, colour, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    parts = (chunk(b"IHDR", header), *chunks, chunk(b"IDAT", pixels), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize(
    ("row", "depth", "colour", "transparent", "expected"),
    [
        (bytes([0b01100000]), 1, 0, (1,), [(0, 255), (255, 0)]),
        (bytes([0b01100000]), 2, 0, (1,), [(85, 0), (170, 255)]),
        (bytes([0x5F]), 4, 0, (5,), [(85, 0), (255, 255)]),
        (bytes([5, 250]), 8, 0, (250,), [(5, 255), (250, 0)]),
        (struct.pack(">HH", 1000, 40000), 16, 0, (1000,), [(3, 0), (156, 255)]),
        (struct.pack(">6H", *[1000] * 3, *[40000] * 3), 16, 2, (40000,) * 3, [(3, 255), (156, 0)]),
    ],
    ids=["1 bit", "2 bits", "4 bits", "8 bits", "16 bits", "16 bits of colour"],
)
def test_the_transparent_level_of_a_png_has_the_depth_of_its_pixels(
    tmp_path, row, depth, colour, transparent, expected
):
    opacity = chunk(b"tRNS", struct.pack(f">{len(transparent)}H", *transparent))
    (tmp_path / "a.png").write_bytes(png([row], 2, depth, colour, opacity))
    shown = read_image(tmp_path / "a.png", 4)[0]
    assert [(pixel[0].item(), pixel[3].item()) for pixel in shown] == expected


def exif_chunk(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x112] = orientation
    return chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))


LARGE = zlib.compress(bytes(20 * 2**20))
BROKEN = {
    "zTXt too large": chunk(b"zTXt", b"Comment\0\0" + LARGE),
    "iTXt too large": chunk(b"iTXt", b"Comment\0\1\0\0\0" + LARGE),
    "tEXt with a wrong check sum": chunk(b"tEXt", b"Comment\0hello", intact=False),
    "iCCP too large": chunk(b"iCCP", b"name\0\0" + LARGE),
    "pHYs cut short": chunk(b"pHYs", b"\0"),
    "gAMA cut short": chunk(b"gAMA", b"\0"),
    "zTXt of another method": chunk(b"zTXt", b"Comment\0\7" + zlib.compress(b"hello")),
}


@pytest.mark.filterwarnings("ignore:.*metadata")
@pytest.mark.parametrize("case", BROKEN)
@pytest.mark.parametrize("channels", [3, 4])
def test_metadata_of_a_png_do_not_cost_its_pixels(tmp_path, case, channels):
    """The picture, its turn and its opacity stay."""
    opacity = chunk(b"tRNS", struct.pack(">3H", 4, 5, 6))
    parts = (opacity, exif_chunk(8), BROKEN[case])
    path = tmp_path / "a.png"
    path.write_bytes(png([bytes([1, 2, 3, 4, 5, 6])], 2, 8, 2, *parts))
    shown = read_image(path, channels)
    expected = [[1, 2, 3, 255], [4, 5, 6, 0]] if channels == 4 else [[1, 2, 3], [0, 0, 0]]
    assert shown[:, 0].flip(0).tolist() == expected


def test_what_was_left_out_is_said(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(png([bytes([7])], 1, 8, 0, BROKEN["zTXt too large"]))
    with pytest.warns(UserWarning, match=r"a\.png: read without its zTXt metadata \(.*too large"):
        assert read_image(path, 1).item() == 7


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
@pytest.mark.parametrize(
    "exif", [b"II*\0\xff\xff", b"nothing", b"MM\0*\0\0\0\x08\xff\xff", b""], ids=range(4)
)
def test_malformed_exif_does_not_cost_the_pixels(tmp_path, recwarn, suffix, exif):
    path = tmp_path / f"a.{suffix}"
    if suffix == "png":
        path.write_bytes(png([bytes([7, 7, 7])], 3, 8, 0, chunk(b"eXIf", exif)))
    else:
        Image.new("L", (3, 1), 7).save(path, exif=b"Exif\0\0" + exif)
    shown = read_image(path)
    assert shown.shape == (1, 3, 3)
    assert (shown.float() - 7).abs().max() <= 1
    told = [str(warning.message) for warning in recwarn]
    assert all("EXIF" in text for text in told)


def test_damaged_pixels_stay_an_error(tmp_path):
    whole = png([bytes(range(250)) for _ in range(9)], 250, 8, 0, BROKEN["gAMA cut short"])
    (tmp_path / "a.png").write_bytes(whole[:-60])
    with pytest.raises(UnusableMedia, match=r"a\.png"):
        read_image(tmp_path / "a.png")


def test_resized_pictures_are_upright_first(tmp_path):
    exif = Image.Exif()
    exif[0x112] = 6
    Image.fromarray(GREY * np.uint16(257)).save(tmp_path / "a.png", exif=exif)
    whole = read_image(tmp_path / "a.png")
    assert whole.shape == (WIDTH, HEIGHT, 3)
    enlarged = read_image(tmp_path / "a.png", size=(10, 6))
    assert torch.equal(enlarged, torch.from_numpy(resize_array(whole.numpy(), (10, 6))))
