"""Nothing that is loaded runs code: every file of every kind is replaced by one that would."""

import builtins
import pickle
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from magvit2_pytorch import VideoTokenizer, VideoTokenizerTrainer
from magvit2_pytorch.cli.main import main
from magvit2_pytorch.codes.code_file import read_codes
from magvit2_pytorch.codes.codes_dataset import CodesDataset
from magvit2_pytorch.data.clips import ClipSpec
from magvit2_pytorch.data.datasets import VideoDataset
from magvit2_pytorch.discriminators.discriminator import build_discriminator
from magvit2_pytorch.discriminators.models import load_discriminator, save_discriminator
from magvit2_pytorch.losses.perceptual_networks import load_trunk
from magvit2_pytorch.training.checkpoints import Checkpoints
from tests.data.clip_files import make_video

pytestmark = pytest.mark.filterwarnings("ignore")


class Exploit:
    """Whoever unpickles it opens a file, and so leaves a trace."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return builtins.open, (str(self.trace), "w")


def as_pickle(path, trace):
    path.write_bytes(pickle.dumps(Exploit(trace)))


def as_torch(path, trace):
    torch.save({"state_dict": Exploit(trace)}, path)


def as_yaml(path, trace):
    path.write_text(f'!!python/object/apply:builtins.open ["{trace}", "w"]\n', encoding="utf-8")


PAYLOADS = [as_pickle, as_torch, as_yaml]


@pytest.mark.parametrize("payload", PAYLOADS)
def test_the_payloads_are_what_they_claim_to_be(tmp_path, payload):
    path, trace = tmp_path / "evil", tmp_path / "trace"
    payload(path, trace)
    if payload is as_yaml:
        yaml.unsafe_load(path.read_text(encoding="utf-8"))
    elif payload is as_torch:
        torch.load(path, weights_only=False)
    else:
        pickle.loads(path.read_bytes())
    assert trace.exists()


def _trainer(folder: Path) -> VideoTokenizerTrainer:
    clips = list(torch.rand(4, 3, 5, 16, 16) * 2 - 1)
    return VideoTokenizerTrainer(
        VideoTokenizer.from_preset("tiny"),
        dataset=clips,
        valid_dataset=clips,
        results_folder=str(folder / "results"),
        checkpoints_folder=str(folder / "checkpoints"),
        progress_bar=False,
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """One of each thing that can be loaded, a folder each."""
    folder = tmp_path_factory.mktemp("whole")
    VideoTokenizer.from_preset("tiny").save_pretrained(folder / "tokenizer")
    _trainer(folder).save(folder / "checkpoint" / "checkpoints" / "step-0")
    for name in ("discriminator", "videos", "trunk", "options"):
        (folder / name).mkdir()
    discriminator = build_discriminator("frame", dim=4)
    save_discriminator(discriminator, folder / "discriminator" / "d.safetensors")
    clip = str(make_video(folder / "videos" / "a.mp4", 9))
    code_file = str(folder / "code" / "a.codes.safetensors")
    for source, target in ((str(folder / "videos"), str(folder / "codes")), (clip, code_file)):
        model = str(folder / "tokenizer")
        assert main(["tokenize", source, "--model", model, "-o", target]) == 0
    VideoDataset(clip, ClipSpec(num_frames=5, image_size=16), cache_dir=folder / "cache")
    (folder / "trunk" / "vgg.pth").touch()
    (folder / "options" / "config.yaml").touch()
    return folder


def _train(folder: Path, *options: str) -> None:
    if main(["train", str(folder.parent / "videos"), "-o", str(folder / "out"), *options]):
        raise ValueError("refused")


LOADERS = {
    "tokenizer": lambda folder: VideoTokenizer.from_pretrained(folder),
    "checkpoint": lambda folder: _trainer(folder).load(folder / "checkpoints" / "step-0"),
    "discriminator": lambda folder: load_discriminator(folder / "d.safetensors"),
    "code": lambda folder: read_codes(folder / "a.codes.safetensors"),
    "codes": lambda folder: CodesDataset(folder)[0],
    "cache": lambda folder: VideoDataset(
        folder.parent / "videos" / "a.mp4", ClipSpec(num_frames=5, image_size=16), cache_dir=folder
    )[0],
    "trunk": lambda folder: load_trunk(folder / "vgg.pth"),
    "options": lambda folder: _train(folder, "--config", str(folder / "config.yaml")),
}
ALSO = {
    "checkpoint": [lambda folder: Checkpoints(folder / "checkpoints").choose("auto")],
    "tokenizer": [lambda folder: _train(folder, "--init_from", str(folder))],
}
UNREAD = {"README.md", "a.mp4"}
"""What nothing is read from."""
REPLACED = {"cache", "codes"}
"""What is damaged there may be passed over or made anew instead of refused."""


@pytest.mark.parametrize("payload", PAYLOADS)
@pytest.mark.parametrize("kind", LOADERS)
def test_nothing_is_run(whole, tmp_path, payload, kind):
    trace = tmp_path / "trace"
    names = [path.relative_to(whole / kind) for path in (whole / kind).rglob("*") if path.is_file()]
    tried = [name for name in names if name.name not in UNREAD]
    assert tried
    shutil.copytree(whole / "videos", tmp_path / "videos")
    for name in tried:
        shutil.rmtree(tmp_path / kind, ignore_errors=True)
        shutil.copytree(whole / kind, tmp_path / kind)
        payload(tmp_path / kind / name, trace)
        for load in (LOADERS[kind], *ALSO.get(kind, ())):
            try:
                load(tmp_path / kind)
                refused = False
            except (ValueError, OSError):
                refused = True
            assert refused or kind in REPLACED, f"{name} was taken for a {kind}"
            assert not trace.exists(), f"{name} was run"


@pytest.mark.parametrize("kind", [kind for kind in LOADERS if kind not in ("trunk", "options")])
def test_all_of_them_load_as_they_are(whole, kind):
    """Else a refusal would say nothing."""
    LOADERS[kind](whole / kind)
