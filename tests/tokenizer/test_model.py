"""The tokenizer as a whole: codes and back, any size and length, causal, strict."""

import copy
import pickle
from itertools import cycle
from typing import get_args

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from magvit2_pytorch.functional import padded_num_frames
from magvit2_pytorch.layers.conv import PadMode
from magvit2_pytorch.tokenizer.layer_spec import LAYERS
from magvit2_pytorch.tokenizer.model import VideoTokenizer
from magvit2_pytorch.tokenizer.presets import preset
from magvit2_pytorch.training.clip_task import Objective
from magvit2_pytorch.training.tokenizer_task import Autoencoder
from magvit2_pytorch.training.training_config import TrainingConfig
from tests.conftest import (
    DISCRETE,
    EVERY_PRESET,
    QUANTIZERS,
    build,
    cond_of,
    narrow,
    random_video,
)

# The layers of magvit2-pytorch's README, at a size for tests.
UPSTREAM = (
    "residual",
    "compress_space",
    ("consecutive_residual", 2),
    "compress_space",
    ("consecutive_residual", 2),
    "linear_attend_space",
    "compress_space",
    ("consecutive_residual", 2),
    "attend_space",
    "compress_time",
    ("consecutive_residual", 2),
    "compress_time",
    ("consecutive_residual", 2),
    "attend_time",
)
LAYER_TUPLES = {
    "upstream": (UPSTREAM, dict(codebook_size=1024)),
    "first frame apart": (
        ("compress_space", "residual", "compress_time", "attend_time"),
        dict(separate_first_frame_encoding=True),
    ),
    "conditional": (("cond_residual", "compress_time", "cond_attend_space", "compress_space"), {}),
}


def models():
    """Every preset that has codes, and a few tuples of layers, by name."""
    for name, marks in ((*param.values, param.marks) for param in EVERY_PRESET):
        if "continuous_dim" in preset(name):
            continue  # the network is another preset's
        yield pytest.param(lambda n=name: narrow(n), id=name, marks=marks)
    for name, (layers, options) in LAYER_TUPLES.items():
        yield pytest.param(lambda x=layers, y=options: build(*x, max_dim=16, **y), id=name)


every_model = pytest.mark.parametrize("make", list(models()))


def square(tokenizer):
    """The smallest side worth testing."""
    return tokenizer.space_factor * 2


def video_for(tokenizer, num_frames, **options):
    side = square(tokenizer)
    return random_video(num_frames, (side, side), **options)


# Codes and back


@pytest.mark.parametrize(
    ("quantizer", "channels"), list(zip(DISCRETE, cycle([1, 3, 4]), strict=False))
)
def test_codes_are_int64_with_a_codebook_axis_only_where_there_are_several(quantizer, channels):
    tokenizer = build("compress_space", "compress_time", quantizer=quantizer, channels=channels)
    video = random_video(7, (16, 24), batch=2, channels=channels)
    codes = tokenizer.tokenize(video)
    books = tokenizer.num_codebooks
    assert codes.shape == (2, 4, 8, 12, books)[: 4 + (books > 1)]
    assert codes.dtype == torch.int64
    assert 0 <= codes.min() <= codes.max() < tokenizer.codebook_size
    assert tokenizer.latent_grid(7, 16, 24) == (4, 8, 12)
    latents = tokenizer.encode(video)
    assert latents.shape == (2, tokenizer.quantizer.latent_dim, 4, 8, 12)


@pytest.mark.parametrize("quantizer", DISCRETE)
def test_decoding_the_codes_is_the_reconstruction(quantizer):
    tokenizer = build("compress_space", "residual", "compress_time", quantizer=quantizer)
    video = random_video(7, (16, 24), batch=2)
    codes, recon = tokenizer(video, return_codes=True, return_recon=True)
    assert torch.equal(codes, tokenizer.tokenize(video))
    assert torch.equal(codes, tokenizer(video, return_codes=True))
    close = dict(atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(tokenizer(video), recon)
    torch.testing.assert_close(tokenizer(video, return_recon=True), recon)
    torch.testing.assert_close(tokenizer.decode_from_code_indices(codes), recon, **close)
    flat = codes.flatten(1, 3)
    again = tokenizer.decode_from_code_indices(flat, grid=tuple(codes.shape[1:4]))
    torch.testing.assert_close(again, recon, **close)


@torch.no_grad()
@every_model
def test_flattened_codes_lie_on_frames_of_the_training_size(make):
    tokenizer = make()
    size = tokenizer.config.image_size
    video = random_video(1 + tokenizer.time_factor, (size, size))
    cond = cond_of(tokenizer)
    codes = tokenizer.tokenize(video, cond)
    recon = tokenizer.decode_from_code_indices(codes.flatten(1), cond)
    torch.testing.assert_close(recon, tokenizer(video, cond), atol=1e-4, rtol=1e-4)


@torch.no_grad()
@every_model
def test_a_video_is_coded_alike_alone_and_among_others(make):
    tokenizer = make().double()
    video, cond = video_for(tokenizer, 3, batch=3, dtype=torch.float64), cond_of(tokenizer, 3)
    together = tokenizer(video, cond)
    for one in range(3):
        alone = tokenizer(video[one : one + 1], None if cond is None else cond[one : one + 1])
        torch.testing.assert_close(together[one : one + 1], alone, atol=1e-10, rtol=1e-10)


def test_type_and_memory_order_of_a_video_do_not_matter():
    tokenizer = build("compress_space", "compress_time", "attend_space")
    video = random_video(5)
    codes, recon = tokenizer(video, return_codes=True, return_recon=True)
    channels_last = video.permute(0, 2, 3, 4, 1).contiguous().permute(0, 4, 1, 2, 3)
    for other in (channels_last, video.double(), video.contiguous().requires_grad_()):
        assert torch.equal(tokenizer.tokenize(other), codes)
        torch.testing.assert_close(tokenizer(other), recon, check_dtype=False)


@pytest.mark.parametrize("quantizer", [q for q in QUANTIZERS if q not in DISCRETE])
def test_continuous_latents_pass_through(quantizer):
    tokenizer = build("compress_space", "compress_time", quantizer=quantizer)
    video = random_video(5)
    quantized, codes = tokenizer.quantize(tokenizer.encode(video))
    assert codes is None
    assert tokenizer.codebook_size is None
    assert tokenizer.bits_per_pixel is None
    torch.testing.assert_close(tokenizer.decode(quantized), tokenizer(video))
    with pytest.raises(ValueError, match="use encode and decode"):
        tokenizer.tokenize(video)


# Any size, any length


@torch.no_grad()
@every_model
def test_any_number_of_frames_is_padded_by_the_last_and_cropped(make):
    tokenizer = make()
    cond = cond_of(tokenizer)
    for num_frames in (1, 3, 6):
        video = video_for(tokenizer, num_frames)
        assert tokenizer(video, cond).shape == video.shape
        missing = padded_num_frames(num_frames, tokenizer.time_factor) - num_frames
        padded = torch.cat((video, video[:, :, -1:].expand(-1, -1, missing, -1, -1)), dim=2)
        latents = tokenizer.encode(video, cond)
        torch.testing.assert_close(latents, tokenizer.encode(padded, cond))
        assert latents.shape[2:] == tokenizer.latent_grid(num_frames, *video.shape[-2:])


@torch.no_grad()
@every_model
def test_height_and_width_need_only_divide_by_the_stride(make):
    tokenizer = make()
    stride, cond = tokenizer.space_factor, cond_of(tokenizer)
    for height, width in ((stride, 3 * stride), (3 * stride, stride), (stride, stride)):
        video = random_video(2, (height, width))
        assert tokenizer(video, cond).shape == video.shape
    if stride > 1:
        with pytest.raises(ValueError, match=f"width {stride + 1} .* {stride} or {2 * stride}"):
            tokenizer.encode(random_video(1, (stride, stride + 1)), cond)


@torch.no_grad()
@every_model
def test_an_image_is_the_first_frame_of_a_video(make):
    tokenizer = make()
    video, cond = video_for(tokenizer, 1 + tokenizer.time_factor), cond_of(tokenizer)
    image = video[:, :, 0]
    recon = tokenizer(image, cond)
    assert recon.shape == image.shape
    close = dict(atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(recon, tokenizer(video[:, :, :1], cond)[:, :, 0], **close)
    torch.testing.assert_close(recon, tokenizer(video, cond)[:, :, 0], **close)
    assert torch.equal(tokenizer.tokenize(image, cond), tokenizer.tokenize(video[:, :, :1], cond))


# Causality


@torch.no_grad()
@every_model
def test_latents_before_a_frame_do_not_change_with_it(make):
    tokenizer = make().double()
    factor = tokenizer.time_factor
    num_frames = 1 + 2 * factor
    video = video_for(tokenizer, num_frames, dtype=torch.float64)
    # A row for every frame, negated from there on.
    same = video.expand(num_frames, -1, -1, -1, -1)
    changed = same.clone()
    for frame in range(num_frames):
        changed[frame, :, frame:].neg_()
    cond = cond_of(tokenizer, num_frames)
    before, after = (tokenizer.encode(rows, cond) for rows in (same, changed))
    for frame in range(num_frames):
        first_touched = -(-frame // factor)
        assert torch.equal(after[frame, :, :first_touched], before[frame, :, :first_touched])


@every_model
def test_every_frame_reaches_its_own_latent(make):
    """In magvit2-pytorch the last three of 17 frames reach no code, an image's only one neither."""
    tokenizer = make().double()
    factor = tokenizer.time_factor
    num_frames = 1 + 2 * factor
    video = video_for(tokenizer, num_frames, dtype=torch.float64)
    # A row for every frame, which looks at the latent of that frame alone.
    rows = video.repeat(num_frames, 1, 1, 1, 1).requires_grad_()
    latents = tokenizer.encode(rows, cond_of(tokenizer, num_frames))
    own = [latents[frame, :, -(-frame // factor)] for frame in range(num_frames)]
    (gradient,) = torch.autograd.grad(torch.stack(own).square().sum(), rows)
    for frame in range(num_frames):
        assert gradient[frame, :, frame].abs().sum() > 0, frame


@every_model
def test_the_last_frame_reaches_the_last_latent_of_every_length(make):
    """Of an image, and of every remainder of the time factor."""
    tokenizer = make().double()
    cond = cond_of(tokenizer)
    for num_frames in (1, 2, 3, 4, 5):
        video = video_for(tokenizer, num_frames, dtype=torch.float64)
        last = video[:, :, -1:].clone().requires_grad_()
        latents = tokenizer.encode(torch.cat((video[:, :, :-1], last), dim=2), cond)
        (gradient,) = torch.autograd.grad(latents[:, :, -1].square().sum(), last)
        assert gradient.abs().sum() > 0, num_frames


@torch.no_grad()
@every_model
def test_codes_depend_on_the_last_frame_and_on_an_image(make):
    tokenizer = make()
    cond = cond_of(tokenizer)
    for num_frames in (1, 2, 1 + 2 * tokenizer.time_factor):
        video = video_for(tokenizer, num_frames)
        changed = torch.cat((video[:, :, :-1], video_for(tokenizer, 1)), dim=2)
        latents = torch.cat([tokenizer.encode(v, cond)[:, :, -1:] for v in (video, changed)])
        # Latents of an untrained network lie far from 0: look where signs would differ.
        ours, theirs = tokenizer.quantize(100 * (latents - latents.mean(dim=0))).codes
        assert (ours != theirs).any()


@torch.no_grad()
@every_model
def test_chunks_of_video_and_of_latents_equal_the_whole(make):
    tokenizer = make().double()
    factor, cond = tokenizer.time_factor, cond_of(tokenizer)
    video = video_for(tokenizer, 1 + 5 * factor, dtype=torch.float64)
    latents, recon = [], []
    encoder_past = decoder_past = None
    for number, chunk in enumerate(video.split([1, 2 * factor, factor, 2 * factor], dim=2)):
        found, encoder_past = tokenizer.encode_chunk(chunk, encoder_past, cond)
        last = number == 3 and tokenizer.look_ahead > 0
        frames, decoder_past = tokenizer.decode_chunk(found, decoder_past, cond, last=last)
        latents.append(found)
        recon.append(frames)
    whole, close = tokenizer.encode(video, cond), dict(atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(torch.cat(latents, dim=2), whole, **close)
    torch.testing.assert_close(torch.cat(recon, dim=2), tokenizer.decode(whole, cond), **close)
    if factor > 1:
        with pytest.raises(ValueError, match="does not fit"):
            tokenizer.encode_chunk(video[:, :, : factor + 1], encoder_past, cond)


@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(
    layers=st.lists(st.sampled_from(sorted(LAYERS)), min_size=1, max_size=6).filter(
        # Two steps at most, and no reading of latents that a layer has delayed.
        lambda names: (
            sum("compress" in name for name in names) <= 2
            and not (
                any(LAYERS[name].reads_latents for name in names)
                and "vidtok_compress_time_linear" in names
            )
        )
    ),
    patch_size=st.sampled_from([1, 2, (2, 1), (2, 2)]),
    pad_mode=st.sampled_from(get_args(PadMode)),
    apart=st.booleans(),
)
def test_layers_go_together_in_any_order(layers, patch_size, pad_mode, apart):
    options = dict(patch_size=patch_size, pad_mode=pad_mode, separate_first_frame_encoding=apart)
    tokenizer = build(*layers, init_dim=4, max_dim=8, **options).double()
    factor, cond = tokenizer.time_factor, cond_of(tokenizer)
    video = random_video(1 + 2 * factor, (16, 32), dtype=torch.float64)
    latents, recon = tokenizer.encode(video, cond), tokenizer(video, cond)
    assert latents.shape[2:] == tokenizer.latent_grid(*video.shape[2:])
    assert recon.shape == video.shape

    changed = video.clone()
    changed[:, :, -1] = -changed[:, :, -1]
    after = tokenizer.encode(changed, cond)
    assert torch.equal(latents[:, :, :-1], after[:, :, :-1])
    assert not torch.equal(latents[:, :, -1], after[:, :, -1])

    first, past = tokenizer.encode_chunk(video[:, :, : 1 + factor], None, cond)
    rest, _ = tokenizer.encode_chunk(video[:, :, 1 + factor :], past, cond)
    close = dict(atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(torch.cat((first, rest), dim=2), latents, **close)
    quantized = tokenizer.quantize(latents).quantized
    first, past = tokenizer.decode_chunk(quantized[:, :, :1], None, cond)
    rest, _ = tokenizer.decode_chunk(quantized[:, :, 1:], past, cond, last=True)
    torch.testing.assert_close(torch.cat((first, rest), dim=2), recon, **close)


# Training, precision, copies


@every_model
def test_every_parameter_gets_a_gradient(make):
    tokenizer = make().train()
    # Blocks that start as the identity pass no gradient into themselves yet.
    with torch.no_grad():
        for parameter in tokenizer.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    video = video_for(tokenizer, 1 + 2 * tokenizer.time_factor, batch=2)
    out = Autoencoder(tokenizer)(video, cond_of(tokenizer, 2))
    Objective(tokenizer.quantizer, TrainingConfig())(video, out, step=0).total.backward()
    without = [n for n, p in tokenizer.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


@torch.no_grad()
@every_model
def test_bf16_is_finite_and_close(make):
    tokenizer = make()
    video, cond = video_for(tokenizer, 1 + tokenizer.time_factor), cond_of(tokenizer)
    exact = tokenizer.encode(video, cond)
    with torch.autocast("cpu", torch.bfloat16):
        latents = tokenizer.encode(video, cond)
        recon = tokenizer.decode(tokenizer.quantize(latents).quantized, cond)
    assert recon.isfinite().all()
    # Group norms over the few cells of so small a picture make more of rounding.
    limit = 0.1 if tokenizer.config.norm == "group" else 0.05
    assert (latents.float() - exact).norm() / exact.norm() < limit


@every_model
def test_it_is_built_on_the_meta_device(make):
    filled = make()
    with torch.device("meta"):
        tokenizer = VideoTokenizer.from_config(filled.config).eval()
    assert {p.device.type for p in tokenizer.parameters()} == {"meta"}
    tokenizer = tokenizer.to_empty(device="cpu")
    tokenizer.load_state_dict(filled.state_dict())
    video, cond = video_for(filled, 2), cond_of(filled)
    assert torch.equal(tokenizer.tokenize(video, cond), filled.tokenize(video, cond))


@every_model
def test_copies_are_equal_and_apart(make):
    tokenizer = make()
    video, cond = video_for(tokenizer, 2), cond_of(tokenizer)
    codes = tokenizer.tokenize(video, cond)
    for other in (copy.deepcopy(tokenizer), pickle.loads(pickle.dumps(tokenizer))):
        assert torch.equal(other.tokenize(video, cond), codes)
        with torch.no_grad():
            next(other.parameters()).zero_()
        assert next(tokenizer.parameters()).any()


@every_model
def test_all_state_is_parameters_of_the_parts(make):
    """What a checkpoint holds is weights, and nothing that a device or a shape could spoil."""
    tokenizer = make()
    names = {name for name, _ in tokenizer.named_parameters()}
    assert set(tokenizer.state_dict()) == names
    assert list(tokenizer.buffers()) == []
    parts = {name.split(".")[0] for name in names}
    assert {"encoder", "decoder"} <= parts <= {"encoder", "decoder", "quantizer", "embed_cond"}
    assert ("embed_cond" in parts) == (tokenizer.config.dim_cond is not None)
