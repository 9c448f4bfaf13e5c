"""Parts that all generators share: configuration, conditions, and saved folders."""

import json
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from magvit2_pytorch.config import Presets, Registry, check_known, to_tuples
from magvit2_pytorch.generators.code_head import CodeHead, HeadName
from magvit2_pytorch.generators.code_space import CodeSpace
from magvit2_pytorch.generators.conditions import ConditionTokens, GeneratorCondition
from magvit2_pytorch.layers.rotary import axis_pairs
from magvit2_pytorch.layers.transformer import Transformer, TransformerSize
from magvit2_pytorch.tokenizer.pretrained import CONFIG_FILE, Pretrained

AXIS_WEIGHTS = (2, 3, 3)
"""Shares of the rotary channel pairs of frames, rows and columns."""


@dataclass(frozen=True, kw_only=True)
class GeneratorConfig:
    """Options that all generators have."""

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

    def __post_init__(self):
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}: give a number from 0 to below 1")

    @property
    def code_space(self) -> CodeSpace:
        return CodeSpace(self.levels, self.group)

    @property
    def size(self) -> TransformerSize:
        return TransformerSize(self.dim, self.depth, self.heads)

    def to_dict(self) -> dict[str, Any]:
        """Fields as plain JSON values."""
        return json.loads(json.dumps(asdict(self)))


CARD = """---
library_name: magvit2_pytorch
tags: [video-generation, magvit2]
---
A generator of video codes. Load it with

```python
from magvit2_pytorch.generators import load_generator

generator = load_generator("FOLDER")
```
"""


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
    card = CARD

    def __init__(self, **options: Any):
        super().__init__()
        known = [field.name for field in fields(self.config_class)]
        check_known(type(self).__name__, options, known)
        self.config = config = self.config_class(**to_tuples(options))
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
        """Mean negative log likelihood of a code in nats, and its terms by sub-token.

        `starts` are the numbers of the clips' first frames in their videos, `kept` is False where
        the condition is dropped. `context`, if given, is seen in place of the codes: with errors in
        it a model learns to go on from its own. `draws` makes random choices repeatable.
        """

    @abstractmethod
    def measure(
        self,
        codes: Int[Tensor, "b j y x *q"],
        num_context: int,
        condition: GeneratorCondition | None = None,
    ) -> dict[str, float]:
        """Numbers of a validation on the frames after the first `num_context`, by `measures`."""


GENERATORS: Registry[type[Generator]] = Registry("generator")

GENERATOR_PRESETS = Presets(Path(__file__).with_name("presets"))


def build_generator(kind: str, **options: Any) -> Generator:
    """A new generator of a registered kind."""
    return GENERATORS[kind](**options)


def load_generator(folder: str | Path) -> Generator:
    """A generator of any kind, in eval mode, from the folder that `save_pretrained` wrote."""
    file = Path(folder) / CONFIG_FILE
    if not file.is_file():
        raise FileNotFoundError(f"{folder} holds no {CONFIG_FILE}: was it written by training?")
    kind = json.loads(file.read_text(encoding="utf-8")).get("kind")
    if kind is None:
        raise ValueError(f"{folder} holds no generator: is it a tokenizer?")
    return GENERATORS[kind].from_pretrained(folder)
