"""Losses of a discriminator, and the gradients that it gives a reconstruction."""

from itertools import starmap
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from magvit2_pytorch.discriminators.discriminator import (
    DISCRIMINATORS,
    Discriminator,
    DiscriminatorOutput,
    build_discriminator,
)
from magvit2_pytorch.functional import autocast
from magvit2_pytorch.losses.adversarial import (
    ADVERSARIAL_LOSSES,
    GRADIENT_PENALTIES,
    LeCamRegularizer,
    points_between,
)
from magvit2_pytorch.losses.reconstruction import feature_matching_loss
from magvit2_pytorch.training.task import MicroStep, Trainable, finite_or_nan
from magvit2_pytorch.training.training_config import TrainingConfig
from magvit2_pytorch.types import Video


class AdversarialStep(NamedTuple):
    """Gradients and measurements of one discriminator for a micro-batch."""

    adversarial_gradient: Float[Tensor, "b c t h w"] | None
    """Gradient of the unweighted adversarial loss with respect to the reconstruction; None before
    `adversarial_start_step`."""
    feature_matching_gradient: Float[Tensor, "b c t h w"] | None
    """Gradient of the weighted feature matching loss; None if it is not used."""
    measured: dict[str, Tensor | float]
    """Losses of generator and discriminator, mean logits and weights, for the log."""


class RealAndFakeOutputs(NamedTuple):
    """Discriminator outputs for the real and the reconstructed clips."""

    real: DiscriminatorOutput
    fake: DiscriminatorOutput
    penalty_inputs: tuple[Tensor, ...]
    """Views at which the gradient penalty is computed; empty without a penalty."""

    penalty_logits: tuple[Tensor, ...]


class DiscriminatorLosses:
    """A discriminator and its losses, from one forward pass per micro-batch."""

    def __init__(self, name: str, channels: int, config: TrainingConfig):
        self.name, self.config = name, config
        self.module_name = f"{name}_discriminator"
        """Its name among trained modules and in the log."""
        options = getattr(config, self.module_name) or {}
        self.network: Discriminator = build_discriminator(name, channels, **options)
        self.loss = ADVERSARIAL_LOSSES[config.adversarial_loss]
        self.penalty = GRADIENT_PENALTIES[config.gradient_penalty]
        self.lecam = LeCamRegularizer()
        self._logits: list[tuple[Tensor, Tensor]] = []
        """Real and fake logits of the step's micro-batches so far, for the running means."""

    def trainable(self) -> Trainable:
        """The discriminator as a module that is trained."""
        return Trainable(
            module=self.network,
            options=self.config.discriminator_optimizer_options(),
            companions={"lecam": self.lecam},
            fixed_options=(self.module_name,),
            option_prefix="discriminator_",
        )

    # Schedule

    def is_active(self, step: int) -> bool:
        return step >= self.config.discriminator_start_step

    def adversarial_weight(self, step: int) -> float:
        """Weight of the tokenizer's adversarial loss: 0, a ramp, then constant."""
        config = self.config
        steps_since_start = step - config.adversarial_start_step
        if steps_since_start < 0:
            return 0.0
        ramp = min(1.0, (steps_since_start + 1) / (config.adversarial_ramp_steps + 1))
        return ramp * getattr(config, f"{self.name}_adversarial_weight")

    def has_penalty(self, step: int) -> bool:
        steps_since_start = step - self.config.discriminator_start_step
        return self.config.gradient_penalty_weight > 0 and (
            steps_since_start % self.config.gradient_penalty_every == 0
        )

    # Gradients of a micro-batch

    def compute_gradients(self, real: Video, recon: Video, micro: MicroStep) -> AdversarialStep:
        """Adds to the discriminator's gradients; returns those for `recon`, a leaf."""
        penalized = self.has_penalty(micro.step)
        with autocast(real.device, "fp32" if penalized else self.config.precision):
            outputs = self._forward(real, recon, micro, penalized)
        result = self._generator_loss(recon, outputs, micro.step)
        # The mean over views does not depend on their number.
        views = zip(outputs.real.logits, outputs.fake.logits, strict=True)
        loss = torch.stack([*starmap(self.loss.discriminator, views)]).mean()
        terms, weights = self._regularizers(outputs)
        terms, weights = {self.module_name: loss} | terms, {self.module_name: 1.0} | weights
        micro.backward(torch.stack([terms[name] * weights[name] for name in weights]).sum())
        terms[f"{self.name}_real_logit"] = _all_logits(outputs.real).mean()
        terms[f"{self.name}_fake_logit"] = _all_logits(outputs.fake).mean()
        measured = {name: term.detach() for name, term in terms.items()}
        measured |= {f"weight/{name}": weight for name, weight in weights.items()}
        return result._replace(measured=measured | result.measured)

    def _forward(
        self, real: Video, recon: Video, micro: MicroStep, penalized: bool
    ) -> RealAndFakeOutputs:
        """One pass over real, reconstructed and penalty inputs, concatenated in the batch."""
        picks = self.network.pick(real, micro.generator)
        real_views = self.network.views(real, picks)
        fake_views = self.network.views(recon, picks)
        penalty_inputs = ()
        batches = [real_views, fake_views]
        if penalized and self.config.gradient_penalty == "r1":
            penalty_inputs = tuple(view.detach().requires_grad_() for view in real_views)
            batches[0] = penalty_inputs
        elif penalized:
            penalty_inputs = tuple(points_between(*pair) for pair in zip(*batches, strict=True))
            batches.append(penalty_inputs)
        views = tuple(torch.cat(views) for views in zip(*batches, strict=True))
        output = micro.modules[self.module_name](views)
        outputs = [
            DiscriminatorOutput(*(tuple(x.chunk(len(batches))[i] for x in part) for part in output))
            for i in range(len(batches))
        ]
        penalty_output = outputs[0 if penalty_inputs is batches[0] else -1]
        return RealAndFakeOutputs(outputs[0], outputs[1], penalty_inputs, penalty_output.logits)

    def _generator_loss(
        self, recon: Video, outputs: RealAndFakeOutputs, step: int
    ) -> AdversarialStep:
        """Gradients and measurements of the model's losses alone."""
        weight, matching_weight = self.adversarial_weight(step), self.config.feature_matching_weight
        if weight == 0:
            return AdversarialStep(None, None, {})
        name = f"{self.name}_adversarial"
        real_logits = tuple(logits.detach() for logits in outputs.real.logits)
        views = zip(real_logits, outputs.fake.logits, strict=True)
        loss = torch.stack([*starmap(self.loss.generator, views)]).mean()
        adversarial = _gradient(loss, recon)
        measured = {name: loss.detach(), f"weight/{name}": weight}
        if matching_weight == 0:
            return AdversarialStep(adversarial, None, measured)
        name = f"{self.name}_feature_matching"
        loss = feature_matching_loss(outputs.real.features, outputs.fake.features)
        measured |= {name: loss.detach(), f"weight/{name}": matching_weight}
        return AdversarialStep(adversarial, _gradient(loss * matching_weight, recon), measured)

    def _regularizers(
        self, outputs: RealAndFakeOutputs
    ) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Terms and weights of the discriminator's regularizers."""
        name, config = self.name, self.config
        terms, weights = {}, {}
        if config.lecam_loss_weight > 0:
            real, fake = _all_logits(outputs.real), _all_logits(outputs.fake)
            # The means do not include this step: a micro-batch does not know the later ones.
            self._logits.append((real.detach().flatten(), fake.detach().flatten()))
            terms[f"{name}_lecam"] = self.lecam(real, fake)
            weights[f"{name}_lecam"] = config.lecam_loss_weight
        if outputs.penalty_inputs:
            terms[f"{name}_gradient_penalty"] = self.penalty(
                outputs.penalty_inputs, outputs.penalty_logits
            )
            every = config.gradient_penalty_every
            weights[f"{name}_gradient_penalty"] = config.gradient_penalty_weight * every
        return terms, weights

    def after_step(self, taken: bool) -> None:
        """Updates the running means, unless the step was skipped."""
        if taken and self._logits:
            self.lecam.update(*(torch.cat(side) for side in zip(*self._logits, strict=True)))
        self._logits.clear()


def build_discriminators(channels: int, config: TrainingConfig) -> list[DiscriminatorLosses]:
    """Build each discriminator whose adversarial weight is not 0."""
    return [
        DiscriminatorLosses(name, channels, config)
        for name in DISCRIMINATORS
        if getattr(config, f"{name}_adversarial_weight") > 0
    ]


def _gradient(loss: Float[Tensor, ""], recon: Video) -> Video:
    """Gradient of the reconstruction; NaN if the loss is not finite."""
    # The discriminator's own backward pass uses the same graph again.
    return torch.autograd.grad(loss, recon, retain_graph=True)[0] * finite_or_nan(loss)


def _all_logits(output: DiscriminatorOutput) -> Float[Tensor, "b n"]:
    """Logits of all views of each sample, flattened."""
    logits = [view.float().reshape(len(view), -1) for view in output.logits]
    return torch.cat(logits, dim=1)
