"""Conditions of a generator, as tokens that all codes attend to."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from magvit2_pytorch.layers.arithmetic import Linear


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
        """Tokens of `batch` samples; `kept` is False for samples whose condition is dropped.

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
