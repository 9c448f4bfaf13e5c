"""The choice of a precision: by speed and by codes, with the reason."""

from itertools import count
from types import SimpleNamespace

import pytest
import torch

from magvit2_pytorch import VideoTokenizer
from magvit2_pytorch.pipelines import inference
from magvit2_pytorch.tokenizer_1d import Tokenizer1d


def tokenizer(**options):
    torch.manual_seed(0)
    return VideoTokenizer.from_preset("tiny", **options)


@pytest.fixture
def bf16_takes(monkeypatch):
    """Pretends bf16 units, and so many seconds for an encode in bf16; one in float32 takes 10."""

    def pretend(seconds):
        monkeypatch.setattr(inference, "has_kernels", lambda dtype: True)
        clock, calls = [0.0], count()

        def perf_counter():
            call = next(calls)
            if call % 2:  # the end of an encode; those in float32 come first
                clock[0] += 10.0 if call % 4 == 1 else seconds
            return clock[0]

        monkeypatch.setattr(inference, "time", SimpleNamespace(perf_counter=perf_counter))

    return pretend


def test_without_bf16_units_nothing_is_tried(monkeypatch):
    monkeypatch.setattr(inference, "has_kernels", lambda dtype: False)
    monkeypatch.setattr(inference, "_moving_pattern", None)
    chosen, reason = inference.choose_precision(tokenizer())
    assert (chosen, "no arithmetic in bf16" in reason) == ("fp32", True)


@pytest.mark.parametrize(("seconds", "chosen"), [(2.5, "bf16"), (9.0, "fp32"), (100.0, "fp32")])
def test_the_faster_one_is_taken(bf16_takes, seconds, chosen):
    bf16_takes(seconds)
    model = tokenizer().train()
    found, reason = inference.choose_precision(model)
    assert found == chosen
    assert f"precision {chosen}: bf16 is {10 / seconds:.1f} times as fast" in reason
    assert model.training


def test_not_if_codes_differ(bf16_takes, monkeypatch):
    bf16_takes(1.0)
    real = inference.Inference.encode_stream

    def encode_stream(options, model):
        other = tokenizer(init_dim=16) if options.precision == "bf16" else model
        return real(options, other)

    monkeypatch.setattr(inference.Inference, "encode_stream", encode_stream)
    chosen, reason = inference.choose_precision(tokenizer())
    assert chosen == "fp32"
    assert int(reason.split()[-1].rstrip("%")) < 90


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        (lambda: tokenizer(codebook_size=None, continuous_dim=4, channels=1), "latents"),
        (lambda: Tokenizer1d.from_preset("tiny-1d"), "codes"),
    ],
)
def test_other_tokenizers_can_be_asked(bf16_takes, model, kind):
    bf16_takes(1.0)
    chosen, reason = inference.choose_precision(model())
    assert chosen == "bf16"
    assert f"its {kind} agree to" in reason
