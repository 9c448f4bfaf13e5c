"""Vector quantization: a latent becomes the nearest vector of a learned codebook."""

from types import ModuleType
from typing import Literal

import torch
import torch.distributed as dist
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from magvit2_pytorch.functional import at_least_float32
from magvit2_pytorch.quantizers.quantizer import (
    QUANTIZERS,
    Quantized,
    Quantizer,
    StoredCodes,
    straight_through,
    without_autocast,
)
from magvit2_pytorch.runtime import num_processes
from magvit2_pytorch.types import Latents

VectorQuantizerName = Literal["vq", "simvq", "residual"]

MAX_DISTANCES = 2**22
"""Distances in memory at once in the search of codes: 32 MB."""

SIMVQ_INPUT_WEIGHT = 0.25
"""Weight of the pull of latents to codes, relative to that of codes to latents."""


@QUANTIZERS.register("vector")
class VectorQuantizer(Quantizer):
    """Nearest codebook vectors, with the codebooks of vector-quantize-pytorch.

    "vq" has one codebook, moved towards the latents by exponential moving averages (VQ-VAE, arXiv
    1711.00937, appendix A.1). "simvq" has a learned linear map of a fixed random codebook, which
    trains all codes at once (arXiv 2411.02038). "residual" has `num_levels` codebooks of the first
    kind; each quantizes what the levels before left over, and the sum is decoded (SoundStream,
    arXiv 2107.03312, algorithm 1). A position then has one code per level.

    The only loss is the commitment loss, summed over levels. The codebooks of "vq" and "residual"
    are buffers without gradient. `loss_terms` moves them in training mode, once per micro-batch,
    after it has computed the loss, if the latents have a gradient; a step that is skipped because
    of its gradients still moves them. Latents of all processes move a codebook together. A batch
    with a latent that is not finite on any process is left out. Training takes memory for positions
    x `codebook_size` integers, inside the library.
    """

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        vq_type: VectorQuantizerName = "vq",
        num_levels: int = 4,
        commitment_loss_weight: float = 1.0,
    ):
        super().__init__()
        if vq_type not in ("vq", "simvq", "residual"):
            raise ValueError(f"vq_type {vq_type!r}: use 'vq', 'simvq' or 'residual'")
        if dim < 2:
            raise ValueError(f"dim is {dim}: use 2 or more channels (for numbers use FSQ)")
        if codebook_size < 2:
            raise ValueError(f"codebook_size is {codebook_size}: use 2 or more")
        if vq_type == "residual" and num_levels < 2:
            raise ValueError(f"num_levels is {num_levels}: use 2 or more, or vq_type 'vq'")
        self.latent_dim = self.quantized_dim = dim
        self.codebook_size, self.vq_type = codebook_size, vq_type
        self.num_codebooks = num_levels if vq_type == "residual" else 1
        self.commitment_loss_weight = commitment_loss_weight
        # Options are the library's defaults: decay 0.8, no replacement of unused codes, gradients
        # by the rotation trick (arXiv 2410.06424). Its k-means on the first batch stays off: a
        # loaded or resumed codebook must not depend on the batch that happens to come first.
        library = _library()
        if vq_type == "simvq":
            self.vq = library.SimVQ(dim=dim, codebook_size=codebook_size)
            return
        # Processes are often started after the model is built, when the library would have decided
        # that there is one: sums over processes are decided in each call instead.
        options = dict(dim=dim, codebook_size=codebook_size, sync_codebook=False)
        if vq_type == "residual":
            self.vq = library.ResidualVQ(num_quantizers=num_levels, **options)
        else:
            self.vq = library.VectorQuantize(**options)
        for layer in self._layers:
            layer._codebook.all_reduce_fn = _sum_over_processes

    def forward(self, latents: Latents) -> Quantized:
        self.check_latents(latents)
        with without_autocast(latents):
            z = rearrange(at_least_float32(latents), "b d t h w -> b t h w d")
            inputs, values, codes = self._search(z)
            # The library has these gradients in training mode only, and their values are rounded.
            quantized = sum(
                straight_through(_rotate(x, value), value.detach())
                for x, value in zip(inputs, values, strict=True)
            )
        return Quantized(
            rearrange(quantized, "b t h w d -> b d t h w"),
            codes[0] if self.num_codebooks == 1 else torch.stack(codes, dim=-1),
        )

    def decode_codes(self, codes: StoredCodes) -> Latents:
        codes = self.check_codes(codes)
        with without_autocast(codes):
            levels = zip(codes.unbind(-1), self.codebooks, strict=True)
            quantized = sum(F.embedding(code, codebook) for code, codebook in levels)
        return rearrange(quantized.detach(), "b t h w d -> b d t h w")

    def loss_terms(self, latents: Latents) -> dict[str, Tensor]:
        """Commitment loss; in training mode the codebooks then move, see the class."""
        self.check_latents(latents)
        with without_autocast(latents):
            z = rearrange(at_least_float32(latents), "b d t h w -> b t h w d")
            inputs, values, codes = self._search(z)
            loss = sum(
                F.mse_loss(x, value.detach()) for x, value in zip(inputs, values, strict=True)
            )
            if self.vq_type == "simvq":
                loss = F.mse_loss(values[0], z.detach()) + loss * SIMVQ_INPUT_WEIGHT
            if self.training and latents.requires_grad:
                self._move_codebooks(inputs, codes)
        return {"commitment": loss}

    def loss_weights(self, step: int) -> dict[str, float]:
        return {"commitment": self.commitment_loss_weight}

    @property
    def codebooks(self) -> list[Float[Tensor, "k d"]]:
        """Vectors of each level."""
        books = [self.vq] if self.vq_type == "simvq" else self._layers
        return [at_least_float32(book.codebook) for book in books]

    @property
    def _layers(self) -> list[torch.nn.Module]:
        """The library's layers with moving averages; none in "simvq"."""
        if self.vq_type == "residual":
            return list(self.vq.layers)
        return [self.vq] if self.vq_type == "vq" else []

    def _search(
        self, z: Float[Tensor, "b t h w d"]
    ) -> tuple[
        list[Float[Tensor, "b t h w d"]],
        list[Float[Tensor, "b t h w d"]],
        list[Int[Tensor, "b t h w"]],
    ]:
        """Input, nearest vectors and codes of each level."""
        inputs, values, codes = [], [], []
        for codebook in self.codebooks:
            code = _nearest(z.detach().flatten(0, 3), codebook.detach()).view(z.shape[:-1])
            inputs.append(z)
            values.append(F.embedding(code, codebook).to(z.dtype))
            codes.append(code)
            z = z - values[-1].detach()
        return inputs, values, codes

    @torch.no_grad()
    def _move_codebooks(
        self, inputs: list[Float[Tensor, "b t h w d"]], codes: list[Int[Tensor, "b t h w"]]
    ) -> None:
        """Moves codebooks towards the inputs that they quantize, if all are finite."""
        if not self._layers or inputs[0].is_meta:
            return
        finite = inputs[0].isfinite().all().float()
        if num_processes() > 1:
            dist.all_reduce(finite, dist.ReduceOp.MIN)
        if not finite:
            return
        for layer, x, code in zip(self._layers, inputs, codes, strict=True):
            layer.update_indices(x.flatten(1, 3), code.flatten(1))


def _nearest(z: Float[Tensor, "n d"], codebook: Float[Tensor, "k d"]) -> Int[Tensor, " n"]:
    """Codes of the nearest vectors.

    Distances are float64: the rounding errors of a matrix product depend on its number of rows, and
    in float32 they would decide between two vectors about once in a million positions.
    """
    if z.device.type != "mps":  # without float64
        z, codebook = z.double(), codebook.double()
    squares = codebook.square().sum(dim=-1)
    # In one piece while tracing, where the number of pieces would be fixed.
    rows = max(1, len(z) if torch.compiler.is_compiling() else MAX_DISTANCES // len(codebook))
    return torch.cat([(squares - 2 * part @ codebook.T).argmin(dim=-1) for part in z.split(rows)])


def _rotate(z: Float[Tensor, "*n d"], quantized: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
    """Rotates and scales `z` to `quantized`, by a transformation without gradient.

    Source: the rotation trick (arXiv 2410.06424), section 4.2. Sums instead of matrix products,
    because a backward pass under autocast would compute products in bf16.
    """
    with torch.no_grad():
        z_norm, quantized_norm = z.norm(dim=-1, keepdim=True), quantized.norm(dim=-1, keepdim=True)
        z_unit = z / z_norm.clamp_min(1e-6)
        quantized_unit = quantized / quantized_norm.clamp_min(1e-6)
        middle = F.normalize(z_unit + quantized_unit, dim=-1, eps=1e-6)
        scale = quantized_norm / z_norm.clamp_min(1e-6)
    reflected = z - 2 * (z * middle).sum(dim=-1, keepdim=True) * middle
    return (reflected + 2 * (z * z_unit).sum(dim=-1, keepdim=True) * quantized_unit) * scale


def _sum_over_processes(x: Tensor) -> None:
    """Sums in place, if there are several processes."""
    if num_processes() > 1:
        dist.all_reduce(x)


def _library() -> ModuleType:
    """Imports vector-quantize-pytorch, which takes longer than importing torch."""
    try:
        import vector_quantize_pytorch
    except Exception as error:  # a package of another version raises other errors than ImportError
        raise ImportError(
            "vq_type needs vector-quantize-pytorch, which cannot be imported here "
            f"({type(error).__name__}: {error}): pip install -U vector-quantize-pytorch"
        ) from error
    return vector_quantize_pytorch
