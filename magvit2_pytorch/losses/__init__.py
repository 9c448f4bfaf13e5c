"""Losses: functions of tensors to a scalar, and modules with state."""

from magvit2_pytorch.losses.adversarial import (
    ADVERSARIAL_LOSSES,
    GRADIENT_PENALTIES,
    AdversarialLoss,
    LeCamRegularizer,
    adaptive_weight_from_gradients,
    lecam_loss,
    one_centered_penalty,
    points_between,
    r1_penalty,
)
from magvit2_pytorch.losses.perceptual import PerceptualLoss, build_perceptual
from magvit2_pytorch.losses.reconstruction import RECONSTRUCTION_LOSSES, feature_matching_loss

__all__ = [
    "ADVERSARIAL_LOSSES",
    "GRADIENT_PENALTIES",
    "RECONSTRUCTION_LOSSES",
    "AdversarialLoss",
    "LeCamRegularizer",
    "PerceptualLoss",
    "adaptive_weight_from_gradients",
    "build_perceptual",
    "feature_matching_loss",
    "lecam_loss",
    "one_centered_penalty",
    "points_between",
    "r1_penalty",
]
