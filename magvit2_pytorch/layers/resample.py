"""Changes of the grid: pixels as channels, and resampling."""

import math
from fractions import Fraction

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from magvit2_pytorch.functional import own_copy
from magvit2_pytorch.layers.arithmetic import linear
from magvit2_pytorch.layers.conv import CausalConv3d, PadMode, Triple
from magvit2_pytorch.layers.stateful import Chain, ReceptiveField, StatefulLayer
from magvit2_pytorch.types import Context, Past


class BlockLayer(StatefulLayer):
    """Base of layers with blocks of `time` x `space` x `space` pixels."""

    def __init__(self, time: int = 1, space: int = 1):
        super().__init__()
        self.time, self.space = time, space
        self.block = dict(r=time, p=space, q=space)


class SpaceToDepth(BlockLayer):
    """Blocks of `time` x `space` x `space` pixels to channels; inverts `DepthToSpace`.

    The first frame of a video is repeated to fill a block: 1 + k * time frames become 1 + k.
    """

    def forward(self, x, past: Past = None, context: Context = Context()):
        if past is None and self.time > 1:
            x = torch.cat((x[:, :, :1].expand(-1, -1, self.time - 1, -1, -1), x), dim=2)
        x = rearrange(x, "b c (t r) (h p) (w q) -> b t h w (r p q c)", **self.block)
        return rearrange(x, "b t h w c -> b c t h w"), ()

    @property
    def receptive_field(self) -> ReceptiveField:
        return ReceptiveField(Fraction(self.space), align=self.space)


class DepthToSpace(BlockLayer):
    """Channels to blocks of `time` x `space` x `space` pixels.

    The first `time - 1` frames of a video are dropped. The first latent has one frame, each later
    one `time` frames. Dropping the leading frames aligns latent j with the frames that the encoder
    made it from. Channels are block-major, ((dt * space + dh) * space + dw) * C + c. Source:
    MAGVIT-v2 (arXiv 2310.05737), upsampler.
    """

    def forward(self, x, past: Past = None, context: Context = Context()):
        # One copy, directly into channels-last memory, which the next convolution reads fastest.
        x = rearrange(x, "b (r p q c) t h w -> b (t r) (h p) (w q) c", **self.block)
        x = rearrange(x, "b t h w c -> b c t h w")
        return x[:, :, self.time - 1 :] if past is None else x, ()

    @property
    def receptive_field(self) -> ReceptiveField:
        return ReceptiveField(Fraction(1, self.space))


def lapped_matrix(period: int) -> Float[Tensor, "p p"]:
    """Orthogonal pre-filter of the `period` pixels around the border of two blocks.

    With I the identity, J its mirror image and C2, C4 the cosine transforms of types II and IV, all
    of half the period: B diag(I, V) B with B = [[I, J], [J, -I]] / sqrt(2) and V = J C2' C4 J.
    Source: the type-I fast lapped orthogonal transform (Malvar and Staelin, 1989) as a filter in
    the domain of pixels (Tran, Liang and Tu, 2003).
    """
    half = period // 2
    number = torch.arange(half, dtype=torch.float64)
    c2 = torch.cos(math.pi / half * torch.outer(number, number + 0.5)) * math.sqrt(2 / half)
    c2[0] /= math.sqrt(2)
    c4 = torch.cos(math.pi / half * torch.outer(number + 0.5, number + 0.5)) * math.sqrt(2 / half)
    identity = torch.eye(half, dtype=torch.float64)
    mirror = identity.flip(0)
    butterfly = torch.cat((torch.cat((identity, mirror), 1), torch.cat((mirror, -identity), 1)))
    core = torch.block_diag(identity, mirror @ c2.T @ c4 @ mirror)
    return butterfly @ core @ butterfly / 2


def check_lapped(period: int) -> None:
    """Raises `ValueError` unless blocks of `period` pixels can overlap."""
    if period < 4 or period % 2:
        raise ValueError(
            f"patches of {period} pixels cannot be lapped: they need an even number of 4 or more"
        )


def enlarged_patch(size: int, scale: int, lapped: bool) -> Float[Tensor, "q p"]:
    """Matrix from `size` pixels along a patch to `scale` times as many.

    It is bicubic enlargement of the patch by itself, or, `lapped`, of what it draws through a
    `LappedFilter`, without the part that lies outside of what the large patch can draw.
    """

    def enlarge(pictures: Float[Tensor, "p n"]) -> Float[Tensor, "m p"]:
        rows = pictures[:, None, None]
        return F.interpolate(rows, scale_factor=(1, scale), mode="bicubic")[:, 0, 0].T

    pixels = torch.eye(size, dtype=torch.float64)
    if not lapped:
        return enlarge(pixels)

    def filtered(columns: Float[Tensor, "n p"], border: Tensor) -> Float[Tensor, "n p"]:
        half = len(border) // 2
        inner = torch.block_diag(border, border) @ columns[half:-half]
        return torch.cat((columns[:half], inner, columns[-half:]))

    # Between two patches of zeros.
    drawn = filtered(F.pad(pixels, (size, size)).T, lapped_matrix(size).T)
    size *= scale
    return filtered(enlarge(drawn.T), lapped_matrix(size))[size:-size]


class LappedFilter(StatefulLayer):
    """Orthogonal filter across the borders of blocks of `period` x `period` pixels.

    Behind `DepthToSpace` it makes blocks overlap by half a block: a linear map to blocks then draws
    functions that fade out in the next block, and no grid shows. It undoes `lapped_matrix` along
    rows and columns. The half blocks at the edges of a frame stay as they are.
    """

    def __init__(self, period: int):
        super().__init__()
        check_lapped(period)
        self.period = period
        self.receptive_field = ReceptiveField(halo=Fraction(period - 1), align=period)
        # No buffer, as it is no state; in double precision, to be rounded to that of the input.
        inverse = lapped_matrix(period).T
        self.matrix = torch.kron(inverse, inverse)

    def forward(self, x, past: Past = None, context: Context = Context()):
        sides, half = dict(p=self.period, q=self.period), self.period // 2
        # Beyond its edges the frame is mirrored, which the filter leaves as it is.
        for axis in (3, 4):
            edges = x.narrow(axis, 0, half), x.narrow(axis, x.shape[axis] - half, half)
            x = torch.cat((edges[0].flip(axis), x, edges[1].flip(axis)), dim=axis)
        x = rearrange(x, "b c t (i p) (j q) -> b c t i j (p q)", **sides)
        x = linear(x, self.matrix.to(x), None)
        x = rearrange(x, "b c t i j (p q) -> b c t (i p) (j q)", **sides)
        return x[..., half:-half, half:-half], ()


def space_downsample(dim: int, dim_out: int, pad_mode: PadMode = "constant") -> StatefulLayer:
    """Halves height and width with a strided 3x3 convolution of each frame."""
    return CausalConv3d(dim, dim_out, (1, 3, 3), stride=(1, 2, 2), pad_mode=pad_mode)


def time_downsample(dim: int, dim_out: int, pad_mode: PadMode = "constant") -> StatefulLayer:
    """Halves 1 + 2k frames to 1 + k; windows end evenly."""
    return CausalConv3d(dim, dim_out, (3, 1, 1), stride=(2, 1, 1), pad_mode=pad_mode)


def upsample(
    dim: int,
    dim_out: int,
    time: int = 1,
    space: int = 1,
    kernel_size: int | Triple = 1,
    pad_mode: PadMode = "constant",
) -> StatefulLayer:
    """Convolution to `dim_out * time * space**2` channels, then depth to space."""
    conv = CausalConv3d(dim, dim_out * time * space**2, kernel_size, pad_mode=pad_mode)
    return Chain((conv, DepthToSpace(time, space)))


class RepeatFirstFrame(StatefulLayer):
    """Puts `num` copies of the first frame in front of a video."""

    receptive_field = ReceptiveField()

    def __init__(self, num: int):
        super().__init__()
        self.num = num

    def forward(self, x, past: Past = None, context: Context = Context()):
        if past is None and self.num:
            x = torch.cat((x[:, :, :1].expand(-1, -1, self.num, -1, -1), x), dim=2)
        return x, ()


class DropFirstFrames(StatefulLayer):
    """Drops the first `num` frames of a video; undoes `RepeatFirstFrame`."""

    receptive_field = ReceptiveField()

    def __init__(self, num: int):
        super().__init__()
        self.num = num

    def forward(self, x, past: Past = None, context: Context = Context()):
        return x[:, :, self.num :] if past is None else x, ()


class EndPaddedDownsample(CausalConv3d):
    """Halves height and width by a 3x3 convolution, padded at the end.

    Output row i sees the rows 2i to 2i + 2. Source: latent diffusion (arXiv 2112.10752).
    """

    def __init__(self, dim: int):
        super().__init__(dim, dim, (1, 3, 3), stride=(1, 2, 2))
        self.conv.padding = (0, 0, 0)

    def forward(self, x, past: Past = None, context: Context = Context()):
        return super().forward(F.pad(x, (0, 1, 0, 1)), past, context)


class NearestUpsample(BlockLayer):
    """Repeats every frame `time` times, every row and column `space` times."""

    def forward(self, x, past: Past = None, context: Context = Context()):
        # One copy, directly into channels-last memory, as in `DepthToSpace`.
        x = repeat(x, "b c t h w -> b (t r) (h p) (w q) c", **self.block)
        return rearrange(x, "b t h w c -> b c t h w"), ()

    @property
    def receptive_field(self) -> ReceptiveField:
        return ReceptiveField(Fraction(1, self.space))


class BicubicUpsample(StatefulLayer):
    """Enlarges frames by bicubic interpolation.

    An output pixel depends on 4 x 4 input pixels, of which those beyond the frame are copies of its
    edge; a = -0.75, as in torch.nn.functional.interpolate.
    """

    def __init__(self, scale: int):
        super().__init__()
        self.scale = scale
        self.receptive_field = ReceptiveField(Fraction(1, scale), Fraction(2))

    def forward(self, x, past: Past = None, context: Context = Context()):
        frames = rearrange(x, "b c t h w -> (b t) c h w")
        out = F.interpolate(frames, scale_factor=self.scale, mode="bicubic")
        return rearrange(out, "(b t) c h w -> b c t h w", b=len(x)), ()


class LinearTimeUpsample(StatefulLayer):
    """Doubles the frame rate by linear interpolation, one input frame ahead.

    Outputs lie a quarter before and after each input frame (half-pixel centres); beyond the ends
    the last frame is repeated. The first `num_first` frames of a video, those of its first latent,
    are interpolated by themselves, so they need no others. Of each chunk the last output waits
    for the next one, or for the end of the video. Source: VidTok 1.1 (arXiv 2412.13061).
    """

    receptive_field = ReceptiveField()

    def __init__(self, num_first: int = 1):
        super().__init__()
        self.num_first = num_first

    def forward(self, x, past: Past = None, context: Context = Context()):
        parts = []
        if past is None:
            first, x = x[:, :, : self.num_first], x[:, :, self.num_first :]
            parts.append(self._interpolate(first, starts=True, ends=True))
            past = x[:, :, :0]
        starts = not past.shape[2]
        frames = torch.cat((past, x), dim=2)
        parts.append(self._interpolate(frames, starts, ends=context.last))
        return torch.cat(parts, dim=2), () if context.last else own_copy(frames[:, :, -1:])

    def _interpolate(
        self, x: Float[Tensor, "b c t h w"], starts: bool, ends: bool
    ) -> Float[Tensor, "b c u h w"]:
        """Outputs between frames, and those beyond the ends if final."""
        x = torch.cat((*[x[:, :, :1]] * starts, x, *[x[:, :, -1:]] * ends), dim=2)
        x = rearrange(x, "b c t h w -> b t h w c")
        before, after = x[:, :-1], x[:, 1:]
        pairs = torch.stack((before.lerp(after, 0.25), before.lerp(after, 0.75)), dim=2)
        out = rearrange(pairs, "b t r h w c -> b c (t r) h w")
        return out[:, :, int(starts) : out.shape[2] - int(ends)]


class TimeAverage(StatefulLayer):
    """Means of three frames, for every second one.

    k * 2 frames give k, with one frame in front as `CausalConv3d` pads it.
    """

    receptive_field = ReceptiveField()

    def __init__(self, pad_mode: PadMode = "constant"):
        super().__init__()
        self.zero_start = pad_mode == "constant"

    def forward(self, x, past: Past = None, context: Context = Context()):
        if past is None:
            past = torch.zeros_like(x[:, :, :1]) if self.zero_start else x[:, :, :1]
        x = torch.cat((past, x), dim=2)
        out = (x[:, :, :-2:2] + x[:, :, 1:-1:2] + x[:, :, 2::2]) / 3
        return out, () if context.last else own_copy(x[:, :, -1:])


class Mix(StatefulLayer):
    """A mix of two layers' outputs in a learned proportion.

    It is a * layer(x) + (1 - a) * conv(x), where a is the sigmoid of a parameter. `layer` acts on
    each position of a frame separately. Source: VidTok (arXiv 2412.13061), whose resampling over
    time starts as 88 % of a mean or a copy.
    """

    def __init__(self, layer: StatefulLayer, conv: StatefulLayer):
        super().__init__()
        self.layer, self.conv = layer, conv
        self.receptive_field = conv.receptive_field
        self.mix_factor = nn.Parameter(torch.tensor([2.0]))

    def forward(self, x, past: Past = None, context: Context = Context()):
        past, conv_past = (None, None) if past is None else past
        out, past = self.layer(x, past, context)
        conv, conv_past = self.conv(x, conv_past, context)
        # The half-precision type of autocast, if any, is that of the convolution.
        weight = self.mix_factor.sigmoid().to(conv.dtype)
        return conv.lerp(out.to(conv.dtype), weight), (past, conv_past)
