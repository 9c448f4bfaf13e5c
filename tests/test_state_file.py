"""Files of weights: what is read, what is refused and why, and that nothing is run."""

import builtins
import pickle
import zipfile
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import save_file

from magvit2_pytorch.codes.code_file import write_codes
from magvit2_pytorch.discriminators.models import FrameDiscriminator, save_discriminator
from magvit2_pytorch.tokenizer.tiling import MemoryTracker
from magvit2_pytorch.training.checkpoints import save_state
from magvit2_pytorch.weights import DTYPES, abbreviate, mismatches, read_tensors, write_tensors
from tests.codes.test_code_file import VIDEO, codes_for
from tests.conftest import build

STATE = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.ones((), dtype=torch.int64)}
ACCEPTED = "a file of ours"


def assert_state(found):
    assert found.keys() == STATE.keys()
    for name, tensor in STATE.items():
        assert torch.equal(found[name], tensor)
        assert found[name].dtype == tensor.dtype


@pytest.mark.parametrize(
    "content",
    [
        STATE,
        OrderedDict(STATE),
        {"state_dict": STATE},
        {"state_dict": OrderedDict(STATE), "epoch": 3, "loss": 0.5, "optimizer": {"state": STATE}},
        {**STATE, "step": 7, "note": "text", "nothing": None, "config": {"width": 3}},
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_what_torch_save_wrote(content, zipped, tmp_path):
    path = tmp_path / "weights.ckpt"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    for place in (path, str(path)):
        assert_state(read_tensors(place, ACCEPTED))


def test_an_older_way_to_pickle_is_no_reason_to_warn(tmp_path):
    torch.save(STATE, tmp_path / "weights.pt", pickle_protocol=3)
    assert_state(read_tensors(tmp_path / "weights.pt", ACCEPTED))


def test_safetensors(tmp_path):
    save_file(STATE, tmp_path / "weights.safetensors")
    assert_state(read_tensors(tmp_path / "weights.safetensors", ACCEPTED))


def kernels(count):
    """In channels-last memory, which the format has not."""
    kernels = torch.randn(count, 8, 4, 3, 3, 3).unbind()
    return [kernel.contiguous(memory_format=torch.channels_last_3d) for kernel in kernels]


def test_what_is_written_is_what_safetensors_writes(tmp_path):
    tensors = {f"{len(DTYPES) - i}": torch.randn(5).to(dtype) for i, dtype in enumerate(DTYPES)}
    tensors |= {"kernel": kernels(1)[0], "größe": torch.randn(3, 2).T, "empty": torch.ones(0, 3)}
    tensors |= {"parameter": torch.nn.Parameter(torch.ones(2)), "count": torch.tensor(7)}
    write_tensors(tensors, tmp_path / "ours")
    save_file({name: x.detach().contiguous() for name, x in tensors.items()}, tmp_path / "theirs")
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    write_tensors({}, tmp_path / "ours")
    save_file({}, tmp_path / "theirs")
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_a_checkpoint_copies_one_tensor_at_a_time(tmp_path):
    tensors = {str(number): kernel for number, kernel in enumerate(kernels(6))}
    sizes = [tensor.nbytes for tensor in tensors.values()]
    with MemoryTracker() as tracker:
        save_state(tmp_path / "state", tensors, {})
    # The tensors themselves are seen too.
    assert sum(sizes) < tracker.peak <= sum(sizes) + max(sizes)


def test_no_tensors_are_no_tensors(tmp_path):
    torch.save({}, tmp_path / "weights.pt")
    assert read_tensors(tmp_path / "weights.pt", ACCEPTED) == {}


def test_an_archive_that_was_packed_anew(tmp_path):
    torch.save(STATE, tmp_path / "plain.pt")
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as plain,
        zipfile.ZipFile(tmp_path / "packed.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    assert_state(read_tensors(tmp_path / "packed.pt", ACCEPTED))


def test_a_large_file_is_not_read_at_once(tmp_path, monkeypatch):
    asked = {}
    true_load = torch.load
    monkeypatch.setattr(torch, "load", lambda *a, **kw: asked.update(kw) or true_load(*a, **kw))
    torch.save(STATE, tmp_path / "plain.pt")
    read_tensors(tmp_path / "plain.pt", ACCEPTED)
    assert asked == dict(map_location="cpu", weights_only=True, mmap=True)


class Exploit:
    """Unpickled, it would call `open`."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return builtins.open, (self.path, "w")


def as_zip(content, path):
    torch.save(content, path)


def as_legacy(content, path):
    torch.save(content, path, _use_new_zipfile_serialization=False)


def as_pickle(content, path):
    path.write_bytes(pickle.dumps(content))


@pytest.mark.parametrize("save", [as_zip, as_legacy, as_pickle])
@pytest.mark.parametrize("nested", [False, True])
def test_a_pickle_with_code_is_refused_and_not_run(save, nested, tmp_path):
    path, trace = tmp_path / "evil.pth", tmp_path / "trace"
    content = {"a.weight": 1.0, "b": Exploit(trace)}
    save({"state_dict": content} if nested else content, path)
    with pytest.raises(ValueError, match=r"evil\.pth was refused: it .* and might run code; give"):
        read_tensors(path, ACCEPTED)
    assert not trace.exists()
    # It is what it claims to be: whoever unpickles it, runs it.
    if save is as_pickle:
        pickle.loads(path.read_bytes())
        assert trace.exists()


class Settings:
    """Harmless, but to unpickle it is to run whatever its class says."""


@pytest.mark.parametrize("save", [as_zip, as_legacy])
def test_objects_beside_tensors_are_named(save, tmp_path):
    save({**STATE, "settings": Settings()}, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=r"contains tests.*\.Settings beside tensors"):
        read_tensors(tmp_path / "weights.pt", ACCEPTED)


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
@pytest.mark.parametrize("kept", [1, 7, 8, 40, 0.5, 0.99])
def test_a_truncated_file(suffix, kept, tmp_path):
    path = tmp_path / f"weights{suffix}"
    save_file(STATE, path) if suffix == ".safetensors" else torch.save(STATE, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: kept if isinstance(kept, int) else int(kept * len(whole))])
    with pytest.raises(ValueError, match=r"weights\.\w+ (is|was refused: it is) damaged"):
        read_tensors(path, ACCEPTED)


def test_a_zip_that_is_no_checkpoint(tmp_path):
    with zipfile.ZipFile(tmp_path / "some.pth", "w") as archive:
        archive.writestr("folder/readme", "hello")
    with pytest.raises(ValueError, match=r"some\.pth was refused.* not made by torch\.save"):
        read_tensors(tmp_path / "some.pth", ACCEPTED)


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1519387220\n"


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty: download or copy it again"),
        (LFS, "is a git-LFS pointer, .* `git lfs pull`"),
        (b"<!DOCTYPE html>\n<html>", "is a web page: download the file itself"),
        (b"\n  <HTML><head>", "is a web page"),
        (b"   \n", "damaged"),
    ],
)
def test_what_is_saved_in_place_of_weights(suffix, content, message, tmp_path):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"weights\{suffix} .*{message}"):
        read_tensors(path, ACCEPTED)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 3}, "contains no named tensors: give a file of ours"),
        ({"state_dict": {"epoch": 3}}, "contains no named tensors: give"),
        ([torch.ones(2)], "contains no named tensors: give"),
        (torch.ones(2), "contains no named tensors: give"),
        ({0: torch.ones(2)}, "contains no named tensors: give"),
        (
            {"model": STATE, "ema": STATE},
            r"contains no named tensors, but dicts \(model, ema\): give",
        ),
    ],
)
def test_what_holds_no_tensors_by_name(content, message, tmp_path):
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=rf"weights\.pt {message}"):
        read_tensors(tmp_path / "weights.pt", ACCEPTED)


@pytest.mark.parametrize("name", ["none.pt", "none.safetensors", "folder"])
def test_a_file_that_is_not_there(name, tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(FileNotFoundError, match=f"no file .*{name}: give a file of ours"):
        read_tensors(tmp_path / name, ACCEPTED)


def test_misfits_are_named_in_order_and_the_first_few_only():
    state = {name: torch.ones(2, 3) for name in "abc"}
    assert mismatches(state, {name: (2, 3) for name in "abc"}) == ""
    assert mismatches(state, {name: (2, 3) for name in "ab"}) == "has c too many"
    assert mismatches(state, {name: (2, 3) for name in "abcde"}) == "lacks d, e"
    assert mismatches(state, dict(a=(2, 3), b=[3, 2], c=(2, 3))) == "b is (2, 3), not (3, 2)"
    wanted = {"a": (2,), "b": (2, 3), **dict.fromkeys("vwxyz", ())}
    assert mismatches(state, wanted) == (
        "lacks v, w, x and 2 more; has c too many; a is (2, 3), not (2,)"
    )
    assert abbreviate(["a"]) == "a"


def test_what_is_written_is_for_whom_new_files_are_for(tmp_path):
    """Tokenizers, checkpoints, discriminators and codes alike."""
    (tmp_path / "plain").touch()
    usual = (tmp_path / "plain").stat().st_mode
    build("residual").save_pretrained(tmp_path / "tokenizer")
    save_state(tmp_path / "state", {"x": torch.zeros(2)}, {})
    save_discriminator(FrameDiscriminator(dim=4, dim_mults=(1,)), tmp_path / "d.safetensors")
    write_codes(tmp_path / "x.codes.safetensors", codes_for(VIDEO), VIDEO)
    files = list(tmp_path.rglob("*.safetensors"))
    assert len(files) == 4
    assert {path.stat().st_mode for path in files} == {usual}
