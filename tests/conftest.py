"""What every test starts from: one thread's worth of determinism, and small tokenizers."""

import copy
import gc
import hashlib
import os
import signal
from functools import cache

import jaxtyping
import pytest
import torch

from magvit2_pytorch.evaluation import report_picture
from magvit2_pytorch.quantizers import QUANTIZERS as REGISTERED
from magvit2_pytorch.tokenizer.layer_spec import LAYERS
from magvit2_pytorch.tokenizer.model import VideoTokenizer
from magvit2_pytorch.tokenizer.presets import PRESETS, preset
from magvit2_pytorch.tokenizer.tokenizer_config import TokenizerConfig
from magvit2_pytorch.training import tracking, trainer

# Tests press Ctrl-C, which processes in the background of a shell script are born deaf to.
signal.signal(signal.SIGINT, signal.default_int_handler)

if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    # Side by side (`pytest -n`), with the processes that tests start: each has its share of cores.
    share = max(1, (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))
    torch.set_num_threads(share)
    os.environ.setdefault("OMP_NUM_THREADS", str(share))

SMALL = dict(
    image_size=16,
    init_dim=8,
    input_conv_kernel_size=3,
    attn_dim_head=8,
    attn_heads=2,
    linear_attn_dim_head=4,
    linear_attn_heads=2,
)
DIM_COND = 6
SIBLINGS = ("o2-small", "walt-small", "vidtok-fsq-41616", "vidtok-fsq-888", "vidtok-kl-488")
"""Slow: presets of a family whose layers others have. test_vidtok.py has all of VidTok's."""
EVERY_PRESET = [
    pytest.param(name, marks=[pytest.mark.slow] * (f"{name}-small" in PRESETS or name in SIBLINGS))
    for name in PRESETS
]
"""Presets with a small sibling are slow: once narrow, both differ in the number of units alone."""

COND_ATTENTION = ("cond_attend_space", "cond_attend_time", "cond_linear_attend_space")
"""Layers with the norm of `cond_residual` in a block that stands in LAYERS without it."""


def layer_params(layers, *others):
    """Parameters of a test over layers, each with values of `others`; `COND_ATTENTION` is slow."""
    for values in zip(layers, *others, strict=False):
        name = values[0] if isinstance(values[0], str) else values[0][0]
        yield pytest.param(*values, marks=[pytest.mark.slow] * (name in COND_ATTENTION))


QUANTIZERS = {
    "lfq": dict(codebook_size=2**6),
    "lfq-several": dict(codebook_size=2**4, num_codebooks=3),
    "lfq-spherical": dict(codebook_size=2**6, lfq_spherical=True),
    "lfq-norm": dict(codebook_size=2**6, lfq_norm="layer"),
    "fsq": dict(use_fsq=True, fsq_levels=(8, 5, 5)),
    "fsq-several": dict(use_fsq=True, fsq_levels=(4, 4), num_codebooks=2),
    "lfq-residual": dict(codebook_size=2**4, residual_levels=3),
    "fsq-residual": dict(use_fsq=True, fsq_levels=(4, 5), residual_levels=2),
    "vq": dict(vq_type="vq", codebook_size=50, vq_dim=4),
    "vq-sim": dict(vq_type="simvq", codebook_size=50, vq_dim=4),
    "vq-residual": dict(vq_type="residual", codebook_size=16, vq_dim=4, vq_num_levels=3),
    "continuous": dict(continuous_dim=4),
    "continuous-kl": dict(continuous_dim=4, use_kl=True),
}
_TESTED = {TokenizerConfig(**options).quantizer_options["name"] for options in QUANTIZERS.values()}
QUANTIZERS |= {name: dict(quantizer=dict(name=name)) for name in REGISTERED if name not in _TESTED}
"""Every quantizer a configuration can ask for; one that is newly registered by its defaults."""

DISCRETE = [name for name in QUANTIZERS if not name.startswith("continuous")]


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


DRAWN = {
    (trainer, "plot_curves"): trainer.plot_curves,
    (report_picture, "_draw"): report_picture._draw,
}
"""What matplotlib draws takes ten times as long as the trainings and evaluations of tests."""


def pytest_sessionstart():
    gc.disable()


def pytest_collection_finish():
    """What was imported and collected stays: looking for garbage in it takes seconds."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def _without_power_cuts():
    """Nothing waits for the disk, and the source code, the same all along, is read once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        for name in ("git_commit", "source_hash"):
            patch.setattr(tracking, name, cache(getattr(tracking, name)))
        yield


@pytest.fixture(scope="session", autouse=True)
def _without_drawings():
    """Files that depend on what would be drawn take the place of drawings."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "plot_curves", lambda log, names, path: path.touch())
        patch.setattr(report_picture, "_draw", _write_digest)
        yield


def _write_digest(path, title, examples):
    arrays = [array.tobytes() for *_, real, recon in examples for array in (real, recon)]
    names = [(which, name) for which, name, *_ in examples]
    path.write_text(hashlib.sha256(repr((title, names, arrays)).encode()).hexdigest())


@pytest.fixture
def with_drawings(monkeypatch):
    """Curves and pages of pictures are drawn, as for users."""
    for place, function in DRAWN.items():
        monkeypatch.setattr(*place, function)


@pytest.fixture
def without_type_checks(monkeypatch):
    """As users run it: mistakes reach our own messages."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def build(*layers, quantizer="lfq", **options) -> VideoTokenizer:
    """A small tokenizer in eval mode, with a condition where its layers want one."""
    names = [layer if isinstance(layer, str) else layer[0] for layer in layers]
    cond = dict(dim_cond=DIM_COND) if any(LAYERS[name].conditional for name in names) else {}
    return VideoTokenizer(
        **{**SMALL, **QUANTIZERS[quantizer], **cond, **options}, layers=layers
    ).eval()


def narrow(name: str) -> VideoTokenizer:
    """A preset in eval mode, for small frames; published networks narrow, with half of the units.

    A copy of one that is made once: building takes longer than most of what is done with it.
    """
    return copy.deepcopy(_narrow(name))


@cache
def _narrow(name: str) -> VideoTokenizer:
    options = preset(name) | dict(image_size=32)
    if not {"norm", "norm_eps"}.isdisjoint(options):
        wide = options["init_dim"]
        options |= dict(init_dim=8, norm_groups=4)
        for name in ("layers", "decoder_layers"):
            # Entries are names, (layer, units) or (layer, dim, units).
            options[name] = options.get(name) and tuple(
                entry
                if isinstance(entry, str)
                else (entry[0], *(dim * 8 // wide for dim in entry[1:-1]), entry[-1] // 2)
                for entry in options[name]
            )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return VideoTokenizer(**options).eval()


def cond_of(tokenizer: VideoTokenizer, batch: int = 1):
    """A condition of the right width, or None where the tokenizer takes none."""
    dim = tokenizer.config.dim_cond
    return None if dim is None else torch.randn(batch, dim, dtype=tokenizer.dtype)


def random_video(num_frames=9, size=(16, 16), batch=1, channels=3, dtype=torch.float32):
    return torch.rand(batch, channels, num_frames, *size, dtype=dtype) * 2 - 1
