"""Training of one discriminator: losses, optimizer and running means."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import NamedTuple

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor
from torch.optim import Adam

from magvit2_pytorch.discriminators.discriminator import (
    DISCRIMINATORS,
    Discriminator,
    DiscriminatorOutput,
    build_discriminator,
)
from magvit2_pytorch.functional import autocast
from magvit2_pytorch.losses.adversarial import ADVERSARIAL_LOSSES
from magvit2_pytorch.losses.reconstruction import feature_matching_loss
from magvit2_pytorch.losses.regularizers import GRADIENT_PENALTIES, LeCamRegularizer, points_between
from magvit2_pytorch.training.optimizer import build_adam, lr_scale
from magvit2_pytorch.training.state import (
    add_prefix,
    flatten_optimizer,
    restore_optimizer,
    select_prefix,
)
from magvit2_pytorch.training.training_config import TrainingConfig
from magvit2_pytorch.training.update import SkippedSteps, finite_or_nan
from magvit2_pytorch.types import Video


class AdversarialStep(NamedTuple):
    """Gradients and loss terms of one discriminator for a micro-batch."""

    adversarial_gradient: Float[Tensor, "b c t h w"] | None
    """Gradient of the unweighted adversarial loss with respect to the reconstruction; None before
    `adversarial_start_step`."""

    feature_matching_gradient: Float[Tensor, "b c t h w"] | None
    """Gradient of the weighted feature matching loss; None if it is not used."""

    terms: dict[str, Tensor]
    """Losses of generator and discriminator and mean logits, for the log."""

    weights: dict[str, float]


class RealAndFakeOutputs(NamedTuple):
    """Discriminator outputs for the real and the reconstructed clips."""

    real: DiscriminatorOutput
    fake: DiscriminatorOutput
    penalty_inputs: tuple[Tensor, ...]
    """Views at which the gradient penalty is computed; empty without a penalty."""

    penalty_logits: tuple[Tensor, ...]


class DiscriminatorTrainer:
    """Trains a discriminator with one forward pass per micro-batch for both sides.

    The tokenizer's side is a gradient with respect to the reconstruction. The discriminator's graph
    is therefore free before the tokenizer's backward pass begins.
    """

    def __init__(self, name: str, channels: int, config: TrainingConfig, accelerator: Accelerator):
        self.name = name
        self.config = config
        self.accelerator = accelerator
        options = getattr(config, f"{name}_discriminator") or {}
        discriminator = build_discriminator(name, channels, **options)
        self.loss = ADVERSARIAL_LOSSES[config.adversarial_loss]
        self.penalty = GRADIENT_PENALTIES[config.gradient_penalty]
        self.lecam = LeCamRegularizer().to(accelerator.device)
        optimizer = build_adam(
            Adam,
            [{"params": list(discriminator.parameters())}],
            config.discriminator_learning_rate,
            config.discriminator_betas,
        )
        self.module, self.optimizer = accelerator.prepare(discriminator, optimizer)
        self.skips = SkippedSteps()
        self._logits: list[tuple[Tensor, Tensor]] = []
        """Real and fake logits of the step's micro-batches so far, for the running means."""

    @property
    def network(self) -> Discriminator:
        """The discriminator without its wrapper for several processes."""
        return self.accelerator.unwrap_model(self.module)

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

    def compute_gradients(
        self,
        real: Video,
        recon: Video,
        step: int,
        generator: torch.Generator,
        accumulate: int = 1,
        sync: bool = True,
    ) -> AdversarialStep:
        """Adds to the discriminator's gradients and returns those for the reconstruction.

        `recon` is a leaf that requires a gradient.
        """
        penalized = self.has_penalty(step)
        with nullcontext() if sync else self.accelerator.no_sync(self.module):
            with autocast(real.device, "fp32" if penalized else self.config.precision):
                outputs = self._forward(real, recon, generator, penalized)
            result = self._generator_loss(recon, outputs, step)
            terms, weights = self._discriminator_loss(outputs)
            total = torch.stack([terms[name] * weights[name] for name in weights]).sum()
            self.accelerator.backward(total * finite_or_nan(total) / accumulate)
        terms |= result.terms
        terms[f"{self.name}_real_logit"] = _all_logits(outputs.real).mean()
        terms[f"{self.name}_fake_logit"] = _all_logits(outputs.fake).mean()
        detached = {name: term.detach() for name, term in terms.items()}
        return result._replace(terms=detached, weights=weights | result.weights)

    def _forward(
        self, real: Video, recon: Video, generator: torch.Generator, penalized: bool
    ) -> RealAndFakeOutputs:
        """One pass over real, reconstructed and penalty inputs, concatenated in the batch."""
        picks = self.network.pick(real, generator)
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
        output = self.module(tuple(torch.cat(views) for views in zip(*batches, strict=True)))
        outputs = [
            DiscriminatorOutput(*(tuple(x.chunk(len(batches))[i] for x in part) for part in output))
            for i in range(len(batches))
        ]
        penalty_output = outputs[0 if penalty_inputs is batches[0] else -1]
        return RealAndFakeOutputs(outputs[0], outputs[1], penalty_inputs, penalty_output.logits)

    def _generator_loss(
        self, recon: Video, outputs: RealAndFakeOutputs, step: int
    ) -> AdversarialStep:
        """Gradients, terms and weights of the tokenizer's losses alone."""
        weight, matching_weight = self.adversarial_weight(step), self.config.feature_matching_weight
        if weight == 0:
            return AdversarialStep(None, None, {}, {})
        real_logits = tuple(logits.detach() for logits in outputs.real.logits)
        loss = _mean_over_views(self.loss.generator, real_logits, outputs.fake.logits)
        adversarial = _gradient(loss, recon)
        terms, weights = ({f"{self.name}_adversarial": x} for x in (loss, weight))
        if matching_weight == 0:
            return AdversarialStep(adversarial, None, terms, weights)
        loss = feature_matching_loss(outputs.real.features, outputs.fake.features)
        terms[f"{self.name}_feature_matching"] = loss
        weights[f"{self.name}_feature_matching"] = matching_weight
        return AdversarialStep(
            adversarial, _gradient(loss * matching_weight, recon), terms, weights
        )

    def _discriminator_loss(
        self, outputs: RealAndFakeOutputs
    ) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Terms and weights of the discriminator's own losses."""
        name, config = self.name, self.config
        loss = _mean_over_views(self.loss.discriminator, outputs.real.logits, outputs.fake.logits)
        terms = {f"{name}_discriminator": loss}
        weights = {f"{name}_discriminator": 1.0}
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

    # Optimizer step

    def apply_gradients(self, step: int) -> dict[str, float]:
        """Clips finite gradients and takes a step; returns values to log.

        Gradients that are not finite skip the step, which then changes no weights, moments or
        running means.
        """
        config = self.config
        start = config.discriminator_start_step
        scale = lr_scale(
            step - start,
            max(config.num_train_steps - start, 1),
            config.warmup_steps,
            config.schedule,
            config.final_lr_fraction,
        )
        rate = config.discriminator_learning_rate * scale
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        limit = config.discriminator_max_grad_norm or float("inf")
        norm = float(self.accelerator.clip_grad_norm_(self.module.parameters(), limit))
        finite = norm < float("inf")  # false for NaN too
        if finite:
            self.optimizer.step()
        if finite and self._logits:
            self.lecam.update(*(torch.cat(side) for side in zip(*self._logits, strict=True)))
        self._logits.clear()
        self.optimizer.zero_grad(set_to_none=True)
        self.skips.count(finite)
        values = {"learning_rate": rate, "skipped_steps": self.skips.total}
        values |= {"grad_norm": norm} if finite else {}
        return {f"{self.name}_discriminator_{name}": value for name, value in values.items()}

    # State

    def state_dict(self) -> dict[str, Tensor]:
        """Weights, running means and the optimizer's moments, by name."""
        tensors = add_prefix(self.network.state_dict(), "discriminator")
        tensors |= add_prefix(self.lecam.state_dict(), "lecam")
        return tensors | flatten_optimizer(self.optimizer, "optimizer")

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        self.network.load_state_dict(select_prefix(tensors, "discriminator"))
        self.lecam.load_state_dict(select_prefix(tensors, "lecam"))
        restore_optimizer(self.optimizer, tensors, "optimizer")
        self._logits.clear()


def build_discriminator_trainers(
    channels: int, config: TrainingConfig, accelerator: Accelerator
) -> list[DiscriminatorTrainer]:
    """Build a trainer for each discriminator whose adversarial weight is not 0."""
    return [
        DiscriminatorTrainer(name, channels, config, accelerator)
        for name in DISCRIMINATORS
        if getattr(config, f"{name}_adversarial_weight") > 0
    ]


def _gradient(loss: Float[Tensor, ""], recon: Video) -> Video:
    """Gradient of the reconstruction; NaN if the loss is not finite."""
    # The discriminator's own backward pass uses the same graph again.
    return torch.autograd.grad(loss, recon, retain_graph=True)[0] * finite_or_nan(loss)


def _mean_over_views(
    loss: Callable[[Tensor, Tensor], Tensor], real: tuple[Tensor, ...], fake: tuple[Tensor, ...]
) -> Float[Tensor, ""]:
    """Mean loss over the views, independent of their number."""
    return torch.stack([loss(*pair) for pair in zip(real, fake, strict=True)]).mean()


def _all_logits(output: DiscriminatorOutput) -> Float[Tensor, "b n"]:
    """Logits of all views of each sample, flattened."""
    logits = [view.float().reshape(len(view), -1) for view in output.logits]
    return torch.cat(logits, dim=1)
