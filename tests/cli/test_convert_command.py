"""convert: a checkpoint of O2-MAGVIT2 to a folder that the other commands take."""

import json

import pytest
import torch
from safetensors.torch import save_file

from magvit2_pytorch import VideoTokenizer
from magvit2_pytorch.convert.conversion import convert_checkpoint
from magvit2_pytorch.discriminators.models import load_discriminator
from magvit2_pytorch.quantizers.lfq import convert_bit_order
from magvit2_pytorch.tokenizer.pretrained import Pretrained
from tests import vidtok
from tests.conftest import random_video
from tests.o2_magvit2 import Shape, discriminator_shapes, made_state, mask, tokenizer_shapes

SHAPE = Shape(32, (1, 2), (True,), 1, 6)
IMAGES = Shape(32, (1, 2, 2), (False, False), 1, 9, is_video=False)


def tokenizer_state(shape=SHAPE):
    return {**made_state(tokenizer_shapes(shape), 0), "quantize.mask": mask(shape.bits)}


def trainer_state(shape=SHAPE, **changes):
    """What the trainer saves: both sides."""
    map_size = (1, 4, 4) if shape.is_video else (4, 4)
    judge = made_state(discriminator_shapes(8, (2, 2, 2, 2, 2), map_size), 1) | changes
    return {
        **{f"tokenizer.{name}": x for name, x in tokenizer_state(shape).items()},
        **{f"discriminator.{name}": x for name, x in judge.items()},
        "perceptual_model.features.0.bias": torch.ones(3),
    }


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "pytorch_model.bin"
    torch.save(tokenizer_state(), path)
    return path


def test_a_tokenizer(run, checkpoint, tmp_path):
    count = sum(x.numel() for x in made_state(tokenizer_shapes(SHAPE), 0).values())
    status, out, err = run("convert", checkpoint, "-o", tmp_path / "new" / "o2")
    assert (status, err) == (0, "")
    for line in (
        "model           video",
        f"parameters      {count:,}",
        "compression     2 x 2 x 2",
        "bits            6 to a code, msb",
        "bits_per_pixel  0.75",
        "discriminator   none",
    ):
        assert line in out.splitlines(), out
    assert out.endswith(f"Wrote {tmp_path}/new/o2/\n")
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"o2"}
    names = {path.name for path in (tmp_path / "new" / "o2").iterdir()}
    assert names == {"config.json", "model.safetensors", "README.md"}
    tokenizer, video = VideoTokenizer.from_pretrained(tmp_path / "new" / "o2"), random_video(5)
    assert torch.equal(tokenizer(video), convert_checkpoint(checkpoint)(video))
    about = json.loads(run("info", tmp_path / "new" / "o2", "--json")[1])
    assert (about["parameters"], about["codebook_size"]) == (count, 64)


def test_a_published_vidtok_tokenizer(run, tmp_path):
    """All that it needs is in the name of the file; another name asks for it."""
    shape, path = (
        vidtok.Shape(8, (1, 2, 2), z=5),
        tmp_path / "vidtok_fsq_causal_444_32768_v1_1.ckpt",
    )
    state = vidtok.made_state(shape) | {"loss.discriminator.main.0.bias": torch.ones(4)}
    torch.save({"state_dict": state, "optimizer_states": [torch.ones(2)]}, path)
    status, out, err = run("convert", path, "-o", tmp_path / "vidtok")
    assert (status, err) == (0, "")
    for line in (
        "model           video",
        "compression     4 x 4 x 4",
        "levels          8, 8, 8, 8, 8",
        "bits_per_pixel  0.234375",
        "left_out        discriminator (1), optimizer_states (1)",
    ):
        assert line in out.splitlines(), out
    video, other = random_video(5), path.rename(tmp_path / "last.ckpt")
    status, _, err = run("convert", other, "-o", tmp_path / "again")
    assert (status, "levels are not given: give the 5" in err) == (1, True)
    asked = ("--levels", "8,8,8,8,8", "--vidtok_version", "1.1")
    assert run("convert", other, "-o", tmp_path / "again", *asked)[0] == 0
    first, second = (VideoTokenizer.from_pretrained(tmp_path / n) for n in ("vidtok", "again"))
    assert torch.equal(first(video), second(video))
    nearest = ("--interpolation_mode", "nearest", "--vidtok_version", "1.0")
    assert (
        run("convert", path.parent / "last.ckpt", "-o", tmp_path / "x", *asked[:2], *nearest)[0]
        == 0
    )
    assert VideoTokenizer.from_pretrained(tmp_path / "x").look_ahead == 0
    assert run("convert", other, "-o", tmp_path / "y", "--bit_order", "msb", *asked)[0] == 1


def test_bits_in_the_other_order(run, checkpoint, tmp_path):
    assert run("convert", checkpoint, "-o", tmp_path / "msb")[0] == 0
    status, out, _ = run("convert", checkpoint, "-o", tmp_path / "lsb", "--bit_order", "lsb")
    assert status == 0
    assert "6 to a code, lsb" in out
    msb, lsb = (VideoTokenizer.from_pretrained(tmp_path / order) for order in ("msb", "lsb"))
    video = random_video(5)
    assert torch.equal(lsb.tokenize(video), convert_bit_order(msb.tokenize(video), 6))
    assert run("convert", checkpoint, "-o", tmp_path / "x", "--bit_order", "middle")[0] == 2


@pytest.mark.parametrize(("shape", "size"), [(SHAPE, (17, 128, 128)), (IMAGES, (128, 128))])
def test_what_the_trainer_saved_brings_its_discriminator(run, tmp_path, shape, size):
    (tmp_path / "iter_500").mkdir()
    save_file(trainer_state(shape), tmp_path / "iter_500" / "model.safetensors")
    status, out, err = run("convert", tmp_path / "iter_500", "-o", tmp_path / "o2")
    assert (status, err) == (0, "")
    assert f"model           {'video' if shape.is_video else 'images'}\n" in out
    discriminator = load_discriminator(tmp_path / "o2" / "discriminator.safetensors")
    assert discriminator.network.head.input_size == size
    count = sum(p.numel() for p in discriminator.parameters())
    assert f"discriminator   {count:,} parameters, for {' x '.join(map(str, size))}\n" in out
    assert "left_out        perceptual_model (1)\n" in out
    VideoTokenizer.from_pretrained(tmp_path / "o2")


@pytest.mark.filterwarnings("always:.*it is left out")
def test_a_discriminator_that_does_not_fit_is_left_out_and_said(run, tmp_path):
    state = trainer_state(**{"norm_fn.norm_fn.weight": torch.ones(16)})
    save_file(state, tmp_path / "model.safetensors")
    status, out, err = run("convert", tmp_path / "model.safetensors", "-o", tmp_path / "o2")
    assert status == 0
    assert "discriminator   left out\n" in out
    assert err == (
        "magvit2: warning: the discriminator has norm_fn.norm_fn.weight too many: it is left out\n"
    )
    assert not (tmp_path / "o2" / "discriminator.safetensors").exists()
    VideoTokenizer.from_pretrained(tmp_path / "o2")


def test_an_empty_folder_is_filled_and_another_is_left_alone(run, checkpoint, tmp_path):
    out = tmp_path / "o2"
    out.mkdir()
    assert run("convert", checkpoint, "-o", out)[0] == 0
    before = {path: path.read_bytes() for path in out.iterdir()}
    status, said, err = run("convert", checkpoint, "-o", out)
    assert (status, said) == (1, "")
    assert err == (
        f"magvit2: error: {out} is not empty: name a new folder, or remove its contents\n"
    )
    assert {path: path.read_bytes() for path in out.iterdir()} == before
    status, _, err = run("convert", checkpoint, "-o", out / "config.json")
    assert status == 1
    assert "config.json is a file: name a folder" in err


def test_the_folder_that_one_is_in(run, checkpoint, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert run("convert", checkpoint, "-o", ".")[0] == 0
    VideoTokenizer.from_pretrained(tmp_path / "here")


def test_what_breaks_off_leaves_nothing(run, checkpoint, tmp_path, monkeypatch):
    true_save = Pretrained._save_pretrained

    def fail(self, folder):
        true_save(self, folder)
        raise OSError(28, "No space left")

    monkeypatch.setattr(Pretrained, "_save_pretrained", fail)
    before = set(tmp_path.iterdir())
    status, out, err = run("convert", checkpoint, "-o", tmp_path / "o2")
    assert (status, out) == (1, "")
    assert err.startswith("magvit2: error: ")
    assert "space" in err
    assert err.count("\n") == 1
    assert set(tmp_path.iterdir()) == before


def test_what_was_killed_does_not_stay_in_the_way(run, checkpoint, tmp_path):
    (tmp_path / ".o2.part").mkdir()
    (tmp_path / ".o2.part" / "leftover").write_text("half")
    assert run("convert", checkpoint, "-o", tmp_path / "o2")[0] == 0
    assert not (tmp_path / ".o2.part").exists()
    assert not (tmp_path / "o2" / "leftover").exists()


def truncated(path):
    torch.save(tokenizer_state(), path)
    path.write_bytes(path.read_bytes()[:-100])


def pointer(path):
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


def incomplete(path):
    state = tokenizer_state()
    del state["decoder.conv_last.conv.bias"]
    torch.save(state, path)


def another(path):
    torch.save({"encoder.mid.block_1.norm1.weight": torch.ones(3)}, path)


def missing(path):
    pass


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (truncated, "was refused: it is damaged"),
        (pointer, "is a git-LFS pointer"),
        (incomplete, "it lacks decoder.conv_last.conv.bias"),
        (another, "is not a checkpoint of O2-MAGVIT2 or VidTok but looks like an autoencoder"),
        (missing, "there is no file"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(run, tmp_path, write, message):
    write(tmp_path / "model.ckpt")
    status, out, err = run("convert", tmp_path / "model.ckpt", "-o", tmp_path / "o2")
    assert (status, out) == (1, "")
    assert err.startswith("magvit2: error: ")
    assert message in err
    assert str(tmp_path / "model.ckpt") in err
    assert err.count("\n") == 1
    assert not (tmp_path / "o2").exists()


@pytest.mark.parametrize("words", [[], ["x"], ["-o", "y"], ["x", "y", "-o", "z"]])
def test_wrong_usage(run, words):
    assert run("convert", *words)[:2] == (2, "")
