"""Generators of codes: autoregressive, masked, and of residual levels."""

from magvit2_pytorch.generators.autoregressive import AutoregressiveGenerator
from magvit2_pytorch.generators.code_space import CodeSpace
from magvit2_pytorch.generators.generator import (
    GENERATOR_PRESETS,
    GENERATORS,
    GeneratorCondition,
    build_generator,
    load_generator,
)
from magvit2_pytorch.generators.masked import MaskedGenerator
from magvit2_pytorch.generators.residual_generator import ResidualGenerator
from magvit2_pytorch.generators.sampling import Sampling

__all__ = [
    "GENERATORS",
    "GENERATOR_PRESETS",
    "AutoregressiveGenerator",
    "CodeSpace",
    "GeneratorCondition",
    "MaskedGenerator",
    "ResidualGenerator",
    "Sampling",
    "build_generator",
    "load_generator",
]
