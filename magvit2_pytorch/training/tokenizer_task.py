"""Training of a `VideoTokenizer` as a task: one step reads as the algorithm of VQGAN."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from magvit2_pytorch.data.split import HeldOut
from magvit2_pytorch.data.user_clips import num_clips
from magvit2_pytorch.functional import autocast
from magvit2_pytorch.generators.latent_prior import LatentPrior
from magvit2_pytorch.losses.adversarial import adaptive_weight_from_gradients
from magvit2_pytorch.metrics.codebook import CodebookUsage, bits_per_pixel
from magvit2_pytorch.quantizers.continuous import STATISTICS
from magvit2_pytorch.tokenizer.model import VideoTokenizer
from magvit2_pytorch.tokenizer.tokenizer_config import TokenizerConfig
from magvit2_pytorch.training.batches import (
    check_clips,
    images_per_batch,
    mixed_batches,
    training_batches,
)
from magvit2_pytorch.training.gan import build_discriminators
from magvit2_pytorch.training.latent_statistics import record_latents
from magvit2_pytorch.training.objective import Autoencoder, Objective, Reconstruction
from magvit2_pytorch.training.task import (
    Best,
    Measured,
    MicroStep,
    Task,
    Trainable,
    Validation,
)
from magvit2_pytorch.training.tokenizer_plan import TokenizerPlan
from magvit2_pytorch.training.training_config import TrainingConfig
from magvit2_pytorch.training.validation import running_quality, validate, write_examples
from magvit2_pytorch.types import Clips, Video


class TokenizerTask(Task):
    """Reconstruction, quantizer, perceptual and adversarial losses of a tokenizer.

    `images`, if any, are a fraction `image_frac` of the passes. `perceptual` takes reconstructed
    and real frames `b c t h w` and returns a scalar. `held_out` names the files of the held-out
    clips and images.
    """

    best = Best("valid/psnr", "max")
    curves = ("loss", "psnr", "learning_rate", "codebook_usage")
    shown = ("loss", "psnr")
    # Latent statistics are measured on the averaged copy itself. The tokenizer in training has
    # none: averaging would move the copy's towards meaningless values that count as measured.
    not_averaged = frozenset(f"quantizer.{name}" for name in STATISTICS)

    def __init__(
        self,
        tokenizer: VideoTokenizer,
        config: TrainingConfig,
        clips: tuple[Clips, Clips],
        images: tuple[Clips, Clips] | tuple[None, None] = (None, None),
        perceptual: nn.Module | None = None,
        held_out: HeldOut | None = None,
    ):
        self.model, self.config = tokenizer, config
        self.data, self.valid_data = clips
        self.images, self.valid_images = images
        if config.checkpoint_activations:
            tokenizer.checkpoint_activations()
        self.perceptual, self.held_out = perceptual, held_out or {}
        self.objective = Objective(tokenizer.quantizer, config, perceptual)
        self.discriminators = build_discriminators(tokenizer.config.channels, config)
        self.frozen = {} if perceptual is None else {"perceptual network": perceptual}
        self.last_layer = [p for p in tokenizer.decoder.layers[-1].parameters() if p.ndim >= 2]
        self.trainables = {
            "tokenizer": Trainable(
                module=Autoencoder(tokenizer, config.precision),
                options=config.optimizer_options(),
                # They have few channels on one side, and their singular values carry the scale of
                # each latent channel, which Muon's orthogonal steps would make equal.
                not_for_muon=(tokenizer.encoder.layers[-1], tokenizer.decoder.layers[0]),
                fixed_options=("optimizer",),
            ),
            **{d.module_name: d.trainable() for d in self.discriminators},
        }
        if config.prior_loss_weight:
            self.trainables["prior"] = Trainable(
                module=LatentPrior(tokenizer.quantizer, **(config.prior or {})),
                options=config.prior_optimizer_options(),
                option_prefix="prior_",
            )
        self.begin_log()

    # Training

    def batches(self, start: int, kind: str | None = None) -> Iterator[Video]:
        # Each time: after a dry run too, a set that draws from everybody's random generators then
        # gives training the same clips as without one.
        sets = {"training": self.data, "validation": self.valid_data}
        sets |= {"training images": self.images, "validation images": self.valid_images}
        for name, clips in sets.items():
            check_clips(clips, f"the {name}", self.model)
        if kind is None:
            return mixed_batches(self.data, self.images, self.config, self.accelerator, start)
        clips, size = {
            "clips": (self.data, self.config.batch_size),
            "images": (self.images, images_per_batch(self.config)),
        }[kind]
        return training_batches(clips, self.config, self.accelerator, start, size)

    def step(self, video: Video, micro: MicroStep) -> Measured:
        """One backward pass through the tokenizer for the losses of all networks.

        Losses of the reconstruction are differentiated with respect to a detached copy of it. Their
        graphs are then free, and the sum of the gradients is backpropagated through the tokenizer
        once. An adaptive weight compares two of these gradients at the last layer, at the cost of
        that layer.
        """
        out: Reconstruction = micro.modules["tokenizer"](video)
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
        # The derivative of `proxy` with respect to the reconstruction is `total`.
        proxy = (out.recon.float() * total).sum()
        prior_loss, terms = self._prior_loss(out, micro)
        value = loss.total + prior_loss
        micro.backward(proxy + loss.latent_loss + prior_loss, value=value)
        if self._usage is not None:
            self._usage.update(out.codes)
        error = (out.recon.detach().float() - video).square().mean()
        weights = {f"weight/{name}": weight for name, weight in loss.weights.items()}
        return {"loss": value, "mse": error} | loss.terms | terms | weights | measured

    def _prior_loss(
        self, out: Reconstruction, micro: MicroStep
    ) -> tuple[Float[Tensor, ""] | float, dict[str, Tensor]]:
        """Weighted loss of the codes under the prior, 0 without one, and its terms."""
        if not self.config.prior_loss_weight:
            return 0.0, {}
        with autocast(out.quantized.device, self.config.precision):
            nats = micro.modules["prior"](out.quantized, out.codes)
        return self.config.prior_loss_weight * nats, {"prior": nats}

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

    # Measuring

    def sizes(self, video: Video) -> dict[str, int]:
        return {"clips": video.shape[0], "frames": video.shape[0] * video.shape[2]}

    def begin_log(self) -> None:
        size, number = self.model.codebook_size, self.model.num_codebooks
        self._usage = None if size is None else CodebookUsage(size, number)

    def end_log(self, means: Mapping[str, float]) -> dict[str, float | int]:
        values: dict[str, float | int] = {"skipped_files": len(getattr(self.data, "skipped", ()))}
        return values | running_quality(means, self._usage)

    def validate(self, model: nn.Module, path: Path, quick: bool = False) -> Validation:
        limit = self.accelerator.num_processes if quick else self.config.num_valid_clips
        values, pictures = {}, {}
        for kind, held_out in self._held_out().items():
            results, examples = validate(
                model, held_out, limit, self.config, self.accelerator, self.perceptual
            )
            prefix = "valid/image_" if kind == "image" else "valid/"
            values |= {f"{prefix}{name}": value for name, value in results.items()}
            if self.accelerator.is_main_process:
                name = f"{path.name}-{kind}"
                paths = write_examples(examples, path.parent, name, self.config.fps)
                pictures |= {f"valid/{kind}-{number}": path for number, path in enumerate(paths)}
        return Validation(values, pictures)

    def _held_out(self) -> dict[str, Clips]:
        kinds = {"clip": self.valid_data, "image": self.valid_images}
        return {kind: clips for kind, clips in kinds.items() if clips is not None}

    def finish(self, model: nn.Module, folder: Path, quick: bool = False) -> dict[str, float | int]:
        limit = self.config.num_latent_statistics_clips
        limit = min(limit, self.accelerator.num_processes) if quick else limit
        values = record_latents(model, self.data, limit, self.config.precision)
        if self.accelerator.is_main_process:
            model.save_pretrained(folder / "tokenizer")
        return values

    # State

    def describe(self) -> dict[str, Any]:
        return self.model.config.to_dict()

    def parse_description(self, saved: dict[str, Any]) -> dict[str, Any]:
        return TokenizerConfig.from_dict(saved).to_dict()

    # Dry run

    def batch_kinds(self) -> dict[str, float]:
        share = 0.0 if self.images is None else self.config.image_frac
        return {"clips": 1 - share} | ({"images": share} if share else {})

    def full_step(self, step: int) -> int:
        """The next step with discriminators, adversarial losses and gradient penalties."""
        if not self.discriminators:
            return step
        step = max(step, self.config.adversarial_start_step)
        every = self.config.gradient_penalty_every if self.config.gradient_penalty_weight else 1
        return step + (self.config.discriminator_start_step - step) % every

    def validation_rounds(self) -> int:
        counts = map(self._num_validated, self._held_out().values())
        return max(-(-count // self.accelerator.num_processes) for count in counts)

    def _num_validated(self, clips: Clips) -> int:
        limit, number = self.config.num_valid_clips, num_clips(clips)
        return limit if number is None else min(number, limit)

    def plan(self, batch: Video) -> "TokenizerPlan":
        clip = tuple(batch.shape[2:])
        grid = self.model.latent_grid(*clip)
        bits = self.model.quantizer.bits_per_position
        return TokenizerPlan(
            config=self.config,
            clip=clip,
            latent_grid=grid,
            num_codebooks=self.model.num_codebooks,
            codebook_size=self.model.codebook_size,
            bits_per_pixel=None if bits is None else bits_per_pixel(bits, grid, clip),
            num_clips=num_clips(self.data),
            num_images=0 if self.images is None else num_clips(self.images),
            num_valid_clips=_total(map(num_clips, self._held_out().values())),
            num_skipped_files=sum(len(getattr(x, "skipped", ())) for x in (self.data, self.images)),
        )


def _total(numbers: Iterable[int | None]) -> int | None:
    numbers = list(numbers)
    return None if None in numbers else sum(numbers)


def _flatten(gradients: Iterable[Tensor | None]) -> Float[Tensor, " n"]:
    return torch.cat([g.float().flatten() for g in gradients if g is not None])
