"""How each preset is best trained: options for the trainer, found by experiment."""

from typing import Any

from magvit2_pytorch.registry import Registry

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


def recipe(name: str) -> dict[str, Any]:
    """The training options of a preset, to change and hand to `VideoTokenizerTrainer`."""
    return dict(RECIPES[name])
