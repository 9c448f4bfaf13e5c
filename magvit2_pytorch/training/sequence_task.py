"""Training of a `Tokenizer1d` on packs of clips."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from magvit2_pytorch.data.packs import Pack, PackedClips, PackSpec
from magvit2_pytorch.data.split import HeldOut
from magvit2_pytorch.functional import autocast
from magvit2_pytorch.tokenizer_1d.model_1d import Tokenizer1d
from magvit2_pytorch.tokenizer_1d.sequence_config import Tokenizer1dConfig
from magvit2_pytorch.training.batches import open_datasets
from magvit2_pytorch.training.clip_task import ClipTask, Reconstruction, load_perceptual
from magvit2_pytorch.training.dry_run import TaskTrainer
from magvit2_pytorch.training.task import Measured, MicroStep, Validation
from magvit2_pytorch.training.training_config import TrainingConfig
from magvit2_pytorch.training.validation import validate
from magvit2_pytorch.types import Clips, Precision


@dataclass(frozen=True, kw_only=True)
class SequenceTrainingConfig(TrainingConfig):
    """Options of training a `Tokenizer1d`: those of a `VideoTokenizer`, and of packs.

    A pack holds as many clips as fit; `batch_size` and options of images have no effect.
    """

    num_frames: int = 8
    """Frames in a clip, of which training sees random parts."""
    pack_length: int = 896
    """Patches and tokens in a forward pass, on each process."""
    groups_per_pack: int = 4
    """Sizes in a pack. Clips of one size and number of tokens share calls of attention."""
    min_frames: int = 4
    """Least frames of a part of a clip; 1 also trains on single frames, as images."""
    min_side: int = 32
    """Least height and width of a part of a clip in pixels."""
    prefix_dropout: float = 0.5
    """Probability that a group of clips is decoded from the first ones of its tokens only, so that
    any beginning of the tokens can be decoded."""
    easy_steps: int = 0
    """First steps with whole clips and many tokens."""

    positive = (
        *TrainingConfig.positive, "pack_length", "groups_per_pack", "min_frames", "min_side",
    )  # fmt: skip

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.prefix_dropout <= 1:
            raise ValueError(f"prefix_dropout is {self.prefix_dropout}: give 0 to 1")
        if self.tubelet is not None:
            raise ValueError(
                "tubelet is not for a 1-D tokenizer, whose packs hold parts of clips already: use "
                "min_frames and min_side"
            )
        if self.easy_steps < 0:
            raise ValueError(f"easy_steps is {self.easy_steps}: give 0 or more")

    def pack_spec(self, model: Tokenizer1dConfig) -> PackSpec:
        """Sizes and numbers of tokens of packs for this model."""
        largest = (self.num_frames, *model.height_and_width)
        smallest = (self.min_frames, self.min_side, self.min_side)
        return PackSpec(
            length=self.pack_length,
            groups=self.groups_per_pack,
            patch=model.patch,
            smallest=tuple(map(min, smallest, largest)),
            largest=largest,
            num_tokens=model.num_tokens,
            prefix_dropout=self.prefix_dropout,
        )


class PackOutput(NamedTuple):
    """Reconstructions of the groups of a pack, and all latents and codes."""

    recons: list[Tensor]
    latents: Tensor
    codes: Tensor
    quantizer_terms: dict[str, Tensor]


class SequenceAutoencoder(nn.Module):
    """Forward pass of training as one module, for wrappers that hook `forward`."""

    def __init__(self, tokenizer: Tokenizer1d, precision: Precision = "fp32"):
        super().__init__()
        self.tokenizer, self.precision = tokenizer, precision

    def forward(self, pack: Pack) -> PackOutput:
        tokenizer, clips = self.tokenizer, [group.clips for group in pack]
        with autocast(clips[0].device, self.precision):
            latents = tokenizer.encode(clips, [group.count for group in pack])
            # One call for all tokens: a codebook's statistics are those of the pack.
            rows = torch.cat([x.movedim(0, -2).flatten(-2) for x in latents], dim=-1)[None]
            quantized, codes = tokenizer.quantize(rows)
            terms = tokenizer.quantizer.loss_terms(rows)
            sizes = [x.shape[0] * x.shape[-1] for x in latents]
            prefixes = []
            for group, part in zip(pack, quantized[0].split(sizes, dim=-1), strict=True):
                # The first latents of each clip, or of each of its blocks.
                num_blocks = len(tokenizer.config.layout(tuple(group.clips.shape[2:]), 1))
                kept = part.unflatten(-1, (len(group.clips), num_blocks, group.count))
                prefixes.append(kept[..., : group.prefix].flatten(-2).movedim(-2, 0))
            recons = tokenizer.decode_latents(prefixes, [tuple(x.shape[2:]) for x in clips])
        return PackOutput(recons, rows, codes, terms)


class SequenceTask(ClipTask):
    """Reconstruction, quantizer, perceptual and adversarial losses of a 1-D tokenizer.

    Losses of clips are averaged over the clips of a pack. Discriminators see random crops of one
    size, as large as the smallest clips of the pack.
    """

    model: Tokenizer1d
    config: SequenceTrainingConfig
    saved_as = "tokenizer"

    def __init__(
        self,
        tokenizer: Tokenizer1d,
        config: SequenceTrainingConfig,
        clips: tuple[Clips, Clips],
        perceptual: nn.Module | None = None,
        held_out: HeldOut | None = None,
    ):
        super().__init__(
            tokenizer, config, clips, perceptual, held_out, quantizer=tokenizer.quantizer
        )
        encoder, decoder = tokenizer.encoder, tokenizer.decoder
        ends = (
            encoder.from_patch, encoder.from_position, encoder.to_latent,
            decoder.from_latent, decoder.from_position, decoder.to_patch,
        )  # fmt: skip
        module = SequenceAutoencoder(tokenizer, config.precision)
        self.trainables = self.trainables_of("tokenizer", module, not_for_muon=ends)

    # Training

    @property
    def last_layer(self) -> list[Tensor]:
        return [self.model.decoder.to_patch.weight]

    def batches(self, start: int, kind: str | None = None) -> Iterator[Pack]:
        config, device = self.config, self.accelerator.device
        packs = PackedClips(
            self.data,
            config.pack_spec(self.model.config),
            seed=config.seed,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
            num_easy=config.easy_steps * config.grad_accum_every,
        )
        for pack in packs.batches(start, config.num_workers, device.type == "cuda"):
            yield [group._replace(clips=group.clips.to(device)) for group in pack]

    def step(self, pack: Pack, micro: MicroStep) -> Measured:
        """One backward pass through the tokenizer for the losses of all networks."""
        out: PackOutput = micro.modules["tokenizer"](pack)
        num_clips = sum(len(group.clips) for group in pack)
        total, terms, proxies, errors = 0.0, {}, [], []
        for group, recon in zip(pack, out.recons, strict=True):
            leaf = recon.detach().float().requires_grad_()
            part = Reconstruction(leaf, out.latents, out.codes, out.quantizer_terms)
            loss = self.objective(group.clips, part, micro.step, micro.generator)
            share = len(group.clips) / num_clips
            error = (leaf.detach() - group.clips).square().mean()
            errors.append(error * len(group.clips) / num_clips)
            gradient = torch.autograd.grad(loss.recon_loss, leaf)[0]
            proxies.append((recon.float() * gradient).sum() * share)
            total = total + share * loss.total
            for name, term in loss.terms.items():
                terms[name] = terms.get(name, 0.0) + share * term.detach()
        reference = torch.stack(proxies).sum()
        adversarial, measured = self._adversarial(pack, out.recons, reference, micro)
        # The loss of the latents is that of the whole pack, in each group's.
        micro.backward(reference + adversarial + loss.latent_loss, value=total)
        if self._usage is not None:
            self._usage.update(out.codes)
        weights = {f"weight/{name}": weight for name, weight in loss.weights.items()}
        return {"loss": total, "mse": torch.stack(errors).sum()} | terms | weights | measured

    def _adversarial(
        self, pack: Pack, recons: list[Tensor], reference: Tensor, micro: MicroStep
    ) -> tuple[Tensor, Measured]:
        """Sum whose gradient is that of all adversarial losses, and their measurements."""
        total, measured = torch.zeros((), device=reference.device), {}
        active = [d for d in self.discriminators if d.is_active(micro.step)]
        if not active:
            return total, measured
        real, recon = crops_of_one_size(pack, recons, micro.generator)
        for discriminator in active:
            leaf = recon.detach().float().requires_grad_()
            result = discriminator.compute_gradients(real, leaf, micro)
            measured |= result.measured
            if result.adversarial_gradient is not None:
                weight = discriminator.adversarial_weight(micro.step)
                proxy = (recon.float() * result.adversarial_gradient).sum()
                if self.config.adaptive_adversarial_weight:
                    factor = self.adaptive_weight(reference, proxy)
                    measured[f"{discriminator.name}_adaptive_weight"] = factor
                    weight = weight * factor
                total = total + weight * proxy
            if result.feature_matching_gradient is not None:
                total = total + (recon.float() * result.feature_matching_gradient).sum()
        return total, measured

    # Measuring

    def sizes(self, pack: Pack) -> dict[str, int]:
        clips = [group.clips for group in pack]
        tokens = sum(len(group.clips) * group.count for group in pack)
        frames = sum(len(x) * x.shape[2] for x in clips)
        return {"clips": sum(map(len, clips)), "frames": frames, "tokens": tokens}

    def validate(self, model: nn.Module, path: Path, quick: bool = False) -> Validation:
        """PSNR with the fewest, most and a middle number of tokens."""
        limit, values, pictures = self.num_to_validate(quick), {}, {}
        counts = validation_counts(self.model.config.num_tokens)
        for count in counts:
            results, examples = validate(
                model, self.valid_data, limit, self.config, self.accelerator, self.perceptual,
                num_tokens=count,
            )  # fmt: skip
            values |= {f"valid/{name}_{count}": value for name, value in results.items()}
            pictures |= self.write_pictures(examples, path, str(count), suffix="-tokens")
        values["valid/psnr"] = sum(values[f"valid/psnr_{c}"] for c in counts) / len(counts)
        return Validation(values, pictures)


def validation_counts(num_tokens: tuple[int, int]) -> list[int]:
    """The fewest tokens, the most, and their geometric mean."""
    low, high = num_tokens
    return sorted({low, round(math.sqrt(low * high)), high})


def crops_of_one_size(
    pack: Pack, recons: list[Tensor], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Random crops of clips and reconstructions, of the smallest clips' size."""
    size = [min(group.clips.shape[axis] for group in pack) for axis in (2, 3, 4)]
    reals, fakes = [], []
    for group, recon in zip(pack, recons, strict=True):
        spare = (have - wanted for have, wanted in zip(recon.shape[2:], size, strict=True))
        start = [int(torch.randint(room + 1, (), generator=generator)) for room in spare]
        parts = tuple(slice(at, at + side) for at, side in zip(start, size, strict=True))
        reals.append(group.clips[(..., *parts)])
        fakes.append(recon[(..., *parts)])
    return torch.cat(reals), torch.cat(fakes)


class Tokenizer1dTrainer(TaskTrainer):
    """Trains a `Tokenizer1d` on videos, images or any dataset of clips.

    Options are the fields of `SequenceTrainingConfig`, as keyword arguments; data are those of
    `VideoTokenizerTrainer`. Each forward pass takes a pack of random parts of clips with random
    numbers of tokens.
    """

    config_class = SequenceTrainingConfig
    task: SequenceTask

    def __init__(
        self,
        tokenizer: Tokenizer1d,
        *,
        dataset: Clips | None = None,
        valid_dataset: Clips | None = None,
        dataset_folder: str | Path | None = None,
        dataset_type: Literal["videos", "images"] = "videos",
        image_folder: str | Path | None = None,
        perceptual_loss: nn.Module | None = None,
        accelerate_kwargs: dict[str, Any] | None = None,
        **options: Any,
    ):
        if image_folder is not None:
            raise ValueError(
                "a 1-D tokenizer takes no additional images: set min_frames to 1, which trains on "
                "single frames too"
            )
        config = SequenceTrainingConfig.from_dict(options)
        perceptual = load_perceptual(config, perceptual_loss)
        clips, held_out = open_datasets(
            config, tokenizer.config, dataset, valid_dataset, dataset_folder, dataset_type
        )
        task = SequenceTask(tokenizer, config, clips, perceptual, held_out)
        super().__init__(task, config, accelerate_kwargs)

    tokenizer = property(attrgetter("task.model"), doc="The tokenizer in training.")
    ema_tokenizer = property(attrgetter("averaged_model"), doc="The one to use: averaged weights.")
