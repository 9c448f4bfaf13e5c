"""Importing costs next to nothing and needs nothing optional."""

import subprocess
import sys

import pytest

HEAVY = """torchvision wandb accelerate av matplotlib huggingface_hub transformers jsonargparse
safetensors tensorboard PIL vector_quantize_pytorch"""

LISTED = f"""
import sys, torch
before = set(sys.modules)
import magvit2_pytorch
new = {{name.split(".")[0] for name in set(sys.modules) - before}}
assert not new & set({HEAVY.split()!r}), new
assert len(set(sys.modules) - before) < 10, set(sys.modules) - before
assert magvit2_pytorch.__version__
import magvit2_pytorch.data, magvit2_pytorch.tokenizer.model
assert not set(sys.modules) & {{"av", "PIL", "torchvision", "matplotlib", "torch._dynamo"}}
"""

BLOCKED = """
import socket
needed = ("av", "matplotlib", "accelerate", "transformers", "jsonargparse", "tensorboard",
    "torch.utils.tensorboard")
sys.modules.update(dict.fromkeys(("torchvision", "wandb", *needed)))
def no_network(*args, **kwargs):
    raise OSError("no network")
socket.socket.__init__ = socket.socket.connect = socket.getaddrinfo = no_network
from magvit2_pytorch import VideoTokenizer
tokenizer = VideoTokenizer.from_preset("tiny").eval()
video = torch.rand(1, 3, 5, 16, 16)
assert tokenizer.decode_from_code_indices(tokenizer.tokenize(video)).shape == video.shape
tokenizer.save_pretrained(sys.argv[1])
VideoTokenizer.from_pretrained(sys.argv[1])
"""

TRAINED = """
for name in needed:
    del sys.modules[name]
from magvit2_pytorch import VideoTokenizerTrainer
clips = [torch.rand(3, 5, 16, 16) * 2 - 1 for _ in range(4)]
trainer = VideoTokenizerTrainer(VideoTokenizer.from_preset("tiny"), dataset=clips, batch_size=1,
    num_train_steps=1, results_folder=sys.argv[1], checkpoints_folder=sys.argv[1] + "/checkpoints")
trainer.train()
"""


def test_in_a_process_of_its_own(tmp_path):
    """Imported, then used with most packages out of reach, then trained without two of them."""
    command = [sys.executable, "-c", LISTED + BLOCKED + TRAINED, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]


def test_public_names_are_there_and_others_are_not():
    import magvit2_pytorch

    for name in magvit2_pytorch.__all__:
        assert getattr(magvit2_pytorch, name) is not None
    with pytest.raises(AttributeError, match="VideoTokeniser"):
        _ = magvit2_pytorch.VideoTokeniser
