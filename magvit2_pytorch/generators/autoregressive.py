"""Autoregressive generation of codes, by cells or waves, without end."""

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from magvit2_pytorch.generators.cell_order import (
    NEIGHBOURS,
    NUM_RECENT,
    CellOrder,
    Offset,
    OrderName,
    bordered,
    cell_order,
    neighbour_index,
)
from magvit2_pytorch.generators.generator import (
    GENERATORS,
    Generator,
    GeneratorCondition,
    GeneratorConfig,
)
from magvit2_pytorch.generators.sampling import Sampling, cell_noise
from magvit2_pytorch.layers.arithmetic import Linear
from magvit2_pytorch.layers.transformer import (
    Attend,
    Memory,
    attend_all,
    attend_causal,
    attend_masked,
)

PositionsName = Literal["rotary", "alibi", "grid_alibi"]


@dataclass(frozen=True, kw_only=True)
class AutoregressiveConfig(GeneratorConfig):
    """Options of an `AutoregressiveGenerator`."""

    kind: Literal["autoregressive"] = "autoregressive"
    window: int | None = 3
    """Latent frames that a cell sees, its own included; None for all, and no films without end."""
    order: OrderName = "wave"
    """Order of the cells of a frame; see `CellOrder`."""
    positions: PositionsName = "rotary"
    """Positions by rotation, or by ALiBi over the sequence or over the grid."""
    neighbours: tuple[Offset, ...] = NEIGHBOURS
    """Offsets (frames, rows, columns) of the known cells whose codes enter at a cell's position."""

    def __post_init__(self):
        super().__post_init__()
        if self.window is not None and self.window < 1:
            raise ValueError(f"window is {self.window}: give 1 or more latent frames, or None")
        if self.positions not in ("rotary", "alibi", "grid_alibi"):
            raise ValueError(f"positions {self.positions!r}: use rotary, alibi or grid_alibi")
        unknown = set(self.neighbours) - set(NEIGHBOURS)
        if unknown:
            raise ValueError(f"neighbours {sorted(unknown)} are not among {NEIGHBOURS}")


class GeneratorState(NamedTuple):
    """State of a generator after earlier frames; a copy continues another film."""

    num_frames: int
    """Frames so far."""
    recent: Int[Tensor, "b r y x d"]
    """Digits of the last frames, unknown ones before the first."""
    condition: Float[Tensor, "b m c"] | None = None
    """Tokens of the conditions."""
    past: tuple[Memory, ...] = ()
    """Keys and values of earlier cells, as far as the window reaches."""
    start: int = 0
    """Number of the first of these cells."""


@GENERATORS.register("autoregressive")
class AutoregressiveGenerator(Generator):
    """A transformer that predicts a cell's code from those before it.

    The codes of known neighbours enter at the position of the cell they belong to, before the
    first block, and the transformer is causal in the order; so the product of all probabilities is
    one normalized distribution over grids of any size. Cells of a wave are independent, given all
    earlier waves. With a window nothing depends on absolute time: memory and time per frame are
    constant, however long the film. With `num_tokens` it is a model of sequences of tokens: a frame
    is a row of the tokens of a part, or of its first ones.
    """

    config_class = AutoregressiveConfig
    config: AutoregressiveConfig

    def __init__(self, **options):
        super().__init__(**options)
        config = self.config
        self.stem = Linear(len(config.neighbours) * self.code_space.num_features, config.dim)
        # A code's first latent stands for one image, the others for several frames.
        self.first_frame = nn.Parameter(torch.zeros(config.dim))
        # A cell of a grid is like any other; a token's place tells what it stands for.
        self.tokens = None
        if config.num_tokens is not None:
            self.tokens = nn.Embedding(config.num_tokens, config.dim)
            nn.init.normal_(self.tokens.weight, std=0.02)
        slopes = 2.0 ** (-8.0 * torch.arange(1, config.heads + 1) / config.heads)
        self.register_buffer("slopes", slopes, persistent=False)

    # Likelihood

    def loss(self, codes, condition=None, *, kept=None, starts=None, context=None, draws=None):
        codes = self.code_space.check(codes)
        seen = codes if context is None else self.code_space.check(context)
        state = self.begin(codes.shape[0], codes.shape[2:4], condition, kept)
        x, _ = self._advance(self.code_space.to_digits(seen), state, starts)
        order = self.order_of(codes.shape[2:4])
        target = order.to_sequence(self.code_space.to_sub_tokens(codes))
        terms = self.head.nll(x, target).mean(dim=(0, 1))
        return terms.sum(), terms

    def measure(self, codes, num_context, condition=None):
        """Exact bits of a code, given all before it."""
        bits, _ = self.bits(codes, condition)
        return {"bits": float(bits[:, num_context:].mean())}

    @torch.no_grad()
    def bits(
        self,
        codes: Int[Tensor, "b j y x *q"],
        condition: GeneratorCondition | None = None,
        state: GeneratorState | None = None,
    ) -> tuple[Float[Tensor, "b j y x"], GeneratorState]:
        """Exact bits of every code, given all before it.

        It computes frame by frame, so videos may be of any length. Continues from `state` if given,
        and returns the state after the codes.
        """
        codes = self.code_space.check(codes)
        state = state or self.begin(codes.shape[0], codes.shape[2:4], condition)
        order, bits = self.order_of(codes.shape[2:4]), []
        for frame in codes.split(1, dim=1):
            x, state = self._advance(self.code_space.to_digits(frame), state)
            target = order.to_sequence(self.code_space.to_sub_tokens(frame))
            nats = self.head.nll(x, target).sum(dim=-1)
            bits.append(order.to_grid(nats / math.log(2)))
        return torch.cat(bits, dim=1), state

    # State

    def begin(self, batch, grid, condition=None, kept=None) -> GeneratorState:
        self.check_grid(grid)
        recent = self.code_space.unknown(batch, NUM_RECENT, *grid, device=self.device)
        return GeneratorState(0, recent, self.conditions(batch, condition, kept))

    @torch.no_grad()
    def read(self, codes: Int[Tensor, "b j y x *q"], state: GeneratorState) -> GeneratorState:
        for frame in self.code_space.check(codes).split(1, dim=1):
            _, state = self._advance(self.code_space.to_digits(frame), state)
        return state

    def next_frame(self, state, sampling=Sampling(), samples=None, guide=None):
        if samples is None:
            samples = torch.arange(len(state.recent), device=self.device)
        order = self.order_of(state.recent.shape[2:4])
        count = len(self.code_space.sub_tokens)
        noise = cell_noise(sampling.seed, samples, state.num_frames, order.cells, count)

        def choose(cells: slice, number: int, logits: Tensor) -> Tensor:
            if guide is None:
                return sampling.choose(logits, noise[:, cells, number])
            guided = sampling.guided(logits)
            return sampling.choose(guided, noise[:, cells, number]).repeat(2, 1)

        return self.draw_frame(state, choose, guide)

    @torch.no_grad()
    def draw_frame(
        self,
        state: GeneratorState,
        choose: Callable[[slice, int, Tensor], Tensor],
        guide: GeneratorState | None = None,
    ) -> tuple[Int[Tensor, "b 1 y x *q"], GeneratorState, GeneratorState | None]:
        """The next frame from drawn, known or decoded values of `choose`.

        For each wave and each sub-token it is called with the wave's cells, as a slice of the
        frame's order, the number of the sub-token, and logits `b n v`, in which those of the
        `guide` come after the others.
        """
        batch, _, height, width, _ = state.recent.shape
        order = self.order_of((height, width))
        unknown = self.code_space.unknown(batch, 1, height, width, device=self.device)
        frames = bordered(torch.cat((state.recent, unknown), dim=1), self.code_space)
        places = nn.functional.pad(order.cells, (1, 0))
        own = neighbour_index(places, ((0, 0, 0),), height, width)[:, 0]
        states = [state] if guide is None else [state, guide]
        for number in range(order.num_waves):
            cells = order.wave(number)
            outs = []
            for index, one in enumerate(states):
                x, states[index] = self._cells(frames, one, cells, order)
                outs.append(x)
            drawn = self.head.draw(torch.cat(outs), partial(choose, cells))[:batch]
            digits = self.code_space.to_digits(self.code_space.from_sub_tokens(drawn))
            frames.flatten(1, 3)[:, own[cells]] = digits
        digits = frames[:, NUM_RECENT:, 1:-1, 1:-1]
        states = [self._after(one, digits) for one in states]
        codes = self.code_space.from_digits(digits)
        return codes, states[0], states[1] if guide is not None else None

    # One step

    def _advance(
        self,
        digits: Int[Tensor, "b j y x d"],
        state: GeneratorState,
        starts: Int[Tensor, " b"] | None = None,
    ) -> tuple[Float[Tensor, "b n c"], GeneratorState]:
        """Outputs at cells of further frames, and the state after them."""
        num_frames, height, width = digits.shape[1:4]
        order = self.order_of((height, width))
        frames = bordered(torch.cat((state.recent, digits), dim=1), self.code_space)
        x, state = self._cells(frames, state, slice(0, num_frames * order.num_cells), order, starts)
        return x, self._after(state, digits)

    def _cells(
        self,
        frames: Int[Tensor, "b u v w d"],
        state: GeneratorState,
        cells: slice,
        order: CellOrder,
        starts: Int[Tensor, " b"] | None = None,
    ) -> tuple[Float[Tensor, "b n c"], GeneratorState]:
        """Outputs at cells, numbered from the first of the next frame.

        `frames` are the recent ones and those that the cells lie in, with borders.
        """
        numbers = torch.arange(cells.start, cells.stop, device=self.device)
        places = order.places(numbers)
        time = places[:, 0]
        neighbours = neighbour_index(places, self.config.neighbours, order.height, order.width)
        seen = frames.flatten(1, 3)[:, neighbours]
        features = self.code_space.one_hot(seen, self.dtype).flatten(2)
        x = self.stem(features)
        first = (0 if starts is None else starts[:, None]) + state.num_frames + time == 0
        x = x + torch.where(first[..., None], self.first_frame.to(x.dtype), 0)
        if self.tokens is not None:
            x = x + self.tokens(places[:, 2]).to(x.dtype)
        state = self._forget(state, cells.start, order)
        angles = None
        if self.config.positions == "rotary":
            done = torch.tensor((state.num_frames, 0, 0), device=self.device)
            angles = self.angles_of(places + done)
        attend = self._attend(state, cells, order)
        x, past = self.transformer(x, angles, attend, state.past or None, state.condition)
        if not torch.is_grad_enabled():
            past = tuple(p if isinstance(p, Memory) else Memory.of(p) for p in past)
        return x, state._replace(past=past)

    def _attend(self, state: GeneratorState, cells: slice, order: CellOrder) -> Attend:
        """Attention of some cells over remembered ones and themselves."""
        done = state.num_frames * order.num_cells
        start, stop = done + cells.start, done + cells.stop
        window, rotary = self.config.window, self.config.positions == "rotary"
        first_seen = self._first_visible(stop - 1, order)
        if rotary and state.start >= first_seen:
            # All that is remembered is visible, apart from the order.
            if start == state.start:
                return attend_causal
            if stop - start == 1:
                return attend_all
            # Added to the scores: attention would turn a bool mask into this in every block.
            later = torch.full((stop - start, stop - start), float("-inf"), device=self.device)
            mask = nn.functional.pad(later.triu(1), (start - state.start, 0))
            return attend_masked(mask.to(self.dtype))
        queries = torch.arange(start, stop, device=self.device)[:, None]
        keys = torch.arange(state.start, stop, device=self.device)
        visible = keys <= queries
        if window is not None:
            waves = order.wave_of(queries) - order.wave_of(keys)
            visible &= waves < window * order.num_waves
        mask = torch.zeros(visible.shape, dtype=self.dtype, device=self.device)
        if not rotary:
            mask = -self._distance(queries, keys, order) * self.slopes[:, None, None].to(mask)
        return attend_masked(mask.masked_fill(~visible, float("-inf")))

    def _distance(self, queries: Tensor, keys: Tensor, order: CellOrder) -> Float[Tensor, "q k"]:
        """Distance of cells in the sequence, or along the grid's axes."""
        if self.config.positions == "alibi":
            return (queries - keys).to(self.dtype)
        steps = order.places(queries) - order.places(keys)
        return steps.abs().sum(dim=-1).to(self.dtype)

    def _first_visible(self, number: int, order: CellOrder) -> int:
        """The first cell that the window of cell `number` reaches."""
        if self.config.window is None:
            return 0
        frame, rest = divmod(number, order.num_cells)
        hidden = order.ends[bisect_right(order.ends, rest)]
        return max(0, (frame - self.config.window) * order.num_cells + hidden)

    def _forget(self, state: GeneratorState, first: int, order: CellOrder) -> GeneratorState:
        """Drops what no cell from `first` of the next frame sees."""
        start = self._first_visible(state.num_frames * order.num_cells + first, order)
        dropped = start - state.start
        if dropped <= 0 or not state.past:
            return state
        past = tuple(memory.without(dropped) for memory in state.past)
        return state._replace(past=past, start=start)

    def _after(self, state: GeneratorState, digits: Int[Tensor, "b j y x d"]) -> GeneratorState:
        recent = torch.cat((state.recent, digits), dim=1)[:, -NUM_RECENT:]
        return state._replace(num_frames=state.num_frames + digits.shape[1], recent=recent)

    def order_of(self, grid: Sequence[int]) -> CellOrder:
        """The order of the cells of a frame of this size."""
        return cell_order(self.config.order, *grid, device=self.device)

    def check_grid(self, grid: Sequence[int]) -> None:
        trained, count = self.config.grid, self.config.num_tokens
        if count is not None and (grid[0] != 1 or grid[1] > count):
            raise ValueError(
                f"codes of {grid[0]} rows and {grid[1]} columns: this generator takes parts of a "
                f"video as 1 row of up to {count} tokens"
            )
        if self.config.positions == "alibi" and trained and grid[1] != trained[1]:
            raise ValueError(
                f"the codes have {grid[1]} columns, the generator was built for {trained[1]}: "
                "distances along the sequence (positions='alibi') hold for that width only; take a "
                "crop as wide as the codes, or positions='grid_alibi'"
            )
