"""Exponential moving average of the tokenizer's weights."""

from ema_pytorch import EMA

from magvit2_pytorch.quantizers.continuous import STATISTICS
from magvit2_pytorch.tokenizer.model import VideoTokenizer
from magvit2_pytorch.training.config import TrainingConfig


def build_ema(tokenizer: VideoTokenizer, config: TrainingConfig) -> EMA:
    """A copy of the tokenizer whose weights `update` moves towards it."""
    return EMA(
        tokenizer,
        beta=config.ema_decay,
        update_every=config.ema_update_every,
        update_after_step=0,
        include_online_model=False,
        # Latent statistics are measured on the copy itself. The tokenizer in training has none:
        # averaging would move the copy's towards meaningless values that still count as measured.
        ignore_names={f"quantizer.{name}" for name in STATISTICS},
    )
