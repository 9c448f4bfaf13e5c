"""Masked generation: all cells at once, in a few steps."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from magvit2_pytorch.generators.generator import GENERATORS, Generator, GeneratorCondition
from magvit2_pytorch.generators.mask_schedule import (
    MaskedConfig,
    choose_hidden,
    draw_hidden,
    grid_cells,
    grid_noise,
    like_codes,
)
from magvit2_pytorch.generators.sampling import Sampling
from magvit2_pytorch.generators.tasks import TASKS, draw_tasks, task_number
from magvit2_pytorch.layers.arithmetic import Conv3d
from magvit2_pytorch.layers.transformer import attend_all

MEASURED_RATIOS = (1.0, 0.75, 0.5, 0.25)
"""Shares of hidden cells in a validation."""


class MaskedState(NamedTuple):
    """State of a masked generator after earlier frames."""

    num_frames: int
    """Frames so far."""
    recent: Int[Tensor, "b m y x *q"]
    """Codes of the last frames that were given out or read."""
    ahead: Int[Tensor, "b k y x *q"]
    """Codes of further frames, generated together with them."""
    condition: Float[Tensor, "b m c"] | None = None
    """Tokens of the conditions."""


@GENERATORS.register("masked")
class MaskedGenerator(Generator):
    """A bidirectional transformer that predicts hidden cells from visible ones.

    Training hides a random number of cells. Generation draws all hidden cells at once, keeps the
    most confident ones, and draws the others again, given those. Codes of a cell's 26 neighbours
    enter at its position by a convolution. Sources: MaskGIT (arXiv 2202.04200); tasks and hints
    are those of MAGVIT (arXiv 2212.05199).
    """

    config_class = MaskedConfig
    config: MaskedConfig
    measures = ("bits", *(f"bits_at_{round(100 * ratio)}" for ratio in MEASURED_RATIOS))

    def __init__(self, **options):
        super().__init__(**options)
        config = self.config
        self.stem = Conv3d(self.code_space.num_features + 1, config.dim, 3, padding=1)
        self.first_frame = nn.Parameter(torch.zeros(config.dim))
        self.task_tokens = nn.Embedding(len(TASKS), config.dim)
        nn.init.normal_(self.task_tokens.weight, std=0.02)

    # Likelihood

    def loss(self, codes, condition=None, *, kept=None, starts=None, context=None, draws=None):
        """As in `Generator`, of hidden cells, which `draws` chooses."""
        codes = self.code_space.check(codes)
        seen = codes if context is None else self.code_space.check(context)
        grid = tuple(codes.shape[1:4])
        task, given = draw_tasks(
            self.config.task_weights, len(codes), grid, self.config.geometry, draws
        )
        hidden = draw_hidden(given.known, draws).to(self.device)
        hinted, task = given.hinted.to(self.device), task.to(self.device)
        digits = self.code_space.to_digits(seen)
        wrong = torch.rand(digits.shape, generator=draws) < self.config.hint_errors
        moves = wrong * torch.randint(-1, 2, digits.shape, generator=draws)
        hints = self.code_space.neighbours_of(digits, moves.to(self.device))
        tokens = self.conditions(len(codes), condition, kept)
        x = self._outputs(digits, hidden, hints, hinted, task, tokens, starts)
        chosen = hidden if self.config.loss_on == "masked" else torch.ones_like(hidden)
        chosen = chosen.flatten(1)
        target = self.code_space.to_sub_tokens(codes).flatten(1, 3)
        terms = self.head.nll(x[chosen], target[chosen]).mean(dim=0)
        return terms.sum(), terms

    @torch.no_grad()
    def bits(
        self,
        codes: Int[Tensor, "b j y x *q"],
        condition: GeneratorCondition | None = None,
        ratios: Sequence[float] = MEASURED_RATIOS,
        known: Bool[Tensor, "b j y x"] | None = None,
        task: str = "unconditional",
        seed: int = 0,
        start: int = 0,
    ) -> Float[Tensor, "b r"]:
        """Mean bits of a hidden code, for each share of hidden cells.

        The share is of the cells that are not `known`.

        These are probabilities of single codes, each given all visible ones. They are no likelihood
        of a video, and must not be compared with the bits of an autoregressive generator.
        """
        codes = self.code_space.check(codes)
        batch, grid = codes.shape[0], codes.shape[1:4]
        if known is None:
            known = torch.zeros(codes.shape[:4], dtype=torch.bool, device=self.device)
        samples = torch.arange(batch, device=self.device)
        scores = grid_noise(seed, samples, 0, grid, 1, "hidden cells").view(known.shape)
        digits = self.code_space.to_digits(codes)
        target = self.code_space.to_sub_tokens(codes).flatten(1, 3)
        tokens, bits = self.conditions(batch, condition), []
        none, numbers = torch.zeros_like(known), self._task(task, batch)
        starts = torch.full((batch,), start, device=self.device)
        for ratio in ratios:
            hidden = choose_hidden(known, torch.full((batch,), ratio, device=self.device), scores)
            x = self._outputs(digits, hidden, digits, none, numbers, tokens, starts)
            nats = self.head.nll(x, target).sum(dim=-1) * hidden.flatten(1)
            bits.append(nats.sum(dim=1) / hidden.flatten(1).sum(dim=1) / math.log(2))
        return torch.stack(bits, dim=-1)

    def measure(self, codes, num_context, condition=None):
        """Mean bits of a hidden code for several shares of hidden ones."""
        frames = []
        for frame in range(num_context, codes.shape[1]):
            start = max(0, frame + 1 - self.config.window)
            part = codes[:, start : frame + 1]
            known = torch.ones(part.shape[:4], dtype=torch.bool, device=self.device)
            known[:, -1] = False
            task = "frame_prediction" if frame else "unconditional"
            frames.append(
                self.bits(part, condition, MEASURED_RATIOS, known, task, start=start).mean(dim=0)
            )
        means = torch.stack(frames).mean(dim=0)
        return dict(zip(self.measures, [means.mean().item(), *means.tolist()], strict=True))

    # Generation

    @torch.no_grad()
    def fill(
        self,
        codes: Int[Tensor, "b j y x *q"],
        known: Bool[Tensor, "b j y x"],
        *,
        task: str = "unconditional",
        condition: GeneratorCondition | None = None,
        hinted: Bool[Tensor, "b j y x"] | None = None,
        sampling: Sampling = Sampling(),
        samples: Int[Tensor, " b"] | None = None,
        start: int = 0,
        tokens: list[Float[Tensor, "b m c"] | None] | None = None,
        **schedule: Any,
    ) -> Int[Tensor, "b j y x *q"]:
        """Codes with all cells drawn that are not `known`.

        Cells that are `hinted` have codes that the model sees until it replaces them; other codes
        are ignored. Each step fixes one cell or more, and no fixed cell ever changes. `start` is
        the number of the first frame in its video. `tokens` take the place of the condition: its
        tokens, and for guidance those without. Options of the schedule, such as `num_steps`, are
        those of the config by default.
        """
        if tokens is None:
            tokens = [self.conditions(len(codes), condition)]
            tokens += [self.conditions(len(codes), None)] * bool(sampling.guidance)
        steps = replace(self.config.schedule, **schedule)
        space, batch, grid = self.code_space, codes.shape[0], tuple(codes.shape[1:4])
        hinted = torch.zeros_like(known) if hinted is None else hinted & ~known
        codes = space.check(torch.where(like_codes(known | hinted, codes), codes, 0))
        hints = space.to_digits(codes)
        numbers = self._task(task, batch)
        samples = torch.arange(batch, device=self.device) if samples is None else samples
        starts = torch.full((batch,), start, device=self.device)
        count = len(space.sub_tokens) + 1
        hidden, total = ~known, (~known).flatten(1).sum(dim=1)
        for step in range(1, steps.num_steps + 1):
            if not hidden.any():
                break
            digits, chosen = space.to_digits(codes), hidden.flatten(1)
            outs = [
                self._outputs(digits, hidden, hints, hinted, numbers, one, starts)[chosen]
                for one in tokens
            ]
            noise = grid_noise(sampling.seed, samples, start, grid, count, f"step {step}")[chosen]
            drawn, certainty = self._draw(outs, sampling, noise)
            codes = codes.masked_scatter(like_codes(hidden, codes), space.from_sub_tokens(drawn))
            hidden = steps.still_hidden(step, hidden, total, certainty, noise[:, -1])
        return codes

    def _draw(
        self, outs: list[Tensor], sampling: Sampling, noise: Float[Tensor, "n k"]
    ) -> tuple[Int[Tensor, "n g"], Float[Tensor, " n"]]:
        """Sub-tokens, and the log probabilities of their codes."""
        certainty = torch.zeros(len(noise), device=noise.device, dtype=outs[0].dtype)

        def choose(number: int, logits: Tensor) -> Tensor:
            nonlocal certainty
            guided = sampling.guided(logits) if len(outs) == 2 else logits
            value = sampling.choose(guided, noise[:, number])
            certainty = certainty + guided.log_softmax(-1).gather(-1, value[:, None])[:, 0]
            return torch.cat([value] * len(outs))

        return self.head.draw(torch.cat(outs), choose)[: len(noise)], certainty

    # Frame by frame

    def begin(self, batch, grid, condition=None, kept=None) -> MaskedState:
        books = () if self.code_space.num_codebooks == 1 else (self.code_space.num_codebooks,)
        none = torch.zeros(batch, 0, *grid, *books, dtype=torch.long, device=self.device)
        return MaskedState(0, none, none, self.conditions(batch, condition, kept))

    def read(self, codes: Int[Tensor, "b j y x *q"], state: MaskedState) -> MaskedState:
        return self._after(self.code_space.check(codes), state)._replace(ahead=codes[:, :0])

    @torch.no_grad()
    def next_frame(self, state, sampling=Sampling(), samples=None, guide=None):
        """As in `Generator`.

        The first `window` frames are generated together; then `next_frames` at a time, given those
        before them.
        """
        if not state.ahead.shape[1]:
            state = state._replace(ahead=self._next_frames(state, sampling, samples, guide))
        frame = state.ahead[:, :1]
        state = self._after(frame, state)._replace(ahead=state.ahead[:, 1:])
        if guide is not None:
            guide = state._replace(condition=guide.condition)
        return frame, state, guide

    def _next_frames(self, state, sampling, samples, guide) -> Tensor:
        given = state.recent.shape[1]
        further = state.recent.new_zeros(
            len(state.recent), self.config.window - given, *state.recent.shape[2:]
        )
        codes = torch.cat((state.recent, further), dim=1)
        known = torch.zeros(codes.shape[:4], dtype=torch.bool, device=self.device)
        known[:, :given] = True
        tokens = [state.condition] if guide is None else [state.condition, guide.condition]
        task = "frame_prediction" if given else "unconditional"
        codes = self.fill(
            codes, known, task=task, sampling=sampling, samples=samples,
            start=state.num_frames - given, tokens=tokens,
        )  # fmt: skip
        return codes[:, given:]

    def _after(self, codes: Tensor, state: MaskedState) -> MaskedState:
        recent = torch.cat((state.recent, codes), dim=1)
        kept = self.config.window - self.config.next_frames
        recent = recent[:, max(0, recent.shape[1] - kept) :]
        return state._replace(num_frames=state.num_frames + codes.shape[1], recent=recent)

    # One pass

    def _outputs(
        self,
        digits: Int[Tensor, "b j y x d"],
        hidden: Bool[Tensor, "b j y x"],
        hints: Int[Tensor, "b j y x d"],
        hinted: Bool[Tensor, "b j y x"],
        task: Int[Tensor, " b"],
        tokens: Float[Tensor, "b m c"] | None,
        starts: Int[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b n c"]:
        """Outputs at all cells; hidden ones show hints, if there are any."""
        digits = self.code_space.hide(digits, ~hidden)
        hinted = hinted & hidden
        digits = torch.where(hinted[..., None], hints, digits)
        features = self.code_space.one_hot(digits, self.dtype)
        features = torch.cat((features, hinted[..., None].to(features)), dim=-1)
        x = self.stem(features.movedim(-1, 1)).movedim(1, -1)
        frames = torch.arange(digits.shape[1], device=self.device)
        first = frames + (0 if starts is None else starts[:, None]) == 0
        x = x + torch.where(first[..., None, None, None], self.first_frame.to(x.dtype), 0)
        x = torch.cat((self.task_tokens(task)[:, None].to(x.dtype), x.flatten(1, 3)), dim=1)
        cells = grid_cells(tuple(digits.shape[1:4]), self.device)
        # The task's token, like the first cell, is at 0.
        angles = self.angles_of(torch.cat((torch.zeros_like(cells[:1]), cells)))
        return self.transformer(x, angles, attend_all, None, tokens)[0][:, 1:]

    def _task(self, name: str, batch: int) -> Int[Tensor, " b"]:
        return torch.full((batch,), task_number(name), device=self.device)
