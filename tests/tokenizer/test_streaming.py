"""Streams: any cut of the video gives what the whole gives."""

import copy
import pickle

import pytest
import torch

from magvit2_pytorch.tokenizer.layer_spec import LAYERS
from tests.conftest import EVERY_PRESET, QUANTIZERS, build, cond_of, narrow, random_video

LAYERS_TO_TRY = [*sorted(LAYERS), ("attend_time", {"window": 2}), ("cond_attend_time", 2)]
MIXED = [3, 1, 5, 2, 3]
CUTS = [[1] * 14, [14], MIXED, [1, 8, 5], [2, 12], [13, 1]]
NUM_FRAMES = 14
"""One more than 1 + 3 * 4: with a time factor of 4 a frame is left for the end."""


def streamed(tokenizer, video, cuts, cond=None, **options):
    """Codes or latents, and frames, of a video that came in pieces."""
    encoder = tokenizer.encode_stream(cond, **options)
    decoder = tokenizer.decode_stream(cond, num_frames=video.shape[2], **options)
    said, seen = [], []
    for piece in (*video.split(cuts, dim=2), None):
        new = encoder.flush_quantized() if piece is None else encoder.push_quantized(piece)
        if new is not None:
            said.append(new.quantized if new.codes is None else new.codes)
            frames = decoder.push(new.quantized)
            if frames is not None:
                seen.append(frames)
    rest = decoder.flush()
    assert rest is None or tokenizer.look_ahead
    seen += [] if rest is None else [rest]
    assert encoder.num_frames == decoder.num_frames == video.shape[2]
    axis = 2 if said[0].is_floating_point() else 1
    return torch.cat(said, dim=axis), torch.cat(seen, dim=2)


def whole(tokenizer, video, cond):
    """The same at once, by the ordinary methods."""
    quantized, codes = tokenizer.quantize(tokenizer.encode(video, cond))
    return quantized if codes is None else codes, tokenizer(video, cond)


def assert_equal_to_whole(tokenizer, *every_cuts, batch=1):
    tokenizer = tokenizer.double()
    size = (tokenizer.space_factor * 2, tokenizer.space_factor * 3)
    video = random_video(NUM_FRAMES, size, batch, dtype=torch.float64)
    cond = cond_of(tokenizer, batch)
    with torch.no_grad():
        said, seen = whole(tokenizer, video, cond)
    for cuts in every_cuts:
        their_said, their_seen = streamed(tokenizer, video, cuts, cond)
        torch.testing.assert_close(their_said, said, atol=1e-10, rtol=1e-10)
        torch.testing.assert_close(their_seen, seen, atol=1e-10, rtol=1e-10)


def test_any_cut_gives_what_the_whole_gives():
    tokenizer = build("compress_space", "residual", "compress_time", "attend_time", "compress_time")
    assert_equal_to_whole(tokenizer, *CUTS)


IN_TIME = ("attend_time", "compress_time", "gateloop_time", "magvit2", "vidtok_compress_time")
"""Beginnings of layers with a past or a look-ahead of their own kind."""
STREAMED = [
    pytest.param(layer, marks=[pytest.mark.slow] * (not str(layer).startswith(IN_TIME)))
    for layer in LAYERS_TO_TRY
]
"""The others differ within frames only; `test_layer_laws` has chunks of all."""


@pytest.mark.parametrize("layer", STREAMED, ids=str)
def test_every_layer_streams(layer):
    """Runs of one latent and of several, and a frame left for the end."""
    tokenizer = build("compress_space", layer, "compress_time", layer, "compress_time")
    assert_equal_to_whole(tokenizer, MIXED)


@pytest.mark.parametrize("name", EVERY_PRESET)
def test_every_preset_streams(name):
    assert_equal_to_whole(narrow(name), MIXED)


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_every_quantizer_streams(quantizer):
    tokenizer = build("compress_time", "residual", "compress_time", quantizer=quantizer)
    assert_equal_to_whole(tokenizer, MIXED, batch=2)


@pytest.mark.parametrize("options", [dict(patch_size=(4, 2)), dict(pad_mode="replicate")], ids=str)
@pytest.mark.parametrize("apart", [True, False])
def test_blocks_of_frames_stream_too(options, apart):
    tokenizer = build("residual", separate_first_frame_encoding=apart, **options)
    assert_equal_to_whole(tokenizer, [1, 2, 4, 7])


def test_codes_alone_carry_the_video():
    """In float32, by `push` and `flush` only."""
    tokenizer = build("compress_space", "residual", "compress_time", "attend_time", "compress_time")
    video = random_video(NUM_FRAMES)
    whole_codes, recon = tokenizer(video, return_codes=True, return_recon=True)
    for cuts in CUTS:
        encoder, decoder = tokenizer.encode_stream(), tokenizer.decode_stream(num_frames=NUM_FRAMES)
        codes = [encoder.push(piece) for piece in video.split(cuts, dim=2)] + [encoder.flush()]
        codes = [piece for piece in codes if piece is not None]
        assert torch.equal(torch.cat(codes, dim=1), whole_codes)
        frames = [decoder.push(piece) for piece in codes]
        torch.testing.assert_close(torch.cat(frames, dim=2), recon, atol=1e-5, rtol=0)


def test_codes_come_as_soon_as_they_are_known():
    tokenizer = build("compress_time", "compress_time")
    stream = tokenizer.encode_stream()
    frames = random_video(6)
    sizes = [stream.push(frames[:, :, [i]]) for i in range(6)]
    assert [codes is None for codes in sizes] == [False, True, True, True, False, True]
    assert stream.waiting.shape[2] == 1
    assert stream.flush().shape[1] == 1
    assert stream.num_frames == 6


def test_an_image_is_a_frame():
    tokenizer = build("compress_time")
    image = random_video(1)[:, :, 0]
    assert torch.equal(tokenizer.encode_stream().push(image), tokenizer.tokenize(image))


def test_streams_do_not_know_of_each_other():
    tokenizer = build("compress_time", "attend_time", "gateloop_time").double()
    videos = [random_video(9, dtype=torch.float64) for _ in range(2)]
    streams = [tokenizer.encode_stream() for _ in videos]
    said = [[], []]
    for i in range(0, 9, 3):
        for place, (stream, video) in enumerate(zip(streams, videos, strict=True)):
            new = stream.push(video[:, :, i : i + 3])
            said[place] += [] if new is None else [new]
    for video, codes in zip(videos, said, strict=True):
        assert torch.equal(torch.cat(codes, dim=1), tokenizer.tokenize(video))


@pytest.mark.parametrize(
    "again", [copy.copy, copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))]
)
def test_a_copy_goes_on_by_itself(again):
    tokenizer = build("compress_time", "attend_time", "residual").double()
    one, other = (random_video(9, dtype=torch.float64) for _ in range(2))
    other[:, :, :4] = one[:, :, :4]
    first = tokenizer.encode_stream()
    first.push(one[:, :, :4])
    second = again(first)
    ours, theirs = first.push(one[:, :, 4:]), second.push(other[:, :, 4:])
    assert torch.equal(ours, tokenizer.tokenize(one)[:, -ours.shape[1] :])
    assert torch.equal(theirs, tokenizer.tokenize(other)[:, -theirs.shape[1] :])


def test_a_stream_holds_no_more_than_its_past():
    """Neither graph nor the activations that the past is a part of."""
    tokenizer = build("compress_space", "residual", "compress_time", "residual")
    sizes = []
    for num_frames in (10, 66):
        stream = tokenizer.encode_stream()
        stream.push(random_video(num_frames, (32, 32)))
        leaves = [*torch.utils._pytree.tree_leaves(stream.past), stream.waiting]
        assert not any(leaf.requires_grad for leaf in leaves)
        sizes.append(sum(leaf.untyped_storage().nbytes() for leaf in leaves))
    assert sizes[0] == sizes[1] > 0


def test_the_mode_of_the_tokenizer_stays(monkeypatch):
    tokenizer = build("attend_time", attn_dropout=0.5).train()
    stream, video = tokenizer.encode_stream(), random_video(5)
    codes = stream.push(video)
    assert tokenizer.training
    assert torch.equal(codes, tokenizer.eval().tokenize(video))


def test_bf16_is_close_however_it_is_cut():
    tokenizer = build(
        "compress_space", "residual", "compress_time", "residual", quantizer="continuous"
    )
    video = random_video(9, (32, 32))
    one, frames = streamed(tokenizer, video, [9], precision="bf16")
    other, other_frames = streamed(tokenizer, video, [1] * 9, precision="bf16")
    assert (one - other).norm() / one.norm() < 0.02
    assert (frames - other_frames).norm() / frames.norm() < 0.02


def test_mistakes(without_type_checks):
    tokenizer = build("compress_time")
    stream = tokenizer.encode_stream()
    stream.push(random_video(2))
    with pytest.raises(ValueError, match=r"batch, height and width \(1, 16, 32\) after"):
        stream.push(random_video(1, (16, 32)))
    with pytest.raises(ValueError, match="video has no frames"):
        stream.push(random_video(0))
    with pytest.raises(TypeError, match="floating point"):
        stream.push(torch.zeros(1, 3, 1, 16, 16, dtype=torch.uint8))
    assert stream.num_frames == 2
    stream.flush()
    with pytest.raises(ValueError, match="has ended: start another"):
        stream.push(random_video(1))
    with pytest.raises(ValueError, match="ended already"):
        stream.flush()
    decoder = tokenizer.decode_stream()
    with pytest.raises(ValueError, match="no codes"):
        decoder.push(torch.zeros(1, 0, 16, 16, dtype=torch.int64))
    decoder.flush()
    with pytest.raises(ValueError, match="has ended: start another"):
        decoder.push(torch.zeros(1, 1, 16, 16, dtype=torch.int64))
    with pytest.raises(ValueError, match="ended already"):
        decoder.flush()


def test_a_video_of_no_frames_has_no_codes():
    assert build("compress_time").encode_stream().flush() is None
