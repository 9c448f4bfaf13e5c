"""Laws of colour: what is read is exact arithmetic on the file's planes, at any size."""

from fractions import Fraction

import av
import numpy as np
import pytest
from jaxtyping import Float, UInt8

from magvit2_pytorch.media.frames import FrameToArray
from magvit2_pytorch.media.video_reader import VideoFile

SHARES = {"601": (0.299, 0.114), "709": (0.2126, 0.0722), "2020": (0.2627, 0.0593)}
"""Shares of red and blue in luma, by the recommendation."""

LIMITED, FULL = (219, 224, 16), (255, 255, 0)
"""Steps of luma, steps of chroma, and black."""

PATCHES = {
    "grey": (128, 128, 128),
    "black": (0, 0, 0),
    "white": (255, 255, 255),
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "cyan": (0, 255, 255),
    "brown": (200, 120, 40),
}
SIZES = {
    "native": (96, 160),
    "shrunk, even": (64, 106),
    "shrunk, odd": (65, 107),
    "grown, even": (192, 320),
    "grown, odd": (191, 321),
    "narrower and taller": (128, 80),
}
LOSSLESS = {"qp": "0", "preset": "ultrafast"}


def to_ycc(matrix: str) -> Float[np.ndarray, "3 3"]:
    red, blue = SHARES[matrix]
    luma = np.array((red, 1 - red - blue, blue))
    eye = np.eye(3)
    return np.stack((luma, (eye[2] - luma) / (2 - 2 * blue), (eye[0] - luma) / (2 - 2 * red)))


def planes_of(
    rgb: Float[np.ndarray, "h w 3"], matrix: str, levels: tuple = LIMITED
) -> Float[np.ndarray, "h w 3"]:
    """Levels of Y, Cb and Cr, not rounded, of RGB in [0, 1]."""
    luma, chroma, black = levels
    return rgb @ to_ycc(matrix).T * (luma, chroma, chroma) + (black, 128, 128)


def flat(colour: tuple, height: int, width: int, matrix: str, levels: tuple = LIMITED):
    """A frame of one colour in 4:2:0."""
    ycc = planes_of(np.array(colour) / 255, matrix, levels)
    sizes = [(height, width), (height // 2, width // 2), (height // 2, width // 2)]
    return as_frame([np.full(size, level) for size, level in zip(sizes, ycc, strict=True)])


def field(y: Float[np.ndarray, "..."], x: Float[np.ndarray, "..."]) -> Float[np.ndarray, "... 3"]:
    """Smooth colours of a picture of 96 x 160, RGB in [0, 1], at places counted in pixels."""
    u, v = (x + 0.5) / 160, (y + 0.5) / 96
    waves = (np.sin(8.2 * u + 2.5 * v), np.sin(4.4 * v - 5.7 * u + 1), np.cos(6.9 * u + 7.5 * v))
    return 0.5 + 0.4 * np.stack(waves, -1)


def field_frame(matrix: str) -> av.VideoFrame:
    """`field` in 4:2:0; its chroma lies at the left two of four pixels, as H.264 has it."""
    luma = planes_of(field(*np.mgrid[:96, :160]), matrix)[..., :1]
    chroma = planes_of(field(np.mgrid[:96:2, :160:2][0] + 0.5, np.mgrid[:96:2, :160:2][1]), matrix)
    return as_frame([luma[..., 0], chroma[..., 1], chroma[..., 2]])


def resized_field(size: tuple[int, int]) -> Float[np.ndarray, "h w 3"]:
    """`field` in levels of RGB, each pixel the mean over its area (8 x 8 places)."""
    places = [
        (np.arange(8 * now) + 0.5) / 8 * then / now - 0.5
        for now, then in zip(size, (96, 160), strict=True)
    ]
    fine = field(*np.meshgrid(*places, indexing="ij")) * 255
    return fine.reshape(size[0], 8, size[1], 8, 3).mean((1, 3))


def as_frame(planes: list[np.ndarray], pixels: str = "yuv420p") -> av.VideoFrame:
    frame = av.VideoFrame(planes[0].shape[1], planes[0].shape[0], pixels)
    for target, source in zip(frame.planes, planes, strict=False):
        padded = np.zeros((target.height, target.line_size), np.uint8)
        padded[:, : target.width] = np.clip(np.rint(source), 0, 255)
        target.update(padded.tobytes())
    return frame


def written(path, frame: av.VideoFrame, colorspace: int = 2, color_range: int = 0, turn: int = 0):
    """A file of this one frame, lossless, with these tags (2 and 0: none)."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = frame.height, frame.width, "yuv420p"
        stream.options = {"threads": "1", **LOSSLESS}
        stream.codec_context.colorspace = frame.colorspace = colorspace
        stream.codec_context.color_range = frame.color_range = color_range
        if turn:
            stream.set_display_rotation(turn)
        frame.pts, frame.time_base = 0, Fraction(1, 25)
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def read(path, size: tuple[int, int] | None = None) -> UInt8[np.ndarray, "h w 3"]:
    return VideoFile(path, num_threads=1).read([0], size)[0].numpy()


def furthest(levels: UInt8[np.ndarray, "h w 3"], colour: tuple) -> int:
    return int(np.abs(levels.astype(int) - colour).max())


@pytest.mark.parametrize("name", PATCHES)
def test_flat_colours_are_within_one_level(tmp_path, name):
    """One level: the planes are rounded to a level of luma, 1.16 of RGB, and then RGB is."""
    path = written(tmp_path / "a.mp4", flat(PATCHES[name], 96, 160, "601"))
    for size in SIZES:
        assert furthest(read(path, SIZES[size]), PATCHES[name]) <= 1, size


@pytest.mark.parametrize("size", SIZES)
def test_a_smooth_field_is_exact_arithmetic(tmp_path, size):
    """Rounding of planes and RGB leaves 53 dB; chroma half a pixel beside its place 45 dB."""
    path = written(tmp_path / "a.mp4", field_frame("601"))
    error = read(path, SIZES[size]) - resized_field(SIZES[size])
    assert 10 * np.log10(255**2 / np.mean(error**2)) > 50
    # Rounding errs to both sides; measured 0.02 of a level at most.
    assert np.abs(error.mean((0, 1))).max() < 0.1


@pytest.mark.parametrize(("height", "width", "matrix", "turn"), [
    (96, 160, "601", 0), (576, 720, "601", 0), (64, 1278, "601", 0), (64, 720, "601", 0),
    (578, 64, "709", 0), (720, 64, "709", 0), (64, 1280, "709", 0), (720, 1280, "709", 0),
    # Upright they would have the other matrix.
    (64, 720, "601", 90), (720, 64, "709", 90),
])  # fmt: skip
def test_untagged_video_goes_by_the_coded_size(tmp_path, height, width, matrix, turn):
    """As players go: a tall video of 64 x 720 that is stored lying has 64 lines."""
    other = {"601": "709", "709": "601"}[matrix]
    for name in ("green", "brown"):
        colour = PATCHES[name]
        path = written(tmp_path / f"{name}.mp4", flat(colour, height, width, matrix), turn=turn)
        for size in (None, (32, 48)):
            assert furthest(read(path, size), colour) <= 1
    path = written(tmp_path / "other.mp4", flat(PATCHES["brown"], height, width, other))
    assert furthest(read(path), PATCHES["brown"]) > 5


MATRICES = [(1, "709"), (5, "601"), (6, "601"), (9, "2020")]
RANGES = [(0, LIMITED), (1, LIMITED), (2, FULL)]
# Each matrix and each range at both heights.
TAGS = [
    (*matrix, *levels, (96, 720)[(i + j) % 2])
    for i, matrix in enumerate(MATRICES)
    for j, levels in enumerate(RANGES)
]


@pytest.mark.parametrize(("colorspace", "matrix", "color_range", "levels", "height"), TAGS)
def test_tags_count_at_any_size(tmp_path, colorspace, matrix, color_range, levels, height):
    for name in ("white", "brown"):
        colour = PATCHES[name]
        frame = flat(colour, height, 64, matrix, levels)
        path = written(tmp_path / f"{name}.mp4", frame, colorspace, color_range)
        for size in (None, (32, 48)):
            assert furthest(read(path, size), colour) <= 1


@pytest.mark.parametrize(("height", "matrix"), [(96, "601"), (720, "709")])
@pytest.mark.parametrize("colorspace", [0, 2, 3])
def test_tags_that_name_no_matrix_are_none(colorspace, height, matrix):
    """RGB (of pixels that are not), unspecified and reserved, which swscale refuses."""
    frame = flat(PATCHES["brown"], height, 64, matrix)
    frame.colorspace = colorspace
    assert furthest(FrameToArray(3)(frame), PATCHES["brown"]) <= 1
    assert frame.colorspace == colorspace


@pytest.mark.parametrize("pixels", ["rgb24", "bgr0", "gbrp", "gray", "rgb555le"])
def test_formats_without_a_matrix_are_the_same_at_any_size(pixels):
    for colour in ((0, 0, 0), (255, 255, 255), (255, 0, 0)):
        if pixels == "gray" and colour == (255, 0, 0):
            continue
        array = np.broadcast_to(np.array(colour, np.uint8), (720, 64, 3))
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(array), "rgb24")
        frame = frame.reformat(format=pixels, interpolation=0x40000)
        assert furthest(FrameToArray(3)(frame), colour) == 0


@pytest.mark.parametrize(("height", "matrix"), [(96, "601"), (720, "709")])
def test_video_with_opacity_has_the_same_colours(height, matrix):
    opaque = flat(PATCHES["brown"], height, 64, matrix)
    planes = [np.frombuffer(p, np.uint8).reshape(p.height, -1)[:, : p.width] for p in opaque.planes]
    frame = as_frame([*planes, np.full((height, 64), 200)], "yuva420p")
    for size in ((height, 64), (48, 32)):
        assert furthest(FrameToArray(4, size)(frame), (*PATCHES["brown"], 200)) <= 1
