"""Losses: functions of tensors to a scalar, and modules with state."""

from magvit2_pytorch.losses.adversarial import (
    ADVERSARIAL_LOSSES,
    AdversarialLoss,
    adaptive_weight_from_gradients,
)
from magvit2_pytorch.losses.perceptual import PerceptualLoss, build_perceptual
from magvit2_pytorch.losses.reconstruction import RECONSTRUCTION_LOSSES, feature_matching_loss
from magvit2_pytorch.losses.regularizers import (
    GRADIENT_PENALTIES,
    LeCamRegularizer,
    lecam_loss,
    one_centered_penalty,
    points_between,
    r1_penalty,
)

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
