"""Losses of frames that tasks on clips share."""

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from magvit2_pytorch.data.split import HeldOut
from magvit2_pytorch.data.user_clips import num_clips
from magvit2_pytorch.discriminators.discriminator import gather_frames, pick_frames
from magvit2_pytorch.functional import autocast
from magvit2_pytorch.losses.adversarial import adaptive_weight_from_gradients
from magvit2_pytorch.losses.perceptual import build_perceptual
from magvit2_pytorch.losses.reconstruction import RECONSTRUCTION_LOSSES
from magvit2_pytorch.metrics.codebook import CodebookUsage
from magvit2_pytorch.quantizers.quantizer import Quantizer
from magvit2_pytorch.training.gan import build_discriminators
from magvit2_pytorch.training.task import Best, MicroStep, PretrainedTask, Trainable
from magvit2_pytorch.training.training_config import TrainingConfig
from magvit2_pytorch.training.validation import Example, running_quality, write_examples
from magvit2_pytorch.types import Clips, Codes, Latents, Video


class Reconstruction(NamedTuple):
    """Outputs of a model's forward pass from which losses are computed."""

    recon: Video
    latents: Latents | None = None
    codes: Codes | None = None
    quantizer_terms: Mapping[str, Tensor] = MappingProxyType({})
    quantized: Latents | None = None


class Loss(NamedTuple):
    """Loss in two parts, and the named terms of their weighted sums."""

    recon_loss: Float[Tensor, ""]
    """Losses of the reconstruction: reconstruction and perceptual loss."""

    latent_loss: Float[Tensor, ""]
    """Losses of the latents: those of the quantizer."""

    terms: dict[str, Tensor]
    weights: dict[str, float]

    @property
    def total(self) -> Float[Tensor, ""]:
        return self.recon_loss + self.latent_loss


class Objective:
    """Weighted sum of reconstruction, perceptual and quantizer losses, in float32.

    `perceptual` takes reconstructed and real frames and returns a scalar. It runs in
    `config.precision` on frames of each clip that are drawn by the generator of the step.
    """

    def __init__(
        self,
        quantizer: Quantizer | None,
        config: TrainingConfig,
        perceptual: nn.Module | None = None,
    ):
        self.quantizer, self.config, self.perceptual = quantizer, config, perceptual
        self.reconstruction_loss = RECONSTRUCTION_LOSSES[config.reconstruction_loss]

    def __call__(
        self, real: Video, out: Reconstruction, step: int, generator: torch.Generator | None = None
    ) -> Loss:
        """Returns the loss at optimizer step `step`, in float32."""
        config = self.config
        recon, real = out.recon.float(), real.float()
        recon_terms = {"reconstruction": self.reconstruction_loss(recon, real)}
        weights = {"reconstruction": config.reconstruction_loss_weight}
        if config.temporal_loss_weight > 0 and real.shape[2] > 1:
            changes = recon.diff(dim=2), real.diff(dim=2)
            recon_terms["temporal"] = self.reconstruction_loss(*changes)
            weights["temporal"] = config.temporal_loss_weight
        if self.perceptual is not None and config.perceptual_loss_weight > 0:
            picks = pick_frames(
                real.shape[2], config.perceptual_num_frames, real.shape[0], generator
            ).to(real.device)
            frames = gather_frames(recon, picks), gather_frames(real, picks)
            with autocast(recon.device, config.precision):
                recon_terms["perceptual"] = self.perceptual(*frames).float()
            weights["perceptual"] = config.perceptual_loss_weight
        latent_terms = {}
        quantizer_weights = {} if self.quantizer is None else self.quantizer.loss_weights(step)
        for name, weight in quantizer_weights.items():
            latent_terms[name] = out.quantizer_terms[name]
            weights[name] = weight * config.quantizer_loss_weight
        parts = (_weighted_sum(t, weights, recon.device) for t in (recon_terms, latent_terms))
        return Loss(*parts, recon_terms | latent_terms, weights)


def _weighted_sum(
    terms: dict[str, Tensor], weights: dict[str, float], device: torch.device
) -> Float[Tensor, ""]:
    if not terms:
        return torch.zeros((), device=device)
    return torch.stack([term * weights[name] for name, term in terms.items()]).sum()


def load_perceptual(config: TrainingConfig, module: nn.Module | None) -> nn.Module | None:
    """The perceptual network, frozen; None if its weight is 0."""
    if config.perceptual_loss_weight == 0:
        return None
    if module is not None:
        return module.eval().requires_grad_(False)
    if config.perceptual_weights is None:
        raise ValueError(
            f"perceptual_loss_weight is {config.perceptual_loss_weight}, but there are no weights: "
            "set perceptual_weights to a local file or 'torchvision:vgg16' (a download), or pass "
            "your own module to the trainer as perceptual_loss"
        )
    return build_perceptual(config.perceptual_weights)


class FrameLosses(NamedTuple):
    """Losses of frames, and their gradient."""

    loss: Loss
    proxy: Float[Tensor, ""]
    """Its derivative with respect to the frames is that of all their losses."""
    measured: dict[str, Tensor | float]
    """Losses and weights for the log."""


class ClipTask(PretrainedTask):
    """A task whose model makes frames that are compared with real ones."""

    best = Best("valid/psnr", "max")
    curves = ("loss", "psnr", "learning_rate", "codebook_usage")
    shown = ("loss", "psnr")

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
        self.quantizer = quantizer
        if config.freeze_encoder and quantizer is not None:
            model.encoder.requires_grad_(False)
            quantizer.requires_grad_(False)
        self.objective = Objective(quantizer, config, perceptual)
        self.discriminators = build_discriminators(model.config.channels, config)
        self.frozen = {} if perceptual is None else {"perceptual network": perceptual}
        self.begin_log()

    def trainables_of(
        self, name: str, module: nn.Module, not_for_muon: tuple[nn.Module, ...]
    ) -> dict[str, Trainable]:
        """The model's module under its name, and the discriminators.

        Ends of a model are not for Muon: they have few channels on one side, and their singular
        values carry the scale of each channel, which Muon's orthogonal steps would make equal.
        """
        main = Trainable(
            module=module,
            options=self.config.optimizer_options(),
            not_for_muon=not_for_muon,
            fixed_options=("optimizer", "freeze_encoder"),
        )
        return {name: main} | {d.module_name: d.trainable() for d in self.discriminators}

    @property
    @abstractmethod
    def last_layer(self) -> list[Tensor]:
        """Weights at which adaptive weights compare gradients."""

    def frame_losses(self, video: Video, out: Reconstruction, micro: MicroStep) -> FrameLosses:
        """Losses of reconstructed frames by all networks; discriminators get their gradients.

        Losses are differentiated with respect to a detached copy of the frames. Their graphs are
        then free, and the sum of the gradients is backpropagated through the model once.
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
                    proxies = ((out.recon.float() * g).sum() for g in (gradient, unweighted))
                    factor = self.adaptive_weight(*proxies)
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
        self, reference: Float[Tensor, ""], adversarial: Float[Tensor, ""]
    ) -> Float[Tensor, ""]:
        """Factor that gives `adversarial` the last layer's gradient norm of `reference`."""
        gradients = []
        for proxy in (reference, adversarial):
            parts = torch.autograd.grad(
                proxy, self.last_layer, retain_graph=True, allow_unused=True
            )
            gradients.append(torch.cat([g.float().flatten() for g in parts if g is not None]))
        return adaptive_weight_from_gradients(*gradients)

    def after_step(self, taken: frozenset[str]) -> None:
        for discriminator in self.discriminators:
            discriminator.after_step(discriminator.module_name in taken)

    def sizes(self, video: Video) -> dict[str, int]:
        return {"clips": video.shape[0], "frames": video.shape[0] * video.shape[2]}

    def begin_log(self) -> None:
        quantizer, self._usage = self.quantizer, None
        if quantizer is not None and quantizer.codebook_size is not None:
            self._usage = CodebookUsage(quantizer.codebook_size, quantizer.num_codebooks)

    def end_log(self, means: Mapping[str, float]) -> dict[str, float | int]:
        skipped = {"skipped_files": len(getattr(self.data, "skipped", ()))}
        return skipped | running_quality(means, self._usage)

    def num_to_validate(self, quick: bool) -> int:
        """Maximum number of clips; if `quick`, one for each process."""
        return self.accelerator.num_processes if quick else self.config.num_valid_clips

    def write_pictures(
        self, examples: list[Example], path: Path, kind: str, suffix: str = ""
    ) -> dict[str, Path]:
        """Writes pictures in the main process; returns their paths by log name."""
        if not self.accelerator.is_main_process:
            return {}
        name = f"{path.name}-{kind}{suffix}"
        paths = write_examples(examples, path.parent, name, self.config.fps)
        return {f"valid/{kind}-{number}": path for number, path in enumerate(paths)}

    def full_step(self, step: int) -> int:
        """The next step with discriminators, adversarial losses and gradient penalties."""
        if not self.discriminators:
            return step
        step = max(step, self.config.adversarial_start_step)
        every = self.config.gradient_penalty_every if self.config.gradient_penalty_weight else 1
        return step + (self.config.discriminator_start_step - step) % every

    def validation_rounds(self) -> int:
        numbers = [num_clips(clips) for clips in self.held_out_clips().values()]
        limit = self.config.num_valid_clips
        most = max(limit if n is None else min(n, limit) for n in numbers)
        return -(-most // self.accelerator.num_processes)

    def held_out_clips(self) -> dict[str, Clips]:
        """Held-out clips by kind."""
        return {"clip": self.valid_data}
