"""Parts that all generators share: configuration, conditions, and saved folders."""

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from magvit2_pytorch.config import Options, Presets, Registry
from magvit2_pytorch.generators.code_head import CodeHead, HeadName
from magvit2_pytorch.generators.code_space import CodeSpace
from magvit2_pytorch.generators.sampling import Sampling
from magvit2_pytorch.layers.arithmetic import Linear
from magvit2_pytorch.layers.rotary import axis_pairs, position_angles
from magvit2_pytorch.layers.transformer import Transformer, TransformerSize
from magvit2_pytorch.tokenizer.pretrained import CONFIG_FILE, Pretrained

AXIS_WEIGHTS = (2, 3, 3)
"""Shares of the rotary channel pairs of frames, rows and columns."""


@dataclass(frozen=True, kw_only=True)
class GeneratorConfig(Options):
    """Options that all generators have."""

    owner = "the generator"

    kind: str = ""
    """Kind of generator."""
    levels: tuple[tuple[int, ...], ...]
    """Number of values of each digit of a code, for each codebook; see `CodeSpace`."""
    group: int = 8
    """Digits are drawn together up to this product of their levels."""
    dim: int = 128
    """Width of the transformer."""
    depth: int = 4
    """Number of transformer blocks."""
    heads: int = 4
    """Attention heads."""
    dropout: float = 0.0
    """Dropout of the blocks' outputs; 0.1 if an epoch is repeated more than 20 times."""
    theta: float = 100.0
    """Base of the rotary frequencies; it suits distances of up to about a hundred cells."""
    head: HeadName = "chain"
    """Distribution of a code: `chain` is exact, `independent` a comparison; see `CodeHead`."""
    classes: tuple[str, ...] | None = None
    """Names of the classes to condition on."""
    text_dim: int | None = None
    """Channels of text features to condition on."""
    num_scalars: int | None = None
    """Number of scalars to condition on."""
    grid: tuple[int, int] | None = None
    """Rows and columns of the codes in training, for checks; training sets it."""
    tokenizer_fingerprint: str | None = None
    """Fingerprint of the tokenizer of the codes, for checks; training sets it."""
    num_tokens: int | None = None
    """Tokens of a part of a video, if the codes are those of a 1-D tokenizer: a part is then a
    frame of one row, and each place in it has a learned vector. Training sets it."""

    def __post_init__(self):
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}: give a number from 0 to below 1")
        if self.num_tokens is not None and self.num_tokens < 1:
            raise ValueError(f"num_tokens is {self.num_tokens}: give 1 or more, or None for grids")

    def to_dict(self) -> dict[str, Any]:
        """Fields as plain JSON values, without `num_tokens` if None.

        Versions that do not know it then read generators of grids, and what they compressed.
        """
        values = super().to_dict()
        return {key: values[key] for key in values if key != "num_tokens" or values[key]}

    @property
    def code_space(self) -> CodeSpace:
        return CodeSpace(self.levels, self.group)

    @property
    def size(self) -> TransformerSize:
        return TransformerSize(self.dim, self.depth, self.heads)


GENERATOR_PRESETS = Presets(Path(__file__).with_name("presets"))


class GeneratorCondition(NamedTuple):
    """Conditions of each sample; None where nothing is given."""

    classes: Int[Tensor, " b"] | None = None
    """Class numbers, from 0."""
    text: Float[Tensor, "b m e"] | None = None
    """Features of a text, or of anything else, from a network of the user's."""
    scalars: Float[Tensor, "b s"] | None = None
    """Numbers of about unit size, such as actions or a frame rate."""


class ConditionTokens(nn.Module):
    """Turns conditions into tokens, which all codes see.

    A condition that is not given, or is dropped in training, has a learned token in its place:
    classifier-free guidance compares with it.
    """

    def __init__(self, dim: int, num_classes: int, text_dim: int | None, num_scalars: int | None):
        super().__init__()
        self.num_classes = num_classes
        self.classes = None if not num_classes else nn.Embedding(num_classes, dim)
        self.text = None if text_dim is None else Linear(text_dim, dim)
        self.scalars = None
        if num_scalars is not None:
            self.scalars = nn.Sequential(Linear(num_scalars, dim), nn.GELU(), Linear(dim, dim))
        self.missing = nn.ParameterDict(
            {name: nn.Parameter(torch.randn(dim) * 0.02) for name in self.names}
        )

    @property
    def names(self) -> list[str]:
        """Names of the conditions that the model takes."""
        return [name for name in GeneratorCondition._fields if getattr(self, name) is not None]

    def forward(
        self,
        batch: int,
        condition: GeneratorCondition | None,
        kept: Bool[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b m c"] | None:
        """Tokens of `batch` samples; without `kept`, a condition is dropped.

        None if the model takes no conditions. Raises `ValueError` for a condition that the model
        does not take or that does not fit.
        """
        condition = condition or GeneratorCondition()
        self._check(batch, condition)
        tokens = [self._tokens(name, getattr(condition, name), batch, kept) for name in self.names]
        return torch.cat(tokens, dim=1) if tokens else None

    def _tokens(self, name: str, value: Tensor | None, batch: int, kept: Tensor | None) -> Tensor:
        missing = self.missing[name]
        if value is None:
            return missing.expand(batch, 1, -1)
        tokens = getattr(self, name)(value)
        if tokens.ndim == 2:
            tokens = tokens[:, None]
        return tokens if kept is None else torch.where(kept[:, None, None], tokens, missing)

    def _check(self, batch: int, condition: GeneratorCondition) -> None:
        for name, value in condition._asdict().items():
            if value is None:
                continue
            if name not in self.names:
                raise ValueError(
                    f"this generator takes no {name}: it was built with {self.names or 'none'}"
                )
            if value.shape[0] != batch:
                raise ValueError(f"{name} are for {value.shape[0]} samples, codes for {batch}")
        if condition.classes is not None and batch:
            low, high = int(condition.classes.min()), int(condition.classes.max())
            if low < 0 or high >= self.num_classes:
                raise ValueError(
                    f"classes range from {low} to {high}: this generator has {self.num_classes}"
                )


State = Any
"""State of a generator after earlier frames; each kind of generator has its own class."""


class Generator(Pretrained, nn.Module, ABC):
    """A model of codes.

    Codes are `b j y x`, or `b j y x q` with several codebooks or residual levels. Options are the
    fields of the generator's config, as keyword arguments. It knows no tokenizer: whoever calls it
    decodes its codes.
    """

    config_class: ClassVar[type[GeneratorConfig]]
    config: GeneratorConfig
    measures: ClassVar[tuple[str, ...]] = ("bits",)
    """Names of the numbers that `measure` returns."""
    presets = GENERATOR_PRESETS
    tag = "video-generation"

    def __init__(self, **options: Any):
        super().__init__()
        self.config = config = self.config_class.from_dict(options)
        self.code_space = config.code_space
        self.pairs = axis_pairs(config.size.dim_head // 2, AXIS_WEIGHTS)
        self.head = CodeHead(config.dim, self.code_space, config.head)
        self.conditions = ConditionTokens(
            config.dim, len(config.classes or ()), config.text_dim, config.num_scalars
        )
        self.transformer = Transformer(config.size, config.dropout, bool(self.conditions.names))

    def forward(self, *args: Any, **options: Any) -> tuple[Tensor, Tensor]:
        """The same as `loss`, for wrappers of modules."""
        return self.loss(*args, **options)

    @abstractmethod
    def loss(
        self,
        codes: Int[Tensor, "b j y x *q"],
        condition: GeneratorCondition | None = None,
        *,
        kept: Bool[Tensor, " b"] | None = None,
        starts: Int[Tensor, " b"] | None = None,
        context: Int[Tensor, "b j y x *q"] | None = None,
        draws: torch.Generator | None = None,
    ) -> tuple[Float[Tensor, ""], Float[Tensor, " g"]]:
        """Mean negative log likelihood of a code in nats, by sub-token.

        `starts` are the numbers of the clips' first frames in their videos, `kept` is False where
        the condition is dropped. `context`, if given, is seen in place of the codes: with errors in
        it a model learns to go on from its own. `draws` makes random choices repeatable.
        """

    def check_grid(self, grid: Sequence[int]) -> None:
        """Raises `ValueError` unless it takes codes of so many rows and columns."""

    @abstractmethod
    def measure(
        self,
        codes: Int[Tensor, "b j y x *q"],
        num_context: int,
        condition: GeneratorCondition | None = None,
    ) -> dict[str, float]:
        """Numbers named by `measures`, of frames after the first `num_context`."""

    # Frame by frame

    @abstractmethod
    def begin(
        self,
        batch: int,
        grid: Sequence[int],
        condition: GeneratorCondition | None = None,
        kept: Bool[Tensor, " b"] | None = None,
    ) -> State:
        """The state before the first frame of `grid` (rows, columns)."""

    @abstractmethod
    def read(self, codes: Int[Tensor, "b j y x *q"], state: State) -> State:
        """The state after given frames, such as those of a prompt."""

    @abstractmethod
    def next_frame(
        self,
        state: State,
        sampling: Sampling = Sampling(),
        samples: Int[Tensor, " b"] | None = None,
        guide: State | None = None,
    ) -> tuple[Int[Tensor, "b 1 y x *q"], State, State | None]:
        """Draws the next frame; returns its codes and the states after it.

        `samples` are the samples' numbers, which choose their random draws; by default from 0.
        `guide` is the state without condition for classifier-free guidance: it sees the same codes.
        """

    def angles_of(self, cells: Int[Tensor, "n 3"]) -> Float[Tensor, "n f"]:
        """Rotary angles of cells by frame, row and column."""
        return position_angles(cells, self.pairs, self.config.theta, self.dtype)


GENERATORS: Registry[type[Generator]] = Registry("generator")


def build_generator(kind: str, **options: Any) -> Generator:
    """A new generator of a registered kind."""
    return GENERATORS[kind](**options)


def load_generator(folder: str | Path) -> Generator:
    """A saved generator of any kind, in eval mode."""
    file = Path(folder) / CONFIG_FILE
    if not file.is_file():
        raise FileNotFoundError(f"{folder} holds no {CONFIG_FILE}: was it written by training?")
    kind = json.loads(file.read_text(encoding="utf-8")).get("kind")
    if kind is None:
        raise ValueError(f"{folder} holds no generator: is it a tokenizer?")
    return GENERATORS[kind].from_pretrained(folder)
