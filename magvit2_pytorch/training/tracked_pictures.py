"""Pictures and videos that lie on disk, shown in wandb and TensorBoard."""

import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

from magvit2_pytorch.data import VideoFile, write_video


def show_in_wandb(run: Any, name: str, path: Path, step: int) -> None:
    """A copy of a PNG or mp4 in the run's own files."""
    import wandb

    kind = wandb.Image if path.suffix == ".png" else wandb.Video
    run.log({name: kind(str(path))}, step=step)


def show_in_tensorboard(writer: Any, name: str, path: Path, step: int) -> None:
    """A PNG, or an mp4 as a moving GIF: what TensorBoard plays among its images.

    The writer's `add_video` makes the same, but needs a package for it.
    """
    from tensorboard.compat.proto.summary_pb2 import Summary

    with tempfile.TemporaryDirectory() as folder:
        if path.suffix != ".png":
            video = VideoFile(path)
            path = Path(folder) / "video.gif"
            write_video(path, video.read(range(len(video))), fps=video.fps)
        with Image.open(path) as picture:
            width, height = picture.size
        image = Summary.Image(
            height=height, width=width, colorspace=3, encoded_image_string=path.read_bytes()
        )
    writer.file_writer.add_summary(Summary(value=[Summary.Value(tag=name, image=image)]), step)
    writer.flush()
