"""Recommended training options of each preset, found by experiment."""

from typing import Any

from magvit2_pytorch.config import Registry

RECIPES: Registry[dict[str, Any]] = Registry("recipe")

RECIPES.register("small")(
    dict(
        batch_size=4,
        num_frames=17,
        optimizer="muon",
        learning_rate=0.02,
        warmup_steps=30,
        schedule="linear",
        max_grad_norm=None,
        precision="bf16",
        reconstruction_loss="mse",
        ema_decay=0.98,
        flip=True,
        random_scale=(2.0, 2.0),
    )
)

RECIPES.register("tiny")(dict(batch_size=4, num_frames=9, learning_rate=3e-3, warmup_steps=50))

MAGVIT2 = dict(
    num_train_steps=300_000,
    optimizer="adam",
    learning_rate=1e-4,
    betas=(0.0, 0.99),
    warmup_steps=500,
    schedule="cosine",
    max_grad_norm=None,
    ema_decay=0.999,
    reconstruction_loss="mse",
    reconstruction_loss_weight=5.0,
    adversarial_loss="non_saturating",
    discriminator_learning_rate=8e-5,
    discriminator_betas=(0.0, 0.99),
    gradient_penalty="r1",
    gradient_penalty_weight=10.0,
    lecam_loss_weight=0.001,
    precision="bf16",
)
"""MAGVIT-v2's training with details of O2-MAGVIT2. Entropy and commitment weights belong to the
model and are in its preset. Two things differ from both: the R1 penalty of every 16th step is
multiplied by 16, so that its mean weight is 10 (O2's is 0.5), and there is no perceptual loss,
because it needs a file: add perceptual_loss_weight=0.1 and perceptual_weights."""


def magvit2_recipe(discriminator: str, dim: int, **options: Any) -> dict[str, Any]:
    """`MAGVIT2` with a discriminator of O2-MAGVIT2's shape and `dim` channels."""
    dim_mults = {"video": [2, 4, 4, 4, 4], "frame": [2, 2, 4, 4, 4]}[discriminator]
    return MAGVIT2 | {
        f"{discriminator}_adversarial_weight": 0.1,
        f"{discriminator}_discriminator": dict(dim=dim, dim_mults=dim_mults),
        **options,
    }


for _name in ("magvit2", "o2", "walt"):
    RECIPES.register(_name)(magvit2_recipe("video", 128, batch_size=1))
    RECIPES.register(f"{_name}-small")(magvit2_recipe("video", 64, batch_size=4))
RECIPES.register("o2-image")(magvit2_recipe("frame", 128, batch_size=4))
RECIPES.register("o2-image-small")(magvit2_recipe("frame", 64, batch_size=16))


def recipe(name: str) -> dict[str, Any]:
    """Training options of a preset for `VideoTokenizerTrainer`, as a new dict."""
    return dict(RECIPES[name])
