"""The 1-D tokenizer: as many tokens as asked for."""

from magvit2_pytorch.tokenizer_1d.model_1d import PRESETS_1D, AnyTokenizer, TokenCodes, Tokenizer1d
from magvit2_pytorch.tokenizer_1d.sequence_config import Tokenizer1dConfig

__all__ = ["PRESETS_1D", "AnyTokenizer", "TokenCodes", "Tokenizer1d", "Tokenizer1dConfig"]
