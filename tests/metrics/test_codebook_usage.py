"""Codebook use against plain counting, closed forms and two real processes."""

import math
import sys
from collections import Counter

import pytest
import torch
import torch.distributed as dist

from magvit2_pytorch.metrics.codebook import CodebookUsage
from tests.processes import Started

SPARSE = 2**36
"""A size whose counters nobody could hold."""


def usage_of(codes, codebook_size, num_codebooks=1):
    """The statistics of one batch of codes."""
    usage = CodebookUsage(codebook_size, num_codebooks)
    usage.update(codes)
    return usage.compute()


def counted(codes, codebook_size, num_codebooks=1):
    """Usage and perplexity by python's own counting, a mean over codebooks."""
    books = codes.reshape(-1, num_codebooks).T.tolist()
    usages, perplexities = [], []
    for book in books:
        shares = [count / len(book) for count in Counter(book).values()]
        usages.append(len(shares) / codebook_size)
        perplexities.append(math.exp(-sum(share * math.log(share) for share in shares)))
    return sum(usages) / num_codebooks, sum(perplexities) / num_codebooks


@pytest.mark.parametrize("size", [12, 64, 2**18, 2**21, SPARSE])
@pytest.mark.parametrize("books", [1, 3])
def test_usage_and_perplexity_are_those_of_counting(size, books):
    # Squared, so that codes are used unevenly.
    codes = (torch.rand(2, 3, 4, 4, books).double() ** 2 * min(size, 40)).long()
    codes = codes + (size - min(size, 40))
    codes = codes[..., 0] if books == 1 else codes
    use = usage_of(codes, size, books)
    usage, perplexity = counted(codes, size, books)
    assert use.usage == pytest.approx(usage, rel=1e-6)
    assert use.perplexity == pytest.approx(perplexity, rel=1e-6)
    assert use.usage_of_possible == pytest.approx(usage * size / min(size, 96), rel=1e-6)


@pytest.mark.parametrize("size", [64, SPARSE])
def test_codes_used_alike_have_their_number_for_a_perplexity(size):
    use = usage_of(torch.arange(32).repeat(3), size)
    assert use.perplexity == pytest.approx(32)
    assert use.usage == pytest.approx(32 / size)
    assert usage_of(torch.full((50,), 7), size).perplexity == pytest.approx(1)


def test_few_codes_are_measured_by_what_they_could_fill():
    use = usage_of(torch.arange(100), 2**18)
    assert use.usage == pytest.approx(100 / 2**18)
    assert use.usage_of_possible == 1


@pytest.mark.parametrize("num_bits", [5, 21, 36])
def test_bits_are_counted_most_significant_first(num_bits):
    bits = torch.rand(500, num_bits) < torch.linspace(0.1, 0.9, num_bits)
    bits[:, 1], bits[:, 3] = True, False
    codes = (bits.long() << torch.arange(num_bits - 1, -1, -1)).sum(dim=1)
    use = usage_of(codes, 2**num_bits)
    torch.testing.assert_close(use.bit_means, bits.float().mean(dim=0)[None])
    assert use.dead_bits == 2


def test_a_bit_that_changed_once_in_very_many_is_not_dead():
    usage = CodebookUsage(2)
    usage.update(torch.tensor([0, 1]))
    usage._dense[0, 0] += 2**40
    usage.num_codes += 2**40
    assert usage.compute().dead_bits == 0


def test_bits_are_of_no_interest_where_the_size_is_no_power_of_two():
    use = usage_of(torch.arange(10), 1000)
    assert use.bit_means is None
    assert use.dead_bits is None


@pytest.mark.parametrize("size", [512, SPARSE])
@pytest.mark.parametrize("books", [1, 2])
def test_many_updates_and_merges_equal_one(size, books):
    parts = [torch.randint(0, 300, (n, 2, 2, 2, books)) for n in (1, 2, 3, 4)]
    whole = usage_of(torch.cat(parts), size, books)
    one, other = CodebookUsage(size, books), CodebookUsage(size, books)
    one.update(parts[0])
    one.update(parts[1])
    other.update(parts[2])
    other.update(parts[3])
    one.merge(other)
    one.merge(CodebookUsage(size, books))
    empty = CodebookUsage(size, books)
    empty.merge(one)
    for counter in (one, empty, one.gathered()):
        assert counter.num_codes == 80
        same(counter.compute(), whole)
    # What was merged is left as it was.
    same(other.compute(), usage_of(torch.cat(parts[2:]), size, books))


def same(use, expected):
    torch.testing.assert_close(use.bit_means, expected.bit_means, atol=0, rtol=0)
    assert use._replace(bit_means=None) == expected._replace(bit_means=None)


def test_reset_forgets():
    usage = CodebookUsage(8)
    usage.update(torch.arange(8))
    usage.reset()
    usage.update(torch.zeros(3, dtype=torch.long))
    assert usage.compute().usage == pytest.approx(1 / 8)


def test_stored_codes_of_smaller_types_count_too():
    codes = torch.arange(100)
    for dtype in (torch.uint8, torch.int16, torch.int32, torch.uint16):
        same(usage_of(codes.to(dtype), 128), usage_of(codes, 128))


def test_counting_a_large_codebook_makes_no_table_of_tokens_by_codes():
    # 5,120 tokens by 2^18 codes would be 1.3 billion entries.
    usage = CodebookUsage(2**18)
    usage.update(torch.randint(0, 2**18, (4, 5, 16, 16)))
    assert usage._dense.numel() == 2**18
    sparse = CodebookUsage(SPARSE)
    sparse.update(torch.randint(0, SPARSE, (4, 5, 16, 16)))
    assert sum(tensor.numel() for tensor in sparse._sparse[0]) <= 2 * 5120


@pytest.mark.parametrize("size", [64, SPARSE])
def test_codes_out_of_range_say_so_and_count_for_nothing(size):
    usage = CodebookUsage(size)
    for codes in (torch.tensor([0, size]), torch.tensor([-1, 5])):
        with pytest.raises(ValueError, match=f"but the codebook has {size}"):
            usage.update(codes)
    assert usage.num_codes == 0


def test_misuse_is_explained():
    with pytest.raises(ValueError, match="no codes were counted"):
        CodebookUsage(8).compute()
    with pytest.raises(ValueError, match="the last axis should be the 3 codebooks"):
        CodebookUsage(8, 3).update(torch.zeros(2, 4, 4, 2, dtype=torch.long))
    with pytest.raises(ValueError, match="both must be 1 or more"):
        CodebookUsage(8, 0)
    with pytest.raises(ValueError, match="cannot be merged"):
        CodebookUsage(8).merge(CodebookUsage(16))
    usage = CodebookUsage(8)
    usage.update(torch.zeros(0, dtype=torch.long))
    assert usage.num_codes == 0


def parts_of(size):
    generator = torch.Generator().manual_seed(3)
    # The second process has met other codes, and more of them.
    first = torch.randint(0, 40, (100, 2), generator=generator)
    second = torch.randint(20, 64, (300, 2), generator=generator)
    return first, second


def one_process(rank, path):
    dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2)
    try:
        for size in (64, SPARSE):
            usage = CodebookUsage(size, 2)
            usage.update(parts_of(size)[rank])
            total = usage.gathered()
            same(total.compute(), usage_of(torch.cat(parts_of(size)), size, 2))
            assert total.num_codes == 400
            # The process's own count is as it was, and more can be added to it.
            assert usage.num_codes == (100, 300)[rank]
            usage.update(parts_of(size)[rank])
            alone = CodebookUsage(size, 2)
            if rank == 1:
                alone.update(parts_of(size)[1])
            same(alone.gathered().compute(), usage_of(parts_of(size)[1], size, 2))
    finally:
        dist.destroy_process_group()


@pytest.mark.skipif(sys.platform == "win32", reason="gloo rendezvous by file")
def test_two_processes_count_as_one(tmp_path):
    path = str(tmp_path / "rendezvous")
    with Started(one_process, 0, path) as first, Started(one_process, 1, path) as second:
        assert [first.wait(), second.wait()] == [0, 0], first.stderr + second.stderr


@pytest.mark.parametrize("codebook_size", [2**6, 2**30], ids=["dense", "sparse"])
@pytest.mark.parametrize("num_codebooks", [1, 3])
def test_a_state_goes_on_where_it_was(codebook_size, num_codebooks):
    shape = (50, num_codebooks) if num_codebooks > 1 else (50,)
    codes = torch.randint(codebook_size, (2, *shape))
    whole, before, after = (CodebookUsage(codebook_size, num_codebooks) for _ in range(3))
    whole.update(codes)
    before.update(codes[0])
    after.load_state_dict(before.state_dict())
    after.update(codes[1])
    found, wanted = after.compute(), whole.compute()
    assert found[:3] == wanted[:3]
    assert torch.equal(found.bit_means, wanted.bit_means)
    assert before.num_codes == 50
    empty = CodebookUsage(codebook_size, num_codebooks)
    after.load_state_dict(empty.state_dict())
    assert after.num_codes == 0
    after.update(codes.flatten(0, 1))
    assert after.compute()[:3] == wanted[:3]
