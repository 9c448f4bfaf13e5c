"""A folder to evaluate, networks that look at it, and what a report says but for the time."""

import json
import shutil

import torch

from magvit2_pytorch.evaluation.clip_choice import ClipChoice
from magvit2_pytorch.evaluation.evaluator import Evaluation
from magvit2_pytorch.losses.perceptual import PerceptualLoss
from magvit2_pytorch.losses.perceptual_networks import FeatureTrunk
from magvit2_pytorch.media.images import write_image
from magvit2_pytorch.pipelines.progress import FileProgress
from tests.data.clip_files import make_video

CHOICE = ClipChoice(num_frames=5, clips_per_video=3)


def make_folder(folder):
    """Videos of 3, 1 and 2 clips of 5 frames, two images, and what cannot be used."""
    folder.mkdir()
    (folder / "more").mkdir()
    make_video(folder / "a.mkv", 16, 18, 22, codec="ffv1")
    make_video(folder / "more" / "b.mkv", 6, 16, 16, codec="ffv1", fps=10)
    make_video(folder / "c.mkv", 11, 24, 16, codec="ffv1")
    make_video(folder / "short.mkv", 4, 16, 16, codec="ffv1")
    (folder / "broken.mp4").write_bytes(b"no video at all")
    (folder / "broken.png").write_bytes(b"no picture at all")
    for number, size in enumerate(((9, 13), (20, 32))):
        picture = torch.randint(256, (*size, 3), dtype=torch.uint8)
        write_image(folder / f"picture-{number}.png", picture)
    return folder


def small_perceptual():
    """Two layers of random weights, the same each time."""
    generator = torch.Generator().manual_seed(5)
    layers = [torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 6, 3)]
    trunk = FeatureTrunk("small", layers, taps=(1, 2), min_size=12)
    for parameter in trunk.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return PerceptualLoss(trunk)


class FakeI3D(torch.nn.Module):
    """Called as StyleGAN-V's file is; its features tell how it was called and what it saw."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(7, 3, generator=torch.manual_seed(9)))

    def forward(
        self,
        x: torch.Tensor,
        rescale: bool = False,
        resize: bool = False,
        return_features: bool = False,
    ) -> torch.Tensor:
        if rescale or resize or x.shape[2] < 4:
            raise ValueError("not by the protocol")
        frames = torch.matmul(self.weight, x.mean(dim=(3, 4)))
        return frames.mean(dim=2) if return_features else 2 * frames


def fake_i3d(path):
    """The path of a TorchScript file of it."""
    torch.jit.script(FakeI3D()).save(str(path))
    return path


class StopAfter(FileProgress):
    """Ctrl-C after so many clips."""

    def __init__(self, clips):
        self.clips = clips

    def counted(self, done, at_most):
        if done == self.clips:
            raise KeyboardInterrupt


class Counter(FileProgress):
    """What an evaluation told."""

    def __init__(self):
        self.before, self.told, self.names = None, [], []

    def planned(self, plan):
        self.before = (plan.num_done_before, plan.num_inputs)

    def counted(self, done, at_most):
        self.told.append((done, at_most))

    def finished(self, name, reason):
        self.names.append(name)


def evaluated(tokenizer, source, folder, choice=CHOICE, progress=None, **options):
    return Evaluation(tokenizer, source, choice, **options).run(folder, progress)


def without_time(folder):
    """All that is in a report's folder, but for how long it took."""
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    report = json.loads(files["report.json"])
    del report["elapsed_s"]
    files["report.json"] = json.dumps(report).encode()
    lines = files["report.md"].splitlines()
    files["report.md"] = b"\n".join(x for x in lines if not x.startswith(b"| evaluation time"))
    # An encoder with several threads writes the same frames in other bytes.
    videos = [name for name in files if name.endswith(".mp4")]
    for name in ("sums.safetensors", *videos):
        del files[name]
    return files


def copied(source, target, names):
    """The same files, written one after the other in this order."""
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source / name, target / name)
    return target
