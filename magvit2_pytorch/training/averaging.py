"""The averaged tokenizer: weights that follow those in training, and are the ones to use."""

from ema_pytorch import EMA

from magvit2_pytorch.quantizers.continuous import STATISTICS
from magvit2_pytorch.tokenizer.model import VideoTokenizer
from magvit2_pytorch.training.config import TrainingConfig


def build_average(tokenizer: VideoTokenizer, config: TrainingConfig) -> EMA:
    """A copy of the tokenizer that moves towards it with every `update`."""
    return EMA(
        tokenizer,
        beta=config.ema_decay,
        update_every=config.ema_update_every,
        update_after_step=0,
        include_online_model=False,
        # Measured of the copy itself. Moving towards those of the tokenizer in training, which
        # nobody measured, they would come to say nothing while claiming to be known.
        ignore_names={f"quantizer.{name}" for name in STATISTICS},
    )
