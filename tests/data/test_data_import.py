"""Importing the package loads no codec library."""

import subprocess
import sys


def test_codec_libraries_are_loaded_when_needed():
    code = (
        "import sys, magvit2_pytorch.data; "
        "print([n for n in ('av', 'PIL', 'torchvision', 'matplotlib') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
