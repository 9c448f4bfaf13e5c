"""The video tokenizer: config, layers, model, presets."""

# Import the layers first: they register themselves in LAYERS, which the rest reads.
from magvit2_pytorch.tokenizer import layer_types, vidtok_layers
from magvit2_pytorch.tokenizer.layer_spec import LAYERS
from magvit2_pytorch.tokenizer.model import VideoTokenizer
from magvit2_pytorch.tokenizer.presets import PRESETS
from magvit2_pytorch.tokenizer.protocol import Tokenizer
from magvit2_pytorch.tokenizer.tiling import fit_tile_size
from magvit2_pytorch.tokenizer.tokenizer_config import TokenizerConfig

__all__ = [
    "LAYERS",
    "PRESETS",
    "Tokenizer",
    "TokenizerConfig",
    "VideoTokenizer",
    "fit_tile_size",
    "layer_types",
    "vidtok_layers",
]
