"""Construction of the quantizer from a configuration."""

from magvit2_pytorch.quantizers import FSQ, LFQ, Continuous, Quantizer
from magvit2_pytorch.tokenizer.config import TokenizerConfig


def build_quantizer(config: TokenizerConfig) -> Quantizer:
    """Continuous, FSQ or LFQ quantizer; the config ensures that one is chosen."""
    if config.continuous_dim is not None:
        return Continuous(
            config.continuous_dim, kl=config.use_kl, kl_loss_weight=config.kl_loss_weight
        )
    if config.use_fsq:
        return FSQ(config.fsq_levels, num_codebooks=config.num_codebooks)
    return LFQ(
        config.codebook_size,
        num_codebooks=config.num_codebooks,
        entropy_loss_weight=config.lfq_entropy_loss_weight,
        commitment_loss_weight=config.lfq_commitment_loss_weight,
        diversity_gamma=config.lfq_diversity_gamma,
        temperature=config.lfq_temperature,
        entropy_eps=config.lfq_entropy_eps,
        entropy_anneal_factor=config.lfq_entropy_anneal_factor,
        entropy_anneal_steps=config.lfq_entropy_anneal_steps,
        spherical=config.lfq_spherical,
        norm=config.lfq_norm,
        soft_clamp=config.lfq_soft_clamp_input_value,
        bit_order=config.lfq_bit_order,
    )
