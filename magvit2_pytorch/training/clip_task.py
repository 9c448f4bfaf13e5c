"""Losses of frames that tasks on clips share."""

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from magvit2_pytorch.data.split import HeldOut
from magvit2_pytorch.data.user_clips import num_clips
from magvit2_pytorch.losses.adversarial import adaptive_weight_from_gradients
from magvit2_pytorch.quantizers.quantizer import Quantizer
from magvit2_pytorch.training.gan import build_discriminators
from magvit2_pytorch.training.objective import Loss, Objective, Reconstruction
from magvit2_pytorch.training.task import Best, MicroStep, Task
from magvit2_pytorch.training.training_config import TrainingConfig
from magvit2_pytorch.types import Clips, Video


class FrameLosses(NamedTuple):
    """Losses of frames, and their gradient."""

    loss: Loss
    proxy: Float[Tensor, ""]
    """Its derivative with respect to the frames is that of all their losses."""
    measured: dict[str, Tensor | float]
    """Losses and weights for the log."""


class ClipTask(Task):
    """A task whose model makes frames that are compared with real ones.

    `perceptual` takes such frames and real frames `b c t h w` and returns a scalar. `held_out`
    names the files of the held-out clips. Without a quantizer only frames have losses.
    """

    best = Best("valid/psnr", "max")
    shown = ("loss", "psnr")
    model: nn.Module

    def __init__(
        self,
        model: nn.Module,
        config: TrainingConfig,
        clips: tuple[Clips, Clips],
        perceptual: nn.Module | None,
        held_out: HeldOut | None,
        quantizer: Quantizer | None = None,
    ):
        self.model, self.config = model, config
        self.data, self.valid_data = clips
        self.perceptual, self.held_out = perceptual, held_out or {}
        self.objective = Objective(quantizer, config, perceptual)
        self.discriminators = build_discriminators(model.config.channels, config)
        self.frozen = {} if perceptual is None else {"perceptual network": perceptual}

    @property
    @abstractmethod
    def last_layer(self) -> list[Tensor]:
        """Weights at which adaptive weights compare gradients."""

    def frame_losses(self, video: Video, out: Reconstruction, micro: MicroStep) -> FrameLosses:
        """Losses of reconstructed frames by all networks; discriminators get their gradients.

        Losses are differentiated with respect to a detached copy of the frames. Their graphs are
        then free, and the sum of the gradients is backpropagated through the model once. An
        adaptive weight compares two of these gradients at the last layer, at the cost of that
        layer.
        """
        recon = out.recon.detach().float().requires_grad_()
        loss = self.objective(video, out._replace(recon=recon), micro.step, micro.generator)
        gradient = torch.autograd.grad(loss.recon_loss, recon)[0]
        total, measured = gradient, {}
        for discriminator in self.discriminators:
            if not discriminator.is_active(micro.step):
                continue
            result = discriminator.compute_gradients(video, recon, micro)
            measured |= result.measured
            unweighted = result.adversarial_gradient
            if unweighted is not None:
                weighted = discriminator.adversarial_weight(micro.step) * unweighted
                if self.config.adaptive_adversarial_weight:
                    # From the unweighted gradient: otherwise the weight and its ramp cancel out.
                    factor = self.adaptive_weight(out.recon, gradient, unweighted)
                    measured[f"{discriminator.name}_adaptive_weight"] = factor
                    weighted = factor * weighted
                total = total + weighted
            if result.feature_matching_gradient is not None:
                total = total + result.feature_matching_gradient
        error = (out.recon.detach().float() - video).square().mean()
        weights = {f"weight/{name}": weight for name, weight in loss.weights.items()}
        measured = {"mse": error} | loss.terms | weights | measured
        return FrameLosses(loss, (out.recon.float() * total).sum(), measured)

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

    def after_step(self, taken: frozenset[str]) -> None:
        for discriminator in self.discriminators:
            discriminator.after_step(discriminator.module_name in taken)

    def sizes(self, video: Video) -> dict[str, int]:
        return {"clips": video.shape[0], "frames": video.shape[0] * video.shape[2]}

    def end_log(self, means: Mapping[str, float]) -> dict[str, float | int]:
        return {"skipped_files": len(getattr(self.data, "skipped", ()))}

    def full_step(self, step: int) -> int:
        """The next step with discriminators, adversarial losses and gradient penalties."""
        if not self.discriminators:
            return step
        step = max(step, self.config.adversarial_start_step)
        every = self.config.gradient_penalty_every if self.config.gradient_penalty_weight else 1
        return step + (self.config.discriminator_start_step - step) % every

    def validation_rounds(self) -> int:
        counts = map(self._num_validated, self.held_out_clips().values())
        return max(-(-count // self.accelerator.num_processes) for count in counts)

    def held_out_clips(self) -> dict[str, Clips]:
        """Held-out clips by kind."""
        return {"clip": self.valid_data}

    def _num_validated(self, clips: Clips) -> int:
        limit, number = self.config.num_valid_clips, num_clips(clips)
        return limit if number is None else min(number, limit)


def _flatten(gradients: Iterable[Tensor | None]) -> Float[Tensor, " n"]:
    return torch.cat([g.float().flatten() for g in gradients if g is not None])
