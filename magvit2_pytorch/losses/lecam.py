"""LeCam regularization: a discriminator's logits stay near the running mean of the other side."""

import math

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from magvit2_pytorch.functional import at_least_float32

RealLogits = Float[Tensor, "b ..."]
FakeLogits = Float[Tensor, "c ..."]


def lecam_loss(
    real: RealLogits,
    fake: FakeLogits,
    real_mean: Float[Tensor, ""],
    fake_mean: Float[Tensor, ""],
    of_batch_means: bool = False,
) -> Float[Tensor, ""]:
    """E[max(0, D(x) - fake_mean)^2] + E[max(0, real_mean - D(x'))^2].

    The paper's equation 3 has no max; its authors' code does, and this follows it: a real that
    scores below the mean of the fakes has no lead that needs reining in. By default the
    expectation is over single logits, as there, so that a batch in parts, or on several
    processes, has the loss of the whole. `of_batch_means` puts the batch's mean logit in place
    of D, as O2-MAGVIT2 does: never more than the default, the same for a single logit, and
    blind to logits that differ but balance.
    Source: Tseng et al. (arXiv 2104.03310), section 3.2; google/lecam-gan, stylegan2.
    """
    real, fake = at_least_float32(real), at_least_float32(fake)
    if of_batch_means:
        real, fake = real.mean(), fake.mean()
    return F.relu(real - fake_mean).square().mean() + F.relu(real_mean - fake).square().mean()


class LeCamRegularizer(nn.Module):
    """Keeps the running means of the logits of real and fake, and tells the loss at them.

    After n updates, a mean is the exponentially weighted average of the n batches' own means:
    the first one is copied, yet weighs no more for being first. The authors' code does so too.
    `start_at_zero` is how O2-MAGVIT2 starts: the zeros are averaged in, and matter for some
    1 / (1 - decay) updates. The decay is O2's.

    Means are float32 and part of the state dict. Both call `update` before `forward`. Training here
    calls it after: the means of all micro-batches of a step are known at its end only. Before the
    first update there are no means to be pulled to, and the loss and its gradient are 0; with
    `start_at_zero` the means are 0 then. With `distributed`, an update in training
    mode averages the logits of all processes, which must all make it: their means stay equal.
    """

    def __init__(
        self,
        decay: float = 0.999,
        start_at_zero: bool = False,
        of_batch_means: bool = False,
        distributed: bool = True,
    ):
        super().__init__()
        if not 0 < decay < 1:
            raise ValueError(f"decay is {decay}: it must lie between 0 and 1, as 0.999 does")
        self.decay, self.start_at_zero = decay, start_at_zero
        self.of_batch_means, self.distributed = of_batch_means, distributed
        self.register_buffer("real_mean", torch.zeros(()))
        self.register_buffer("fake_mean", torch.zeros(()))
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def update(self, real: RealLogits, fake: FakeLogits) -> None:
        """Takes the logits of one step into the means. Nothing waits for the device."""
        sums = torch.stack((at_least_float32(real).sum(), at_least_float32(fake).sum()))
        counts = torch.stack([sums.new_full((), logits.numel()) for logits in (real, fake)])
        if self.distributed and self.training and _several_processes():
            # Processes may hold different numbers of samples: their means do not average.
            totals = torch.cat((sums, counts))
            dist.all_reduce(totals)
            sums, counts = totals.chunk(2)
        real_now, fake_now = (sums / counts).to(self.real_mean.dtype)
        self.num_updates += 1
        if self.start_at_zero:
            share = torch.full_like(self.real_mean, 1 - self.decay)
        else:
            # (1 - decay) / (1 - decay^n): 1 at the first update, or off by rounding.
            weight_of_all = -torch.expm1(self.num_updates * math.log(self.decay))
            share = (-math.expm1(math.log(self.decay)) / weight_of_all).clamp(max=1)
        self.real_mean.lerp_(real_now, share)
        self.fake_mean.lerp_(fake_now, share)

    def forward(self, real: RealLogits, fake: FakeLogits) -> Float[Tensor, ""]:
        loss = lecam_loss(real, fake, self.real_mean, self.fake_mean, self.of_batch_means)
        # A factor, so that logits that are not finite are noticed at the first step too.
        return loss if self.start_at_zero else loss * (self.num_updates > 0)


def _several_processes() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
