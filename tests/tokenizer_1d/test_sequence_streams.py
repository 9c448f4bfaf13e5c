"""Streams equal the whole, and forget what no block sees."""

import copy

import pytest
import torch

from tests.tokenizer_1d.narrow import KINDS, narrow, random_clip

BLOCKS = [kind for kind in KINDS if "blocks" in kind]


def parts(stream, video, lengths):
    codes = [stream.push(part) for part in video.split(lengths, dim=2)] + [stream.flush()]
    return [part for part in codes if part is not None]


@pytest.mark.parametrize("kind", BLOCKS)
def test_streams_equal_the_whole(kind):
    tokenizer, video = narrow(kind), random_clip(23, 16, 17)[None]
    whole = tokenizer.tokenize(video, 3)
    for lengths in ([23], [1] * 23, [3, 12, 8]):
        codes = torch.cat(parts(tokenizer.encode_stream(3), video, lengths), dim=1)
        assert torch.equal(codes, whole)
    stream = tokenizer.decode_stream((16, 17), num_frames=23)
    frames = torch.cat([stream.push(part) for part in whole.split(3, dim=1)], dim=2)
    wanted = tokenizer.decode(whole, (23, 16, 17))
    torch.testing.assert_close(frames, wanted, atol=1e-12, rtol=1e-12)
    assert stream.push(whole[:, :3]) is None


@pytest.mark.parametrize("kind", BLOCKS)
def test_later_frames_change_no_earlier_block(kind):
    tokenizer, video = narrow(kind), random_clip(24, 16, 16)[None]
    frames = tokenizer.config.block_frames
    codes = tokenizer.tokenize(video, 3)
    for number in range(24 // frames):
        start = tokenizer.tokenize(video[:, :, : (number + 1) * frames], 3)
        assert torch.equal(start, codes[:, : 3 * (number + 1)])
    changed = torch.cat((video[:, :, :-1], -video[:, :, -1:]), dim=2)
    assert not torch.equal(tokenizer.tokenize(changed, 3), codes)


@pytest.mark.parametrize("kind", BLOCKS)
def test_the_past_does_not_grow(kind):
    tokenizer = narrow(kind)
    stream, sizes = tokenizer.encode_stream(2), []
    for _ in range(6):
        stream.push(random_clip(tokenizer.config.block_frames, 16, 16)[None])
        past = stream.state.past
        sizes.append(0 if past is None else sum(x.untyped_storage().nbytes() for x in past[0]))
    assert sizes[-1] == sizes[-2] == sizes[2]


def test_without_blocks_every_part_is_a_clip_of_its_own():
    tokenizer, video = narrow(), random_clip(19, 16, 16)[None]
    codes = parts(tokenizer.encode_stream(4), video, [5, 14])
    clips = video.split(8, dim=2)
    for part, clip in zip(torch.cat(codes, dim=1).split(4, dim=1), clips, strict=True):
        assert torch.equal(part, tokenizer.tokenize(clip, 4))
    stream = tokenizer.decode_stream((16, 16), num_frames=19)
    for part, clip in zip(torch.cat(codes, dim=1).split(4, dim=1), clips, strict=True):
        wanted = tokenizer.decode(part, tuple(clip.shape[2:]))
        torch.testing.assert_close(stream.push(part), wanted, atol=1e-12, rtol=1e-12)


def test_copies_of_a_stream_go_on_apart():
    tokenizer, video = narrow("blocks"), random_clip(16, 16, 16)[None]
    whole = tokenizer.tokenize(video, 3).view(1, 4, 1, 3)
    stream = tokenizer.decode_stream((16, 16))
    stream.push(whole[:, :1])
    branch = copy.copy(stream)
    branch.push(whole[:, 3:])
    wanted = tokenizer.decode(whole.flatten(1), (16, 16, 16))
    torch.testing.assert_close(stream.push(whole[:, 1:]), wanted[:, :, 4:], atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("kind", ["anchored", "blocks-of-8"])
def test_several_parts_are_whole_and_cut_at_the_end(kind):
    tokenizer = narrow(kind)
    part = tokenizer.time_factor
    codes = tokenizer.tokenize(random_clip(part, 16, 16)[None], 3).view(1, 1, 1, 3)
    codes = codes.expand(1, 4, 1, 3)
    whole = tokenizer.decode_stream((16, 16)).push(codes)
    for sizes in ([1, 3], [1, 1, 1, 1]):
        stream = tokenizer.decode_stream((16, 16), num_frames=2 * part + 1)
        frames = [stream.push(some) for some in codes.split(sizes, dim=1)]
        frames = torch.cat([some for some in frames if some is not None], dim=2)
        assert torch.equal(frames, whole[:, :, : 2 * part + 1])
    assert (stream.num_frames, stream.push(codes)) == (2 * part + 1, None)
    # A part by itself is that of a video that ends in it.
    stream = tokenizer.decode_stream((16, 16), num_frames=3)
    assert not torch.equal(stream.push(codes[:, 0, 0]), whole[:, :, :3])


@pytest.mark.parametrize("kind", ["anchored", "blocks"])
def test_a_stream_decodes_the_first_tokens_of_parts(kind):
    tokenizer = narrow(kind)
    codes = tokenizer.tokenize(random_clip(8, 16, 16)[None], 6).view(1, -1, 1, 6)
    few = tokenizer.decode_stream((16, 16), num_tokens=2).push(codes)
    assert torch.equal(few, tokenizer.decode_stream((16, 16)).push(codes[..., :2]))
    assert not torch.equal(few, tokenizer.decode_stream((16, 16)).push(codes))
    # A tenth of the patches of a shorter video are fewer.
    for num_frames in (None, 4):
        asked = tokenizer.decode_stream((16, 16), num_frames, num_tokens="share:0.5").max_tokens
        assert asked == (4 if kind == "anchored" and num_frames is None else 2)


def test_a_stream_ends_once():
    stream = narrow().encode_stream()
    stream.push(random_clip(3, 8, 8)[None])
    assert stream.flush().shape[1] == 1
    with pytest.raises(ValueError, match="ended"):
        stream.flush()
    with pytest.raises(ValueError, match="ended"):
        stream.push(random_clip(3, 8, 8)[None])
