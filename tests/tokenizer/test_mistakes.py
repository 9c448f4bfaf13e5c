"""Errors and warnings about wrong input."""

import numpy as np
import pytest
import torch
from PIL import Image

from magvit2_pytorch.media.frames import check_range
from magvit2_pytorch.training.generator_task import GeneratorTrainingConfig
from magvit2_pytorch.training.training_config import TrainingConfig
from tests.conftest import build, random_video
from tests.tokenizer_1d.narrow import narrow as narrow_1d
from tests.tokenizer_1d.narrow import random_clip


@pytest.mark.parametrize(
    ("video", "error", "words"),
    [
        (torch.zeros(1, 3, 5, 16, 16, dtype=torch.uint8), TypeError, "to_float"),
        (torch.zeros(3, 16, 16), ValueError, "a video is b c t h w, an image is b c h w"),
        (torch.zeros(1, 4, 5, 16, 16), ValueError, "4 channels"),
        (torch.zeros(1, 5, 3, 16, 16), ValueError, "5 channels"),
        (torch.zeros(1, 3, 0, 16, 16), ValueError, "no frames"),
        (torch.zeros(1, 3, 5, 15, 16), ValueError, "height 15 is not a multiple of 2"),
    ],
)
def test_what_is_no_video_is_said(video, error, words, without_type_checks):
    with pytest.raises(error, match=words):
        build("compress_space").encode(video)


@pytest.mark.parametrize("count", [0, -1])
def test_counts_below_one_do_not_slice(count):
    tokenizer, sequences = build("compress_space"), narrow_1d()
    codes = tokenizer.tokenize(random_video(5))
    tokens = sequences.tokenize(random_clip(8, 32, 32)[None])
    stream = sequences.decode_stream((32, 32))
    for decode in (
        lambda: tokenizer.decode_from_code_indices(codes, num_frames=count),
        lambda: tokenizer.decode(tokenizer.quantizer.decode_codes(codes), num_frames=count),
        lambda: tokenizer.decode_stream(num_frames=count),
        lambda: sequences.decode_from_code_indices(tokens, num_frames=count),
        lambda: sequences.decode_stream((32, 32), num_frames=count),
        lambda: stream.push(tokens, num_frames=count),
        lambda: TrainingConfig(num_valid_clips=count),
        lambda: GeneratorTrainingConfig(num_valid_clips=count),
    ):
        with pytest.raises(ValueError, match=f" is {count}: "):
            decode()


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.04, 0.99), (0, 0.6)])
def test_another_range_is_named(low, high):
    """The values of a video that was never brought to [-1, 1]."""
    tokenizer = build("compress_space")
    unit = torch.rand(2, 3, 5, 16, 16) * (high - low) + low
    with pytest.warns(UserWarning, match=r"look like \[0, 1\]: .* give 2 \* video - 1"):
        codes = tokenizer.tokenize(unit)
    assert codes.shape == (2, 5, 8, 8)
    with pytest.warns(UserWarning, match="look like"):
        tokenizer.encode(unit)
    stream = tokenizer.encode_stream()
    with pytest.warns(UserWarning, match="look like"):
        stream.push(unit)
    stream.push(unit)  # only the first chunk is checked
    tokenizer.train().encode(unit)  # nor is a training step
    with pytest.raises(ValueError, match=r"from .* look like bytes: .* give video / 127\.5 - 1"):
        tokenizer.tokenize(unit[:, :, 0] * 255)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_values_that_are_not_finite_are_named_at_every_door(value):
    """Frames, later chunks, latents and conditions."""

    def bad(*shape):
        x = torch.zeros(shape)
        x.view(-1)[7 % x.numel()] = float(value)
        return x

    tokenizer, continuous = build("compress_space"), build("residual", quantizer="continuous")
    continuous.quantizer.store_statistics(torch.zeros(4), torch.ones(4), 10)
    conditional, stream = build("cond_residual"), tokenizer.encode_stream()
    stream.push(random_video(1))
    frames, latents = bad(1, 3, 5, 16, 16), bad(1, 6, 2, 4, 4)
    doors = {
        "tokenize": lambda: tokenizer.tokenize(frames),
        "an image": lambda: tokenizer.encode(frames[:, :, 0]),
        "encode": lambda: continuous.encode(frames),
        "forward": lambda: tokenizer(frames),
        "a tile": lambda: tokenizer.encode(frames, tile_size=8),
        "the first chunk": lambda: tokenizer.encode_stream().push(frames),
        "a later chunk": lambda: stream.push(frames),
        "quantize": lambda: tokenizer.quantize(latents),
        "decode": lambda: tokenizer.decode(latents),
        "continuous": lambda: continuous.decode(bad(1, 4, 2, 4, 4)),
        "decode_stream": lambda: tokenizer.decode_stream().push(latents),
        "normalize": lambda: continuous.normalize_latents(bad(1, 4, 2, 4, 4)),
        "denormalize": lambda: continuous.denormalize_latents(bad(1, 4, 2, 4, 4)),
        "cond": lambda: conditional.encode(random_video(1), bad(1, 6)),
        "cond of codes": lambda: conditional.decode(torch.zeros(1, 6, 1, 2, 2), bad(1, 6)),
        "check_range": lambda: check_range(frames),
    }
    for door in doors.values():
        with pytest.raises(ValueError, match="not finite"):
            door()
    # Steps of training are counted instead, and a model that has diverged can be validated.
    assert not tokenizer.train()(frames).isfinite().all()


def test_weights_that_have_diverged_give_no_codes_but_a_reconstruction():
    tokenizer = build("compress_space")
    for parameter in tokenizer.parameters():
        parameter.data.fill_(float("nan"))
    assert tokenizer(random_video(1)).isnan().all()
    for door in (tokenizer.tokenize, tokenizer.encode_stream().push):
        with pytest.raises(ValueError, match="latents hold values that are not finite"):
            door(random_video(1))


def test_what_is_not_a_tensor_is_named(without_type_checks):
    tokenizer = build("compress_space")
    for wrong in (np.zeros((1, 3, 1, 16, 16), np.float32), [[0.0]], Image.new("RGB", (16, 16))):
        for door in (
            tokenizer.tokenize,
            tokenizer,
            tokenizer.encode_stream().push,
            tokenizer.quantize,
            tokenizer.decode,
            tokenizer.decode_from_code_indices,
            tokenizer.decode_stream().push,
        ):
            with pytest.raises(TypeError, match="give a tensor"):
                door(wrong)


@pytest.mark.parametrize("other", [(1, 1, 4, 8), (1, 1, 8, 4), (2, 1, 8, 8)])
def test_a_stream_decodes_codes_of_one_size(other):
    stream = build("compress_space").decode_stream()
    codes = torch.zeros(1, 1, 8, 8, dtype=torch.long)
    frames = stream.push(codes)
    with pytest.raises(ValueError, match=r"\(1, 8, 8\): give a stream codes of one size"):
        stream.push(torch.zeros(other, dtype=torch.long))
    assert stream.push(codes).shape == frames.shape  # nothing has changed


@pytest.mark.parametrize(("low", "high"), [(-1, 1), (-0.01, 1), (0.2, 1), (0, 0.3), (-3, 3)])
def test_bright_and_dark_videos_are_none_of_that(low, high):
    codes = build("compress_space").tokenize(torch.rand(2, 3, 5, 16, 16) * (high - low) + low)
    assert codes.shape == (2, 5, 8, 8)


def test_conditions_are_checked(without_type_checks):
    video = random_video(1)
    with pytest.raises(ValueError, match="give cond"):
        build("cond_residual").encode(video)
    with pytest.raises(ValueError, match="no layer of this tokenizer uses it"):
        build("residual").encode(video, torch.zeros(1, 6))
    for wrong in (torch.zeros(1, 5), torch.zeros(1, 1, 6), torch.zeros(6)):
        with pytest.raises(ValueError, match="dim_cond is 6: give b x 6"):
            build("cond_residual").encode(video, wrong)
    with pytest.raises(ValueError, match="give cond"):
        build("cond_residual").decode_from_code_indices(torch.zeros(1, 1, 2, 2, dtype=torch.long))


@pytest.mark.parametrize("shape", [(1, 5, 1, 2, 2), (1, 6, 0, 2, 2)])
def test_latents_that_do_not_fit_are_said(shape):
    with pytest.raises(ValueError, match="give b 6 t h w, one frame or more"):
        build("residual").decode(torch.zeros(shape))


@pytest.mark.parametrize(
    ("codes", "grid", "words"),
    [
        (torch.zeros(1, 10, dtype=torch.long), None, "do not fill a grid"),
        (torch.zeros(1, 12, dtype=torch.long), (2, 3, 3), "do not fill a grid of 2 x 3 x 3"),
        (torch.zeros(1, 2, 3, dtype=torch.long), None, "b t h w or b n"),
        (torch.full((1, 1, 8, 8), 64), None, "64"),
        (torch.full((1, 1, 8, 8), -1), None, "-1"),
    ],
)
def test_codes_that_do_not_fit_are_said(codes, grid, words):
    with pytest.raises(ValueError, match=words):
        build("compress_space").decode_from_code_indices(codes, grid=grid)
