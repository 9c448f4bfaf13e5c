"""An image tokenizer as the start of a video tokenizer."""

from dataclasses import fields

import pytest
import torch
from einops import einsum, rearrange
from torch.nn import functional as F

from magvit2_pytorch import VideoTokenizer
from magvit2_pytorch.convert.conversion import tokenizer_from_state
from magvit2_pytorch.convert.inflate import enlarged, inflate_into
from magvit2_pytorch.layers.resample import BicubicUpsample, LappedFilter, enlarged_patch
from magvit2_pytorch.tokenizer.presets import magvit2_options
from magvit2_pytorch.tokenizer.tokenizer_config import INFLATABLE, TokenizerConfig
from tests.conftest import DISCRETE, QUANTIZERS, random_video
from tests.o2_magvit2 import Shape, decode, encode, made_state, tokenizer_shapes

MULTS = (1, 2, 2)
PATTERNS = [(False, True), (True, False), (True, True), (False, False)]


def image_tokenizer(quantizer="lfq", kernel_size=(1, 3, 3), **options):
    options = magvit2_options(8, MULTS, (False, False), 1, kernel_size) | options
    return VideoTokenizer(
        **(options | QUANTIZERS[quantizer] | dict(image_size=16, norm_groups=4))
    ).eval()


def video_tokenizer(halve_time, quantizer="lfq", **options):
    options = magvit2_options(8, MULTS, halve_time, 1) | options
    return VideoTokenizer(
        **(options | QUANTIZERS[quantizer] | dict(image_size=16, norm_groups=4))
    ).eval()


@pytest.fixture(scope="module", params=PATTERNS, ids=str)
def pair(request):
    torch.manual_seed(0)
    image, video = image_tokenizer(), video_tokenizer(request.param)
    inflate_into(video, image)
    return image, video


@torch.no_grad()
def test_an_image_is_as_it_was(pair):
    image, video = pair
    x = random_video(1)
    torch.testing.assert_close(video.encode(x), image.encode(x), atol=1e-5, rtol=0)
    torch.testing.assert_close(video(x), image(x), atol=1e-5, rtol=0)
    assert torch.equal(video.tokenize(x), image.tokenize(x))


@torch.no_grad()
def test_a_clip_that_stands_still_has_one_latent_over_and_over(pair):
    image, video = pair
    still = random_video(1)
    clip = still.expand(-1, -1, 1 + 2 * video.time_factor, -1, -1)
    latents = video.encode(clip)
    assert latents.shape[2] == 3
    for number in range(3):
        torch.testing.assert_close(
            latents[:, :, number], image.encode(still)[:, :, 0], atol=1e-5, rtol=0
        )
    recon = video(clip)
    for frame in range(recon.shape[2]):
        torch.testing.assert_close(recon[:, :, frame], image(still)[:, :, 0], atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_latent_is_that_of_its_newest_frame(pair):
    image, video = pair
    clip = random_video(1 + 2 * video.time_factor)
    latents = video.encode(clip)
    for number in range(latents.shape[2]):
        newest = clip[:, :, [number * video.time_factor]]
        torch.testing.assert_close(latents[:, :, [number]], image.encode(newest), atol=1e-5, rtol=0)


@pytest.mark.parametrize("quantizer", [*DISCRETE, "continuous", "continuous-kl"])
def test_every_quantizer_is_carried_along(quantizer):
    layers = ("residual", "compress_space")
    image = image_tokenizer(quantizer, layers=layers, patch_size=(1, 2))
    video = video_tokenizer((False, True), quantizer, layers=layers, patch_size=(2, 2))
    for parameter in image.quantizer.parameters():
        torch.nn.init.normal_(parameter)
    inflate_into(video, image)
    x = random_video(1)
    torch.testing.assert_close(video(x), image(x), atol=1e-5, rtol=0)


@torch.no_grad()
def test_blocks_of_frames_are_inflated_too():
    layers = ("residual", "compress_space", "residual")
    image = image_tokenizer(layers=layers, patch_size=(1, 2))
    video = video_tokenizer((False, True), layers=layers, patch_size=(4, 2))
    inflate_into(video, image)
    clip = random_video(5)
    torch.testing.assert_close(video(clip[:, :, :1]), image(clip[:, :, :1]), atol=1e-5, rtol=0)
    latents = video.encode(clip)
    torch.testing.assert_close(latents[:, :, 1:], image.encode(clip[:, :, 4:]), atol=1e-5, rtol=0)


ENDS = {
    "no patches": dict(),
    "replicate": dict(pad_mode="replicate"),
    "patches": dict(patch_size=2),
    "lapped": dict(patch_size=4, lapped_patches=True),
    "first frame apart": dict(patch_size=(2, 2), separate_first_frame_encoding=True),
}
"""Ends of tokenizers."""


@pytest.mark.parametrize("scale", [2, 4])
@pytest.mark.parametrize("ends", ENDS)
@torch.no_grad()
def test_larger_patches_have_the_codes_of_smaller_frames(ends, scale):
    torch.manual_seed(0)
    common = dict(init_dim=8, layers=("residual", "compress_space"), codebook_size=64)
    small = VideoTokenizer(**common, **ENDS[ends], image_size=8).eval()
    large = enlarged(small, scale).eval()
    side = large.space_factor
    assert (side, large.config.image_size) == (scale * small.space_factor, (8 * scale, 8 * scale))
    video = random_video(5, (2 * side, 3 * side))
    frames = F.avg_pool3d(video, (1, scale, scale))
    torch.testing.assert_close(large.encode(video), small.encode(frames), atol=1e-5, rtol=0)
    quantized, _ = small.quantize(small.encode(frames))
    decoded, (bicubic, _) = large.decode(quantized), BicubicUpsample(scale)(small.decode(quantized))
    assert decoded.shape == bicubic.shape
    # Weights are random, so pixels of a patch have little to do with each other; the means are.
    error = F.avg_pool3d(decoded - bicubic, (1, scale, scale))
    assert error.square().mean() < 0.15 * bicubic.var()


def test_an_enlarged_patch_is_bicubic_where_it_is_smooth():
    """A ramp from -1 to 1 stays one, and a patch that is not lapped keeps its mean."""
    for size, scale in ((4, 2), (4, 4), (6, 2)):
        matrix = enlarged_patch(size, scale, lapped=True).float()
        assert matrix.shape == (size * scale, size)
        ramp = torch.linspace(-1, 1, 4 * size).expand(1, 1, 1, 4 * size, -1)
        small, large = LappedFilter(size), LappedFilter(size * scale)
        # The filter is orthogonal: its transpose takes a frame apart into patches.
        _, take_apart = torch.func.vjp(lambda x, s=small: s(x)[0], torch.zeros_like(ramp))
        patches = take_apart(ramp)[0]
        torch.testing.assert_close(small(patches)[0], ramp, atol=1e-5, rtol=0)
        both = rearrange(patches, "b c t (i p) (j q) -> b c t i p j q", p=size, q=size)
        both = einsum(matrix, matrix, both, "y p, x q, b c t i p j q -> b c t i y j x")
        drawn = large(rearrange(both, "b c t i y j x -> b c t (i y) (j x)"))[0]
        error = drawn - BicubicUpsample(scale)(ramp)[0]
        inner = error[..., size * scale : -size * scale, size * scale : -size * scale]
        # What a patch would have to draw in its neighbours' places is left out.
        assert inner.square().mean() < 0.001
    torch.testing.assert_close(
        enlarged_patch(2, 2, lapped=False).sum(1), torch.ones(4, dtype=torch.float64)
    )


@torch.no_grad()
def test_equal_layers_are_a_copy():
    one, other = video_tokenizer((True, True)), video_tokenizer((True, True), lfq_entropy_eps=0.1)
    inflate_into(other, one)
    clip = random_video(5)
    assert torch.equal(one(clip), other(clip))


@torch.no_grad()
def test_the_weights_are_its_own():
    image, video = image_tokenizer(), video_tokenizer((False, True))
    inflate_into(video, image)
    x = random_video(1)
    before = image(x)
    for parameter in video.parameters():
        parameter.zero_()
    assert torch.equal(image(x), before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(quantizer="fsq"), "differs in codebook_size"),
        (dict(init_dim=16), "differs in init_dim"),
        (dict(lfq_norm="layer"), "differs in lfq_norm"),
        (dict(norm="layer"), "differs in norm"),
        (dict(layers=("magvit2_residual", "compress_space")), r"compression in space \(2, here 4"),
        (dict(layers=("compress_space", "compress_space")), "no encoder.layers.1"),
        (dict(kernel_size=(1, 5, 5)), "cannot become .* differ only along time"),
        (dict(patch_size=2, layers=("magvit2_encoder_residual", "compress_space")), "no encoder"),
        (dict(separate_first_frame_encoding=True), "differs in separate_first_frame_encoding"),
    ],
)
def test_others_are_refused_and_nothing_is_changed(options, message):
    video = video_tokenizer((False, True))
    before = {name: value.clone() for name, value in video.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        inflate_into(video, image_tokenizer(**options))
    assert all(torch.equal(value, before[name]) for name, value in video.state_dict().items())


def test_weights_of_losses_may_differ():
    options = [f for f in fields(TokenizerConfig) if f.name.endswith("loss_weight")]
    assert len(options) == 4
    assert all(option.metadata == INFLATABLE for option in options)
    image = image_tokenizer("vq")
    video = video_tokenizer((False, True), "vq", vq_commitment_loss_weight=0.5)
    inflate_into(video, image)
    x = random_video(1)
    torch.testing.assert_close(video(x), image(x), atol=1e-5, rtol=0)


def test_a_first_frame_apart_cannot_be_inflated():
    image = image_tokenizer(separate_first_frame_encoding=True)
    video = video_tokenizer((False, True), separate_first_frame_encoding=True)
    with pytest.raises(ValueError, match="nothing to inflate"):
        inflate_into(video, image)


@torch.no_grad()
def test_it_is_what_the_published_network_makes_of_inflated_weights():
    """Against a second writing of network and rule, in their names."""
    flat = Shape(32, (1, 1, 2), (False, False), is_video=False)
    deep = Shape(32, (1, 1, 2), (False, True))
    images = made_state(tokenizer_shapes(flat), seed=3)
    inflated = {}
    for name, shape in tokenizer_shapes(deep).items():
        weight = images[name.replace(".conv.weight", ".weight").replace(".conv.bias", ".bias")]
        weight = torch.cat([weight] * (shape[0] // len(weight)))
        if len(shape) == 5:
            taps = torch.zeros(shape)
            taps[:, :, -1] = weight
            weight = taps if shape[2] > 1 else weight[:, :, None]
        inflated[name] = weight
    video = VideoTokenizer(
        **magvit2_options(32, deep.mults, deep.halve_time, 1), codebook_size=2**10, image_size=16
    ).eval()
    inflate_into(video, tokenizer_from_state(images))
    clip = random_video(5)
    latents = video.encode(clip)
    torch.testing.assert_close(latents, encode(inflated, deep, clip), atol=1e-4, rtol=0)
    quantized = video.quantize(latents).quantized
    theirs = decode(inflated, deep, quantized)
    torch.testing.assert_close(video.decode(quantized), theirs, atol=1e-4, rtol=0)


def test_statistics_of_images_are_not_those_of_video():
    image, video = image_tokenizer("continuous"), video_tokenizer((False, True), "continuous")
    image.quantizer.store_statistics(torch.zeros(4), torch.ones(4), 9)
    inflate_into(video, image)
    assert image.quantizer.has_statistics
    assert not video.quantizer.has_statistics
