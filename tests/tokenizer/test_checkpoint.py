import json
import pickle
from itertools import cycle

import pytest
import torch
from huggingface_hub import ModelHubMixin
from safetensors.torch import load_file, save_file

from magvit2_pytorch import VideoTokenizer
from tests.conftest import EVERY_PRESET, QUANTIZERS, build, cond_of, narrow, random_video


def saved(tokenizer, folder):
    tokenizer.save_pretrained(folder)
    return VideoTokenizer.from_pretrained(folder)


LAYERS = [("compress_space", "compress_time"), ("cond_residual",)]


@pytest.mark.parametrize(
    ("quantizer", "layers"), list(zip(QUANTIZERS, cycle(LAYERS), strict=False))
)
def test_saved_and_loaded_is_the_same(tmp_path, quantizer, layers):
    tokenizer = build(*layers, quantizer=quantizer)
    loaded = saved(tokenizer, tmp_path / "t")
    assert loaded.config == tokenizer.config
    assert not loaded.training
    video, cond = random_video(5), cond_of(tokenizer)
    ours, theirs = (t.quantize(t.encode(video, cond)) for t in (tokenizer, loaded))
    assert torch.equal(ours.quantized, theirs.quantized)
    assert ours.codes is theirs.codes is None or torch.equal(ours.codes, theirs.codes)
    assert torch.equal(tokenizer(video, cond), loaded(video, cond))


@pytest.mark.parametrize("name", EVERY_PRESET)
def test_presets_too(tmp_path, name):
    tokenizer = narrow(name)
    loaded = saved(tokenizer, tmp_path)
    video = random_video(2, (16, 16))
    assert torch.equal(loaded(video), tokenizer(video))


def test_a_folder_holds_plain_files(tmp_path):
    tokenizer = build("residual")
    saved(tokenizer, tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"config.json", "model.safetensors", "README.md"}
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert config == tokenizer.config.to_dict()


def test_options_given_while_loading_come_first(tmp_path):
    build("residual").save_pretrained(tmp_path)
    assert VideoTokenizer.from_pretrained(tmp_path, image_size=32).config.image_size == 32


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_missing_file_is_named(tmp_path, name):
    build("residual").save_pretrained(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"holds no {name}"):
        VideoTokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["no/such/folder", "../no", "./no"])
def test_a_path_that_is_not_there_is_no_hub_name(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    for path in (name, tmp_path / name):
        with pytest.raises(FileNotFoundError, match="there is no folder"):
            VideoTokenizer.from_pretrained(path)


@pytest.mark.parametrize("kept", [0, 5, 100, -100])
def test_a_damaged_file_is_named(tmp_path, kept):
    build("residual").save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"model\.safetensors is (damaged|empty)"):
        VideoTokenizer.from_pretrained(tmp_path)


def test_weights_of_another_tokenizer_are_refused(tmp_path):
    build("residual").save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    state.pop(next(iter(state)))
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"does not fit its config\.json"):
        VideoTokenizer.from_pretrained(tmp_path)


def test_options_that_change_the_weights_do_not_fit(tmp_path):
    build("residual").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"does not fit its config\.json"):
        VideoTokenizer.from_pretrained(tmp_path, init_dim=4)


def test_weights_come_back_in_the_memory_order_that_is_fast(tmp_path):
    loaded = saved(build("residual"), tmp_path)
    convs = [p for p in loaded.parameters() if p.ndim == 5]
    assert convs
    assert all(p.is_contiguous(memory_format=torch.channels_last_3d) for p in convs)


def test_an_unknown_key_is_refused(tmp_path):
    build("residual").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | {"codebook_sise": 3}
    path.write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ValueError, match="did you mean codebook_size"):
        VideoTokenizer.from_pretrained(tmp_path)


class Trap:
    """Says so when a pickle of it is opened."""

    def __reduce__(self):
        return print, ("the pickle ran",)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors", "model.pt"])
def test_a_pickle_is_never_opened(tmp_path, capsys, name):
    build("residual").save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / name).write_bytes(pickle.dumps(Trap()))
    with pytest.raises((FileNotFoundError, ValueError)):
        VideoTokenizer.from_pretrained(tmp_path)
    assert "the pickle ran" not in capsys.readouterr().out


def test_a_pickle_beside_the_weights_is_not_opened_either(tmp_path, capsys):
    build("residual").save_pretrained(tmp_path)
    for name in ("pytorch_model.bin", "model.pt", "training_state.pkl"):
        (tmp_path / name).write_bytes(pickle.dumps(Trap()))
    VideoTokenizer.from_pretrained(tmp_path)
    assert "the pickle ran" not in capsys.readouterr().out


@pytest.mark.parametrize("parent", ["runs", "runs/deep", "."])
def test_a_folder_that_is_not_there_is_not_looked_for_elsewhere(tmp_path, monkeypatch, parent):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "deep").mkdir(parents=True)
    monkeypatch.setattr(ModelHubMixin, "from_pretrained", None)
    for name in (f"{parent}/nothere", tmp_path / parent / "nothere", f"~/{parent}/nothere"):
        with pytest.raises(FileNotFoundError, match=r"there is no folder .*nothere"):
            VideoTokenizer.from_pretrained(name)
    (tmp_path / "weights.safetensors").touch()
    with pytest.raises(NotADirectoryError, match="is a file: give a folder"):
        VideoTokenizer.from_pretrained("weights.safetensors")


def test_a_name_on_the_hub_is_said_before_it_is_looked_for(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        ModelHubMixin, "from_pretrained", classmethod(lambda cls, name, **_: caplog.messages[:])
    )
    said = "there is no folder owner/name: looking for it on the Hugging Face hub"
    assert VideoTokenizer.from_pretrained("owner/name") == [said]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "latin-1", "a list"])
def test_encodings_of_the_config(tmp_path, encoding):
    tokenizer = build("residual")
    tokenizer.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    text = path.read_text()
    if encoding == "utf-8-sig":
        path.write_text(text, encoding=encoding)
        assert VideoTokenizer.from_pretrained(tmp_path).config == tokenizer.config
        return
    text = "[1]" if encoding == "a list" else text.replace("residual", "r\xe9sidual")
    path.write_text(text, encoding="utf-8" if encoding == "a list" else encoding)
    words = "holds no options" if encoding == "a list" else ".*save it as UTF-8"
    with pytest.raises(ValueError, match=rf"config\.json {words}"):
        VideoTokenizer.from_pretrained(tmp_path)


def test_the_home_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    build("residual").save_pretrained("~/mine")
    assert (tmp_path / "mine" / "config.json").is_file()
    VideoTokenizer.from_pretrained("~/mine")
    assert not (tmp_path / "~").exists()
