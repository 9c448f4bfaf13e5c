"""One discriminator with all that belongs to it: its losses, its optimizer, its memory."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import NamedTuple

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor
from torch.optim import Adam

from magvit2_pytorch.discriminators import DISCRIMINATORS, DiscriminatorOutput, build_discriminator
from magvit2_pytorch.functional import autocast
from magvit2_pytorch.losses import (
    ADVERSARIAL_LOSSES,
    GRADIENT_PENALTIES,
    LeCamRegularizer,
    feature_matching_loss,
    points_between,
)
from magvit2_pytorch.training.config import TrainingConfig
from magvit2_pytorch.training.not_finite import SkippedSteps, finite_or_nan
from magvit2_pytorch.training.optimizer import build_adam
from magvit2_pytorch.training.schedule import lr_scale
from magvit2_pytorch.training.state import (
    flatten_optimizer,
    restore_optimizer,
    under,
    with_prefix,
)
from magvit2_pytorch.types import Video


class AdversarialStep(NamedTuple):
    """What one discriminator made of a micro-batch."""

    adversarial: Float[Tensor, "b c t h w"] | None
    """Gradient of the adversarial loss with respect to the reconstruction, without its weight;
    None while the tokenizer does not feel it."""

    feature_matching: Float[Tensor, "b c t h w"] | None
    """Gradient of the weighted feature matching; None where there is none."""

    terms: dict[str, Tensor]
    """Losses of both sides and mean logits, for the log."""

    weights: dict[str, float]


class Seen(NamedTuple):
    """Both sides of a micro-batch as the discriminator judged them."""

    real: DiscriminatorOutput
    fake: DiscriminatorOutput
    steep: tuple[Tensor, ...]
    """The views where a penalty wants its gradient; none where there is no penalty."""

    steep_logits: tuple[Tensor, ...]


class Adversary:
    """Judges real and reconstructed clips in one forward pass that serves both sides.

    The tokenizer's side is a gradient with respect to the reconstruction, so that the
    discriminator's graph is gone before the tokenizer's backward pass begins.
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
    def discriminator(self) -> torch.nn.Module:
        """The module itself, without what wraps it for several processes."""
        return self.accelerator.unwrap_model(self.module)

    # When

    def runs(self, step: int) -> bool:
        return step >= self.config.discriminator_start_step

    def adversarial_weight(self, step: int) -> float:
        """How much the tokenizer feels it: 0 before its start, then up a ramp."""
        config = self.config
        since = step - config.adversarial_start_step
        if since < 0:
            return 0.0
        ramp = min(1.0, (since + 1) / (config.adversarial_ramp_steps + 1))
        return ramp * getattr(config, f"{self.name}_adversarial_weight")

    def penalizes(self, step: int) -> bool:
        since = step - self.config.discriminator_start_step
        return self.config.gradient_penalty_weight > 0 and (
            since % self.config.gradient_penalty_every == 0
        )

    # A micro-batch

    def judge(
        self,
        real: Video,
        recon: Video,
        step: int,
        generator: torch.Generator,
        accumulate: int = 1,
        sync: bool = True,
    ) -> AdversarialStep:
        """Looks once at both, and adds to its own gradients. `recon` is a leaf with gradient."""
        penalizes = self.penalizes(step)
        with nullcontext() if sync else self.accelerator.no_sync(self.module):
            with autocast(real.device, "fp32" if penalizes else self.config.precision):
                seen = self._look(real, recon, generator, penalizes)
            felt = self._felt(recon, seen, step)
            terms, own_weights = self._own_loss(seen)
            total = torch.stack([terms[name] * own_weights[name] for name in own_weights]).sum()
            self.accelerator.backward(total * finite_or_nan(total) / accumulate)
        terms |= felt.terms
        terms[f"{self.name}_real_logit"] = _flat(seen.real).mean()
        terms[f"{self.name}_fake_logit"] = _flat(seen.fake).mean()
        detached = {name: term.detach() for name, term in terms.items()}
        return felt._replace(terms=detached, weights=own_weights | felt.weights)

    def _look(self, real: Video, recon: Video, generator: torch.Generator, penalizes: bool) -> Seen:
        """One pass over everything, side by side in the batch."""
        picks = self.discriminator.pick(real, generator)
        real_views = self.discriminator.views(real, picks)
        fake_views = self.discriminator.views(recon, picks)
        steep = ()
        sides = [real_views, fake_views]
        if penalizes and self.config.gradient_penalty == "r1":
            steep = sides[0] = tuple(view.detach().requires_grad_() for view in real_views)
        elif penalizes:
            steep = tuple(points_between(*pair) for pair in zip(*sides, strict=True))
            sides.append(steep)
        judgement = self.module(tuple(torch.cat(views) for views in zip(*sides, strict=True)))
        judged = [
            DiscriminatorOutput(
                *(tuple(x.chunk(len(sides))[i] for x in part) for part in judgement)
            )
            for i in range(len(sides))
        ]
        where_steep = judged[0 if steep is sides[0] else -1]
        return Seen(judged[0], judged[1], steep, where_steep.logits)

    def _felt(self, recon: Video, seen: Seen, step: int) -> AdversarialStep:
        """The tokenizer's side, with its terms and weights alone."""
        weight, matching_weight = self.adversarial_weight(step), self.config.feature_matching_weight
        if weight == 0:
            return AdversarialStep(None, None, {}, {})
        real_logits = tuple(logits.detach() for logits in seen.real.logits)
        loss = _mean_over_views(self.loss.generator, real_logits, seen.fake.logits)
        adversarial = _gradient(loss, recon)
        terms, weights = ({f"{self.name}_adversarial": x} for x in (loss, weight))
        if matching_weight == 0:
            return AdversarialStep(adversarial, None, terms, weights)
        loss = feature_matching_loss(seen.real.features, seen.fake.features)
        terms[f"{self.name}_feature_matching"] = loss
        weights[f"{self.name}_feature_matching"] = matching_weight
        return AdversarialStep(
            adversarial, _gradient(loss * matching_weight, recon), terms, weights
        )

    def _own_loss(self, seen: Seen) -> tuple[dict[str, Tensor], dict[str, float]]:
        name, config = self.name, self.config
        loss = _mean_over_views(self.loss.discriminator, seen.real.logits, seen.fake.logits)
        terms = {f"{name}_discriminator": loss}
        weights = {f"{name}_discriminator": 1.0}
        if config.lecam_loss_weight > 0:
            real, fake = _flat(seen.real), _flat(seen.fake)
            # Its means are those before this step, as no micro-batch knows the ones to come.
            self._logits.append((real.detach().flatten(), fake.detach().flatten()))
            terms[f"{name}_lecam"] = self.lecam(real, fake)
            weights[f"{name}_lecam"] = config.lecam_loss_weight
        if seen.steep:
            terms[f"{name}_gradient_penalty"] = self.penalty(seen.steep, seen.steep_logits)
            every = config.gradient_penalty_every
            weights[f"{name}_gradient_penalty"] = config.gradient_penalty_weight * every
        return terms, weights

    # A step

    def apply_gradients(self, step: int) -> dict[str, float]:
        """Clips and steps, unless a loss or gradient is not finite; returns what to log.

        A step that is left out leaves weights, moments and running means as they were.
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
        tensors = with_prefix(self.discriminator.state_dict(), "discriminator")
        tensors |= with_prefix(self.lecam.state_dict(), "lecam")
        return tensors | flatten_optimizer(self.optimizer, "optimizer")

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        self.discriminator.load_state_dict(under(tensors, "discriminator"))
        self.lecam.load_state_dict(under(tensors, "lecam"))
        restore_optimizer(self.optimizer, tensors, "optimizer")
        self._logits.clear()


def build_adversaries(
    channels: int, config: TrainingConfig, accelerator: Accelerator
) -> list[Adversary]:
    """Those whose weight is not zero."""
    return [
        Adversary(name, channels, config, accelerator)
        for name in DISCRIMINATORS
        if getattr(config, f"{name}_adversarial_weight") > 0
    ]


def _gradient(loss: Float[Tensor, ""], recon: Video) -> Video:
    """With respect to the reconstruction, not finite where the loss is not."""
    # The discriminator's own backward pass needs the same graph once more.
    return torch.autograd.grad(loss, recon, retain_graph=True)[0] * finite_or_nan(loss)


def _mean_over_views(
    loss: Callable[[Tensor, Tensor], Tensor], real: tuple[Tensor, ...], fake: tuple[Tensor, ...]
) -> Float[Tensor, ""]:
    """The mean, so that the number of views changes no weight."""
    return torch.stack([loss(*pair) for pair in zip(real, fake, strict=True)]).mean()


def _flat(judgement: DiscriminatorOutput) -> Float[Tensor, "b n"]:
    """All logits of a sample, of all views."""
    logits = [view.float().reshape(len(view), -1) for view in judgement.logits]
    return torch.cat(logits, dim=1)
