"""A tokenizer and clips that all commands can be tried on, made once."""

import pytest
import torch

from magvit2_pytorch import VideoTokenizer
from magvit2_pytorch.cli.main import main
from magvit2_pytorch.media.images import write_image
from tests.data.clip_files import make_video
from tests.pipelines.test_export import without_tracing  # noqa: F401


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """The folder of a tiny tokenizer."""
    folder = tmp_path_factory.mktemp("tokenizer")
    torch.manual_seed(0)
    VideoTokenizer.from_preset("tiny").save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def clips(tmp_path_factory):
    """A folder with videos, an image, a sub-folder, a damaged video and a text."""
    folder = tmp_path_factory.mktemp("clips")
    (folder / "more").mkdir()
    make_video(folder / "one.mp4", 6, 18, 22, fps=10)
    make_video(folder / "more" / "two.avi", 3, 16, 16, codec="mpeg4")
    write_image(folder / "picture.png", torch.full((9, 13, 3), 80, dtype=torch.uint8))
    (folder / "broken.mp4").write_bytes(b"no video at all")
    (folder / "notes.txt").write_text("not a clip")
    return folder


@pytest.fixture
def run(capsys):
    """Runs a command line as strings; gives status, stdout and stderr."""

    def run(*words):
        status = main([str(word) for word in words])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return status, out, err

    return run
