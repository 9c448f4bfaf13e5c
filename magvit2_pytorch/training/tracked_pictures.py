"""Reconstructions on disk, shown in wandb and TensorBoard."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def show_in_wandb(run: Any, name: str, path: Path, step: int) -> None:
    """Logs a copy of a PNG or mp4 to a wandb run."""
    import wandb

    media_type = wandb.Image if path.suffix == ".png" else wandb.Video
    run.log({name: media_type(str(path))}, step=step)


def show_in_tensorboard(writer: Any, name: str, path: Path, step: int) -> None:
    """Logs a PNG to TensorBoard, or the one beside an mp4."""
    with Image.open(path.with_suffix(".png")) as picture:
        writer.add_images(name, np.asarray(picture)[None], step, dataformats="NHWC")
    writer.flush()
