"""Masked generation: known cells stay, steps fix as many cells as they say, draws have seeds."""

import math

import pytest
import torch

from magvit2_pytorch.generators import GeneratorCondition, MaskedGenerator, Sampling, load_generator
from magvit2_pytorch.generators.mask_schedule import MaskSchedule, draw_hidden, halton_ranks

LEVELS = {"fsq": ((5, 4),), "lfq": ((2,) * 6,), "several": ((3, 3), (3, 3))}
GRID = (3, 3, 4)


def make(levels="fsq", **options):
    torch.manual_seed(0)
    options = dict(dim=16, depth=1, heads=2, num_steps=4) | options
    return MaskedGenerator(levels=LEVELS[levels], **options).double().eval()


def random_codes(generator, batch=2, grid=GRID):
    space = generator.code_space
    digits = [torch.randint(part.size, (batch, *grid)) for part in space.digits]
    return space.from_digits(torch.stack(digits, dim=-1))


def random_known(batch=2, grid=GRID, share=0.3):
    return torch.rand(batch, *grid) < share


def wake(generator):
    """Weights as after training: an untrained head gives all codes nearly one probability."""
    for layer in generator.head.to_logits:
        torch.nn.init.normal_(layer[-1].weight)
    return generator


@pytest.mark.parametrize("order", ["confidence", "halton"])
@pytest.mark.parametrize("levels", LEVELS)
def test_known_cells_stay_and_the_others_become_codes(levels, order):
    generator = make(levels)
    codes, known = random_codes(generator), random_known()
    # Codes of cells that are not known are ignored, whatever is there.
    noise = torch.where(known if codes.ndim == 4 else known[..., None], codes, -7)
    filled = generator.fill(noise, known, num_steps=4, order=order)
    assert torch.equal(filled[known], codes[known])
    assert torch.equal(generator.code_space.check(filled), filled)


def numbers_hidden(generator, monkeypatch):
    """Cells hidden at each pass, all samples together, noted while it fills."""
    numbers = []
    outputs = generator._outputs

    def note(digits, hidden, *arguments):
        numbers.append(hidden.flatten(1).sum(dim=1).tolist())
        return outputs(digits, hidden, *arguments)

    monkeypatch.setattr(generator, "_outputs", note)
    return numbers


@pytest.mark.parametrize("order", ["confidence", "halton"])
@pytest.mark.parametrize("num_steps", [1, 5, 30])
def test_each_step_fixes_the_scheduled_number_and_one_at_least(order, num_steps, monkeypatch):
    generator = make()
    known = random_known()
    numbers = numbers_hidden(generator, monkeypatch)
    generator.fill(random_codes(generator), known, num_steps=num_steps, order=order)
    for sample, cells in enumerate((~known).flatten(1).sum(dim=1).tolist()):
        left = [cells]
        for step in range(1, num_steps):
            scheduled = math.floor(math.cos(math.pi / 2 * step / num_steps) * cells)
            left.append(max(0, min(scheduled, left[-1] - 1)))
        left = left[: len(numbers)]
        assert [step[sample] for step in numbers] == left
    # After the last step none is hidden: it would have been shown to one more pass.
    assert len(numbers) <= min(num_steps, int((~known).flatten(1).sum(dim=1).max()))


def test_fixed_cells_keep_their_codes(monkeypatch):
    generator, shown = wake(make()), []
    outputs = generator._outputs

    def note(digits, hidden, *arguments):
        shown.append((digits.clone(), ~hidden))
        return outputs(digits, hidden, *arguments)

    monkeypatch.setattr(generator, "_outputs", note)
    filled = generator.fill(random_codes(generator), random_known(), num_steps=8)
    final = generator.code_space.to_digits(filled)
    assert len(shown) == 8
    for digits, fixed in shown:
        assert torch.equal(digits[fixed], final[fixed])


def test_hidden_codes_are_not_seen():
    generator = make()
    codes, known = random_codes(generator), random_known()
    task, none = generator._task("interpolation", 2), torch.zeros_like(known)
    digits = generator.code_space.to_digits(codes)
    other = generator.code_space.to_digits(random_codes(generator))
    other[known] = digits[known]
    outs = [generator._outputs(x, ~known, x, none, task, None) for x in (digits, other)]
    assert torch.equal(*outs)
    # Visible ones are, by every cell.
    moved = generator.code_space.to_digits((codes + 1) % 20)
    assert (generator._outputs(moved, ~known, moved, none, task, None) != outs[0]).any(-1).all()


def test_hints_are_seen_until_they_are_replaced():
    generator = make()
    codes, known = random_codes(generator), random_known()
    hinted = ~known
    digits = generator.code_space.to_digits(codes)
    task = generator._task("outpainting_central", 2)
    none = torch.zeros_like(known)
    hints = generator.code_space.to_digits(random_codes(generator))
    without = generator._outputs(digits, ~known, digits, none, task, None)
    with_hints = generator._outputs(digits, ~known, hints, hinted, task, None)
    assert (with_hints != without).any()
    others = generator.code_space.to_digits(random_codes(generator))
    assert (generator._outputs(digits, ~known, others, hinted, task, None) != with_hints).any()
    # A hinted cell differs from a known one of the same code.
    assert (generator._outputs(digits, none, digits, none, task, None)
            != generator._outputs(digits, ~none, digits, ~none, task, None)).any()  # fmt: skip
    assert (generator.fill(codes, known, hinted=hinted) != codes)[~known].any()


def test_draws_depend_on_seed_and_sample_only():
    generator = wake(make())
    codes, known = random_codes(generator, 4), random_known(4)
    whole = generator.fill(codes, known)
    for number in (0, 3):
        one = slice(number, number + 1)
        samples = torch.tensor([number])
        assert torch.equal(generator.fill(codes[one], known[one], samples=samples), whole[one])
    other = generator.fill(codes, known, sampling=Sampling(seed=1))
    assert (other != whole).any()
    cold = dict(confidence_temperature=0.0)
    argmax = [
        generator.fill(codes, known, sampling=Sampling(seed=seed, temperature=0.0), **cold)
        for seed in (0, 1)
    ]
    assert torch.equal(*argmax)


def test_frame_by_frame_is_filling_after_the_last_frames():
    generator = wake(make(window=3, next_frames=1))
    state, frames = generator.begin(2, GRID[1:]), []
    for _ in range(5):
        frame, state, _ = generator.next_frame(state)
        frames.append(frame)
    film = torch.cat(frames, dim=1)
    none = torch.zeros(2, *GRID, dtype=torch.bool)
    assert torch.equal(film[:, :3], generator.fill(film[:, :3], none))
    known = none.clone()
    known[:, :2] = True
    for start in (1, 2):
        part = film[:, start : start + 3]
        filled = generator.fill(part, known, task="frame_prediction", start=start)
        assert torch.equal(part, filled)
    # Draws belong to the frames' numbers in the video.
    one, other = (generator.fill(part, known, start=start) for start in (7, 8))
    assert (one != other).any()
    # A prompt gives the same as frames of its own.
    state = generator.read(film[:, :4], generator.begin(2, GRID[1:]))
    assert torch.equal(generator.next_frame(state)[0], film[:, 4:])
    assert state.recent.shape[1] == 2


def test_guidance_of_nothing_is_no_guidance():
    generator = wake(make(classes=("a", "b", "c")))
    codes, known = random_codes(generator), random_known()
    condition = GeneratorCondition(classes=torch.tensor([0, 2]))
    plain = generator.fill(codes, known, condition=condition)
    missing = generator.fill(codes, known)
    assert (plain != missing).any()
    guided = generator.fill(codes, known, condition=condition, sampling=Sampling(guidance=3.0))
    assert (guided != plain).any()
    # Without a condition both sides of the guidance are equal.
    assert torch.equal(generator.fill(codes, known, sampling=Sampling(guidance=3.0)), missing)
    state, guide = generator.begin(2, GRID[1:], condition), generator.begin(2, GRID[1:])
    frames = [
        generator.next_frame(state, Sampling(guidance=0.0), guide=one)[0] for one in (None, guide)
    ]
    assert torch.equal(*frames)


def test_loss_and_bits_of_an_untrained_model_are_those_of_equal_codes():
    generator = make("lfq")
    codes = random_codes(generator, 4)
    loss, terms = generator.loss(codes, draws=torch.Generator().manual_seed(0))
    assert loss.item() / math.log(2) == pytest.approx(6, abs=0.05)
    assert loss.item() == pytest.approx(terms.sum().item())
    torch.testing.assert_close(
        generator.bits(codes), torch.full((4, 4), 6.0).double(), atol=0.05, rtol=0
    )


def test_bits_are_those_of_hidden_cells_only():
    generator = wake(make())
    codes, known = random_codes(generator), random_known()
    bits = generator.bits(codes, ratios=(1.0,), known=known)[:, 0]
    hidden = ~known
    task = generator._task("unconditional", 2)
    digits = generator.code_space.to_digits(codes)
    x = generator._outputs(digits, hidden, digits, known & hidden, task, None)
    nats = generator.head.nll(x, generator.code_space.to_sub_tokens(codes).flatten(1, 3)).sum(-1)
    for sample in range(2):
        mean = nats[sample][hidden[sample].flatten()].mean() / math.log(2)
        torch.testing.assert_close(bits[sample], mean)


def test_measures_are_bits_of_the_frames_after_the_context():
    generator = wake(make(window=2))
    codes = random_codes(generator, 1, (5, 3, 4))
    measured = generator.measure(codes, 3)
    assert tuple(measured) == generator.measures
    known = torch.zeros(1, 2, 3, 4, dtype=torch.bool)
    known[:, 0] = True
    bits = [
        generator.bits(
            codes[:, i - 1 : i + 1], None, (0.5,), known, "frame_prediction", start=i - 1
        )
        for i in (3, 4)
    ]
    assert measured["bits_at_50"] == pytest.approx(torch.stack(bits).mean().item())


def test_the_loss_depends_on_its_generator_only():
    generator = make()
    codes = random_codes(generator)

    def loss(seed):
        torch.rand(3)
        return generator.loss(codes, draws=torch.Generator().manual_seed(seed))[0]

    assert loss(0) == loss(0)
    assert loss(0) != loss(1)


@pytest.mark.parametrize("loss_on", ["masked", "all"])
def test_every_parameter_gets_a_gradient(loss_on):
    generator = make("several", classes=("a", "b"), loss_on=loss_on).train()
    condition = GeneratorCondition(classes=torch.tensor([0, 1]))
    kept = torch.tensor([True, False])
    generator.loss(random_codes(generator), condition, kept=kept)[0].backward()
    assert [name for name, p in generator.named_parameters() if p.grad is None] == []


def test_saved_generators_load_again(tmp_path):
    generator = make(tasks={"interpolation": 1.0, "frame_prediction": 0.5}, halo=9, order="halton")
    generator.float().save_pretrained(tmp_path)
    loaded = load_generator(tmp_path)
    assert loaded.config == generator.config
    codes, known = random_codes(generator), random_known()
    assert torch.equal(loaded.fill(codes, known), generator.fill(codes, known))


def test_no_tensor_has_a_row_for_each_code():
    generator = MaskedGenerator(levels=((2,) * 18,))
    assert max(max(p.shape) for p in generator.parameters()) <= 6 * generator.config.dim


def test_one_grid_is_learned_by_heart():
    torch.manual_seed(0)
    generator = MaskedGenerator(
        levels=LEVELS["fsq"], dim=32, depth=2, heads=2, tasks={"unconditional": 1.0}
    )
    codes = random_codes(generator, 1, (2, 4, 4)).expand(4, -1, -1, -1)
    optimizer = torch.optim.AdamW(generator.parameters(), 1e-2)
    draws = torch.Generator().manual_seed(0)
    for _ in range(180):
        optimizer.zero_grad()
        generator.loss(codes, draws=draws)[0].backward()
        optimizer.step()
    generator.eval()
    assert generator.bits(codes[:1]).max() < 0.1
    known = torch.zeros(1, 2, 4, 4, dtype=torch.bool)
    sampling = Sampling(temperature=0.0)
    filled = generator.fill(codes[:1], known, sampling=sampling, confidence_temperature=0.0)
    assert torch.equal(filled, codes[:1])


@pytest.mark.parametrize("grid", [(1, 1, 1), (3, 4, 5), (2, 16, 28)])
def test_halton_visits_every_cell_once_and_spreads(grid):
    ranks = halton_ranks(grid)
    assert torch.equal(ranks.sort().values, torch.arange(math.prod(grid)))
    if grid[1] == 16:
        # The first eighth has about as many cells in each quarter of the frame.
        first = (ranks < 112).view(grid)
        quarters = first.unflatten(1, (2, 8)).unflatten(3, (2, 14)).sum(dim=(0, 2, 4))
        assert quarters.min() >= 24
        assert quarters.max() <= 32


def test_training_hides_any_share_of_the_cells():
    known = torch.zeros(400, 1, 10, 10, dtype=torch.bool)
    known[:, 0, 0] = True
    hidden = draw_hidden(known, torch.Generator().manual_seed(0))
    assert not (hidden & known).any()
    shares = hidden.flatten(1).sum(dim=1) / 90
    # The mean of cos(pi u / 2) is 2 / pi.
    assert shares.mean().item() == pytest.approx(2 / math.pi, abs=0.03)
    assert hidden.flatten(1).any(dim=1).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(tasks={"prediction": 1}), "did you mean"),
        (dict(tasks={"interpolation": 0}), "one above 0"),
        (dict(next_frames=4), "give 1 to 3 frames"),
        (dict(num_steps=0), "num_steps is 0"),
        (dict(order="random"), "use 'confidence' or 'halton'"),
        (dict(hint_errors=2), "give a share"),
    ],
)
def test_wrong_options_are_refused(options, message, without_type_checks):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_schedules_end_at_none():
    for steps in (1, 3, 12, 77):
        schedule = MaskSchedule(num_steps=steps)
        assert schedule.number_left(steps, torch.tensor([0, 1, 10**6])).tolist() == [0, 0, 0]
