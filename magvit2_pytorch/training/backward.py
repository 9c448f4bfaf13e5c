"""Gradients of the tokenizer and of discriminators, from one forward pass of each."""

from collections.abc import Iterable

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor

from magvit2_pytorch.losses import adaptive_weight_from_gradients
from magvit2_pytorch.tokenizer.model import VideoTokenizer
from magvit2_pytorch.training.adversary import Adversary
from magvit2_pytorch.training.config import TrainingConfig
from magvit2_pytorch.training.meters import Meters
from magvit2_pytorch.training.not_finite import finite_or_nan
from magvit2_pytorch.training.objective import Objective, Reconstruction
from magvit2_pytorch.types import Video


class Backward:
    """What looks at the picture sends its gradient to a copy of the reconstruction.

    The tokenizer's backward pass starts from their sum, when all their graphs are gone. Adaptive
    weights see each gradient by itself on the way, for the price of the last layer.
    """

    def __init__(
        self,
        tokenizer: VideoTokenizer,
        objective: Objective,
        adversaries: list[Adversary],
        config: TrainingConfig,
        accelerator: Accelerator,
    ):
        self.objective = objective
        self.adversaries = adversaries
        self.accelerator = accelerator
        self.accumulate = config.grad_accum_every
        self.adaptive = config.adaptive_adversarial_weight
        self.last_layer = [p for p in tokenizer.decoder.layers[-1].parameters() if p.ndim >= 2]

    def __call__(
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
        gradient = torch.autograd.grad(loss.picture, recon)[0]
        total = gradient
        for adversary in self.adversaries:
            if not adversary.runs(step):
                continue
            verdict = adversary.judge(video, recon, step, generator, self.accumulate, sync)
            meters.add_terms(verdict.terms, verdict.weights)
            if verdict.adversarial is not None:
                pull = adversary.adversarial_weight(step) * verdict.adversarial
                if self.adaptive:
                    # Of the loss without its weight, which would cancel out with the ramp.
                    factor = self.adaptive_weight(out.recon, gradient, verdict.adversarial)
                    meters.add_terms({f"{adversary.name}_adaptive_weight": factor})
                    pull = factor * pull
                total = total + pull
            if verdict.feature_matching is not None:
                total = total + verdict.feature_matching
        # Its derivative with respect to the reconstruction is `total`.
        proxy = (out.recon.float() * total).sum()
        sound = finite_or_nan(loss.total)
        self.accelerator.backward((proxy + loss.code) * sound / self.accumulate)
        meters.add(video, out, loss)

    def adaptive_weight(
        self, recon: Video, reference: Video, adversarial: Video
    ) -> Float[Tensor, ""]:
        """The factor that makes `adversarial` as long as `reference` at the last layer."""
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
        return adaptive_weight_from_gradients(*map(_flat, at_last_layer))


def _flat(gradients: Iterable[Tensor | None]) -> Float[Tensor, " n"]:
    return torch.cat([g.float().flatten() for g in gradients if g is not None])
