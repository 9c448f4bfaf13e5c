import copy
import math
from itertools import product

import pytest
import torch

from magvit2_pytorch.generators import GeneratorCondition, Sampling
from magvit2_pytorch.generators.cell_order import NEIGHBOURS, cell_order
from tests.generators.models import EXACT, generator, random_codes

ORDERS = ("wave", "raster")
POSITIONS = ("rotary", "alibi", "grid_alibi")
GRIDS = ((1, 1), (1, 4), (4, 1), (3, 4), (2, 2))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_orders_visit_every_cell_once_and_neighbours_before(order, grid):
    height, width = grid
    cells = cell_order(order, height, width)
    assert sorted(map(tuple, cells.cells.tolist())) == list(product(range(height), range(width)))
    wave = dict(zip(map(tuple, cells.cells.tolist()), cells.waves.tolist(), strict=True))
    assert sorted(set(wave.values())) == list(range(cells.num_waves))
    for (y, x), (t, dy, dx) in product(wave, NEIGHBOURS):
        other = (y + dy, x + dx)
        if t == 0 and other in wave:
            assert wave[other] < wave[y, x]
    values = torch.arange(2 * height * width).view(1, 2, height, width)
    assert torch.equal(cells.to_grid(cells.to_sequence(values)), values)
    if order == "wave" and width > 1:
        assert cells.num_waves == 2 * (height - 1) + width


@pytest.mark.parametrize(("order", "positions"), product(ORDERS, POSITIONS))
def test_probabilities_of_all_grids_sum_to_one(order, positions):
    model = generator(order=order, positions=positions)
    grids = torch.tensor(list(product(range(9), repeat=4))).view(-1, 1, 2, 2)
    bits, _ = model.bits(grids)
    assert float(2.0 ** -bits.sum(dim=(1, 2, 3)) @ torch.ones(9**4).double()) == pytest.approx(
        1, abs=1e-12
    )


def test_probabilities_of_several_codebooks_and_heads_sum_to_one():
    for options in (dict(levels=((3,), (2, 2))), dict(levels=((2, 2, 3),), head="independent")):
        model = generator(group=4, order="raster", **options)
        sizes = [range(math.prod(levels)) for levels in model.config.levels]
        one = list(product(*sizes))
        grids = torch.tensor(list(product(one, repeat=2))).view(-1, 1, 1, 2, len(sizes))
        grids = grids[..., 0] if len(sizes) == 1 else grids
        bits, _ = model.bits(grids)
        assert float((2.0 ** -bits.sum(dim=(1, 2, 3))).sum()) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("order", ORDERS)
def test_no_cell_sees_a_later_one(order):
    model = generator(order=order, window=2)
    codes = random_codes(model, 1, 4, 3, 4)
    bits, _ = model.bits(codes)
    cells = cell_order(order, 3, 4)
    wave_of = cells.to_grid(cells.waves[None].repeat(1, 4)) + (
        torch.arange(4) * cells.num_waves
    ).view(1, 4, 1, 1)
    for t, y, x in ((0, 0, 0), (1, 1, 2), (2, 2, 3), (3, 0, 1)):
        other = codes.clone()
        other[0, t, y, x] = (other[0, t, y, x] + 4) % 9
        changed, _ = model.bits(other)
        earlier = wave_of <= wave_of[0, t, y, x]
        earlier[0, t, y, x] = False
        assert torch.equal(changed[earlier], bits[earlier])
        later = wave_of > wave_of[0, t, y, x]
        assert not torch.equal(changed[later], bits[later])


@pytest.mark.parametrize(("order", "positions"), product(ORDERS, POSITIONS))
@pytest.mark.parametrize("window", [None, 2])
def test_frame_by_frame_equals_one_pass(order, positions, window):
    model = generator(order=order, positions=positions, window=window)
    codes = random_codes(model, 2, 5, 3, 4)
    bits, _ = model.bits(codes)
    whole, _ = model.loss(codes)
    torch.testing.assert_close(bits.mean() * math.log(2), whole.detach(), **EXACT)
    first, state = model.bits(codes[:, :2])
    rest, _ = model.bits(codes[:, 2:], state=state)
    torch.testing.assert_close(torch.cat((first, rest), dim=1), bits, **EXACT)


def given(model, codes, nats):
    """Gives known codes to `draw_frame`, and keeps their negative log probabilities."""
    order = cell_order(model.config.order, *codes.shape[2:4])
    wanted = order.to_sequence(model.code_space.to_sub_tokens(codes))

    def choose(cells, number, logits):
        value = wanted[:, cells, number]
        nats.append(-logits.log_softmax(-1).gather(-1, value[..., None]).sum())
        return value

    return choose


@pytest.mark.parametrize(("order", "positions"), product(ORDERS, POSITIONS))
def test_waves_with_a_cache_equal_the_full_pass(order, positions):
    model = generator(order=order, positions=positions, window=2)
    codes = random_codes(model, 1, 6, 3, 4)
    _bits, state = model.bits(codes[:, :2])
    for frame in codes[:, 2:].split(1, dim=1):
        wanted, after = model.bits(frame, state=state)
        nats = []
        drawn, state, _ = model.draw_frame(state, given(model, frame, nats))
        assert torch.equal(drawn, frame)
        torch.testing.assert_close(sum(nats) / math.log(2), wanted.sum(), **EXACT)
        for pair, wanted_pair in zip(state.past, after.past, strict=True):
            for value, wanted in zip(pair, wanted_pair, strict=True):
                # A pass over a whole frame forgets at its end.
                torch.testing.assert_close(value, wanted[:, :, -value.shape[2] :], **EXACT)


TOKENS = dict(num_tokens=4, grid=(1, 4))
"""Options for codes of a 1-D tokenizer, with four tokens in a part."""


def test_probabilities_of_all_sequences_of_tokens_sum_to_one():
    model = generator(levels=((3,),), **TOKENS)
    sequences = torch.tensor(list(product(range(3), repeat=6))).view(-1, 2, 1, 3)
    bits, _ = model.bits(sequences)
    assert float((2.0 ** -bits.sum(dim=(1, 2, 3))).sum()) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("window", [None, 2])
def test_tokens_drawn_part_by_part_equal_one_pass(window):
    model = generator(window=window, **TOKENS)
    codes = random_codes(model, 2, 5, 1, 4)
    whole, _ = model.loss(codes)
    bits, _ = model.bits(codes)
    torch.testing.assert_close(bits.mean() * math.log(2), whole.detach(), **EXACT)
    state, nats = model.begin(2, (1, 4)), []
    for part in codes.split(1, dim=1):
        drawn, state, _ = model.draw_frame(state, given(model, part, nats))
        assert torch.equal(drawn, part)
    torch.testing.assert_close(sum(nats) / math.log(2), bits.sum(), **EXACT)


def test_the_first_tokens_of_a_part_are_a_sequence_of_their_own():
    model = generator(**TOKENS)
    codes = random_codes(model, 2, 1, 1, 4)
    bits, _ = model.bits(codes)
    for count in (1, 2, 3):
        torch.testing.assert_close(model.bits(codes[..., :count])[0], bits[..., :count], **EXACT)
    for grid in ((1, 5), (2, 4)):
        with pytest.raises(ValueError, match="1 row of up to 4 tokens"):
            model.begin(1, grid)


def test_each_place_in_a_part_has_a_vector():
    model = generator(window=2, **TOKENS)
    codes = random_codes(model, 1, 2, 1, 4)
    bits, _ = model.bits(codes)
    with torch.no_grad():
        model.tokens.weight[2].neg_()  # a norm would take away a constant
    changed, _ = model.bits(codes)
    assert torch.equal(changed[0, 0, 0, :2], bits[0, 0, 0, :2])
    assert (changed - bits).flatten()[2:].abs().min() > 1e-6


def test_memory_is_constant():
    model = generator(window=2)
    state = model.begin(1, (2, 3))
    sizes, rooms = [], []
    for _ in range(10):
        _, state, _ = model.next_frame(state)
        sizes.append(sum(len(memory) for memory in state.past))
        rooms.append(state.past[0].buffer.shape[3])
    assert len(set(sizes[3:])) == 1
    assert max(rooms) <= 2 * (sizes[-1] // 2 + 6)
    assert state.recent.shape[1] == 2


def test_copies_of_a_state_go_on_apart():
    model = generator(window=2)

    def advanced(state, seed, num_frames):
        frames = []
        for _ in range(num_frames):
            codes, state, _ = model.next_frame(state, Sampling(seed=seed))
            frames.append(codes)
        return state, torch.cat(frames, dim=1)

    start, _ = advanced(model.begin(1, (2, 3)), 0, 4)
    _, wanted = advanced(copy.deepcopy(start), 0, 5)
    middle, first = advanced(start, 0, 2)
    advanced(copy.copy(start), 1, 2)  # would overwrite what the other remembers
    _, second = advanced(middle, 0, 3)
    assert torch.equal(torch.cat((first, second), dim=1), wanted)


def films(model, samples, sampling, num_frames=3, **options):
    samples = torch.tensor(samples)
    state, frames = model.begin(len(samples), (3, 4), **options), []
    for _ in range(num_frames):
        codes, state, _ = model.next_frame(state, sampling, samples)
        frames.append(codes)
    return torch.cat(frames, dim=1)


def test_a_film_depends_on_seed_and_number_only():
    model = generator()
    four = films(model, [0, 1, 2, 3], Sampling(seed=5))
    assert torch.equal(films(model, [2], Sampling(seed=5)), four[2:3])
    assert torch.equal(films(model, [3, 1], Sampling(seed=5)), four[[3, 1]])
    assert len(four.unique(dim=0)) == 4
    assert not torch.equal(films(model, [0], Sampling(seed=6)), four[:1])


def test_temperature_0_takes_the_most_likely_codes():
    model = generator(head="independent")
    codes = films(model, [0, 7], Sampling(temperature=0.0))
    assert torch.equal(codes[0], codes[1])
    cold = films(model, [0], Sampling(temperature=1e-4))
    assert torch.equal(cold, codes[:1])


def test_samples_follow_the_probabilities():
    model = generator(levels=((3,),))
    counts = films(model, list(range(4000)), Sampling(), num_frames=1)[:, 0, 0, 0].bincount()
    bits, _ = model.bits(torch.arange(3).view(3, 1, 1, 1).expand(3, 1, 3, 4))
    wanted = 2 ** -bits[:, 0, 0, 0]
    # Four standard deviations of a share of 4,000 draws are 0.032 at most.
    torch.testing.assert_close(counts / 4000, wanted.float(), atol=0.032, rtol=0)


CONDITIONAL = dict(classes=("cat", "dog"), text_dim=5, num_scalars=2)


def condition(batch):
    return GeneratorCondition(
        classes=torch.arange(batch) % 2,
        text=torch.randn(batch, 3, 5, dtype=torch.float64),
        scalars=torch.randn(batch, 2, dtype=torch.float64),
    )


def test_every_condition_counts_and_dropping_equals_none():
    model = generator(**CONDITIONAL)
    codes, conditions = random_codes(model, 2, 2, 3, 4), condition(2)
    loss, _ = model.loss(codes, conditions)
    assert loss.requires_grad
    for name in conditions._fields:
        other, _ = model.loss(codes, conditions._replace(**{name: None}))
        assert (other - loss).abs() > 1e-6
    dropped, _ = model.loss(
        codes, conditions._replace(text=conditions.text[:, :1]), kept=torch.tensor([False, False])
    )
    assert torch.equal(dropped, model.loss(codes)[0])


def test_guidance_moves_towards_the_condition_and_0_is_none():
    model = generator(classes=("cat", "dog"))
    dogs = GeneratorCondition(classes=torch.tensor([1, 1]))

    def film(guidance):
        state, guide = model.begin(2, (3, 4), dogs), model.begin(2, (3, 4))
        return model.next_frame(state, Sampling(guidance=guidance), None, guide)[0]

    plain, _, _ = model.next_frame(model.begin(2, (3, 4), dogs))
    assert torch.equal(film(0.0), plain)
    unconditional, _, _ = model.next_frame(model.begin(2, (3, 4)))
    assert torch.equal(film(-1.0), unconditional)
    assert not torch.equal(film(50.0), plain)


@pytest.mark.parametrize(
    ("conditions", "text"),
    [
        (GeneratorCondition(classes=torch.tensor([0, 2])), "has 2"),
        (GeneratorCondition(classes=torch.tensor([0])), "1 samples"),
        (GeneratorCondition(text=torch.zeros(2, 1, 5)), "takes no text"),
    ],
)
def test_conditions_that_do_not_fit(conditions, text):
    model = generator(classes=("cat", "dog"))
    with pytest.raises(ValueError, match=text):
        model.loss(random_codes(model, 2, 1, 2, 2), conditions)


def test_it_learns_a_grid_by_heart_and_gives_it_back():
    torch.manual_seed(0)
    model = generator(levels=((8, 5),), dtype=torch.float32, dim=32, heads=2)
    codes = random_codes(model, 1, 3, 4, 4)
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    for _ in range(100):
        loss, _ = model.loss(codes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) / math.log(2) < 0.1
    assert torch.equal(films_of(model, codes), codes)


def films_of(model, codes):
    state, frames = model.begin(1, codes.shape[2:4]), []
    for _ in range(codes.shape[1]):
        frame, state, _ = model.next_frame(state, Sampling(temperature=0.0))
        frames.append(frame)
    return torch.cat(frames, dim=1)


def test_alibi_over_the_sequence_needs_the_trained_width():
    model = generator(positions="alibi", grid=(4, 4))
    model.begin(1, (8, 4))
    with pytest.raises(ValueError, match="5 columns"):
        model.begin(1, (4, 5))
