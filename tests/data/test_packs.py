"""Packs of clips: deterministic, resumable, and not too long."""

import random

import pytest
import torch

from magvit2_pytorch.data.packs import PackedClips, PackSpec

SPEC = PackSpec(
    length=200, groups=3, patch=(4, 8, 8), smallest=(1, 8, 8), largest=(8, 32, 40),
    num_tokens=(2, 16), prefix_dropout=0.5,
)  # fmt: skip


def clips(number=20, size=(8, 32, 40)):
    """Clips that know their number: their first channel holds it."""
    return [torch.full((3, *size), float(n)) for n in range(number)]


def same(pack, other):
    for one, two in zip(pack, other, strict=True):
        assert torch.equal(one.clips, two.clips)
        assert one[1:] == two[1:]


def test_draws_stay_within_bounds():
    rng, seen = random.Random(0), []
    for _ in range(500):
        groups = SPEC.draw(rng)
        length = 0
        for (frames, height, width), count, prefix, number in groups:
            patches = -(-frames // 4) * (height // 8) * (width // 8)
            length += number * (patches + count)
            assert number >= 1
            assert min(2, patches) <= prefix <= count <= min(16, patches)
            assert (height, width) <= (32, 40)
            assert max(height, width) <= 2 * min(height, width)
            seen.append((frames, height, width, prefix < count))
        assert length <= 200
    assert {frames for frames, *_ in seen} == {1, 4, 8}
    assert {height for _, height, *_ in seen} == {8, 16, 24, 32}
    assert 0.2 < sum(cut for *_, cut in seen) / len(seen) < 0.5


def test_large_clips_are_as_likely_in_small_packs():
    small = PackSpec(**{**vars(SPEC), "length": 40})
    large = sum(
        size == SPEC.largest for _ in range(2000) for size, *_ in small.draw(random.Random(_))[:1]
    )
    wanted = sum(SPEC._draw_size(random.Random(number)) == SPEC.largest for number in range(2000))
    assert large == wanted > 20


def test_easy_packs_are_whole_clips_with_many_tokens():
    for seed in range(20):
        for size, count, prefix, _ in SPEC.draw(random.Random(seed), easy=True):
            assert size == SPEC.largest
            assert prefix == count >= 10


@pytest.mark.parametrize("num_workers", [0, 2])
def test_packs_continue_from_their_number(num_workers):
    packs = PackedClips(clips(), SPEC, seed=3)
    whole = packs.batches(0)
    first = [next(whole) for _ in range(6)]
    later = PackedClips(clips(), SPEC, seed=3).batches(4, num_workers)
    for pack in first[4:]:
        same(pack, next(later))
    assert not torch.equal(
        first[0][0].clips, next(PackedClips(clips(), SPEC, seed=4).batches(0))[0].clips
    )


def test_processes_share_the_clips():
    packs = [
        PackedClips(clips(200), SPEC, seed=3, rank=rank, world_size=2).batches(0)
        for rank in range(2)
    ]
    used = [{int(n) for group in next(p) for n in group.clips[:, 0, 0, 0, 0]} for p in packs]
    assert used[0]
    assert not used[0] & used[1]


def test_a_clip_that_is_too_small():
    packs = PackedClips(clips(size=(8, 16, 16)), SPEC, num_easy=1)
    with pytest.raises(
        ValueError, match="8 x 16 x 16 is smaller than the training size 8 x 32 x 40"
    ):
        packs[0]
