"""Gradients of the tokenizer and the discriminators for one micro-batch."""

from collections.abc import Iterable

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor

from magvit2_pytorch.losses.adversarial import adaptive_weight_from_gradients
from magvit2_pytorch.tokenizer.model import VideoTokenizer
from magvit2_pytorch.training.gan import DiscriminatorTrainer
from magvit2_pytorch.training.meters import Meters
from magvit2_pytorch.training.objective import Objective, Reconstruction
from magvit2_pytorch.training.training_config import TrainingConfig
from magvit2_pytorch.training.update import finite_or_nan
from magvit2_pytorch.types import Video


class TokenizerGradients:
    """Gradients of a micro-batch with one backward pass through the tokenizer.

    Losses of the reconstruction are differentiated with respect to a detached copy of it. Their
    graphs are then free, and the sum of the gradients is backpropagated through the tokenizer once.
    An adaptive weight compares two of these gradients at the last layer, at the cost of that layer.
    """

    def __init__(
        self,
        tokenizer: VideoTokenizer,
        objective: Objective,
        discriminators: list[DiscriminatorTrainer],
        config: TrainingConfig,
        accelerator: Accelerator,
    ):
        self.objective = objective
        self.discriminators = discriminators
        self.accelerator = accelerator
        self.grad_accum_every = config.grad_accum_every
        self.adaptive = config.adaptive_adversarial_weight
        self.last_layer = [p for p in tokenizer.decoder.layers[-1].parameters() if p.ndim >= 2]

    def accumulate(
        self,
        video: Video,
        out: Reconstruction,
        step: int,
        generator: torch.Generator,
        meters: Meters,
        sync: bool = True,
    ) -> None:
        """Adds a micro-batch's gradients to all parameters; `sync` averages over processes."""
        recon = out.recon.detach().float().requires_grad_()
        loss = self.objective(video, out._replace(recon=recon), step, generator)
        gradient = torch.autograd.grad(loss.recon_loss, recon)[0]
        total = gradient
        for discriminator in self.discriminators:
            if not discriminator.is_active(step):
                continue
            result = discriminator.compute_gradients(
                video, recon, step, generator, self.grad_accum_every, sync
            )
            meters.add_terms(result.terms, result.weights)
            unweighted = result.adversarial_gradient
            if unweighted is not None:
                weighted = discriminator.adversarial_weight(step) * unweighted
                if self.adaptive:
                    # From the unweighted gradient: otherwise the weight and its ramp cancel out.
                    factor = self.adaptive_weight(out.recon, gradient, unweighted)
                    meters.add_terms({f"{discriminator.name}_adaptive_weight": factor})
                    weighted = factor * weighted
                total = total + weighted
            if result.feature_matching_gradient is not None:
                total = total + result.feature_matching_gradient
        # The derivative of `proxy` with respect to the reconstruction is `total`.
        proxy = (out.recon.float() * total).sum()
        finite = finite_or_nan(loss.total)
        self.accelerator.backward((proxy + loss.latent_loss) * finite / self.grad_accum_every)
        meters.add(video, out, loss)

    def adaptive_weight(
        self, recon: Video, reference: Video, adversarial: Video
    ) -> Float[Tensor, ""]:
        """Factor that gives `adversarial` the norm of `reference` at the last layer."""
        at_last_layer = (
            torch.autograd.grad(
                recon,
                self.last_layer,
                gradient.to(recon.dtype),
                retain_graph=True,
                allow_unused=True,
            )
            for gradient in (reference, adversarial)
        )
        return adaptive_weight_from_gradients(*map(_flatten, at_last_layer))


def _flatten(gradients: Iterable[Tensor | None]) -> Float[Tensor, " n"]:
    return torch.cat([g.float().flatten() for g in gradients if g is not None])
