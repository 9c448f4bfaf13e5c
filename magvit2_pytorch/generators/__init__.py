"""Generators of codes: autoregressive and masked."""

from magvit2_pytorch.generators.autoregressive import AutoregressiveGenerator
from magvit2_pytorch.generators.code_space import CodeSpace
from magvit2_pytorch.generators.conditions import GeneratorCondition
from magvit2_pytorch.generators.generator import GENERATORS, build_generator, load_generator
from magvit2_pytorch.generators.masked import MaskedGenerator
from magvit2_pytorch.generators.sampling import Sampling

__all__ = [
    "GENERATORS",
    "AutoregressiveGenerator",
    "CodeSpace",
    "GeneratorCondition",
    "MaskedGenerator",
    "Sampling",
    "build_generator",
    "load_generator",
]
