"""Wrong half-precision kernels are found at the first step, before a weight changes."""

import copy

import pytest
import torch

from magvit2_pytorch.layers import arithmetic
from magvit2_pytorch.training.arithmetic_check import WrongArithmetic
from tests.training.conftest import clips

LAYERS = ("compress_space", "residual")


@pytest.fixture
def make_wrong(monkeypatch):
    """Makes half-precision convolutions of so many output channels wrong, in one respect."""

    def make(dim_out, respect):
        right = arithmetic.convolve

        def wrong(x, weight, bias, *options):
            out = right(x, weight, bias, *options)
            if arithmetic.half_precision(x) is None or weight.shape[0] != dim_out:
                return out
            if respect == "value":
                return out * torch.linspace(-1, 1, out.shape[-1])
            # Twice the value and less one: as a value right, as a gradient not.
            noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
            noise = (weight - weight.detach()) * noise.sign() * 8
            return out + right(x.detach(), noise.to(x.dtype), None, *options)

        for module in ("arithmetic", "conv"):
            monkeypatch.setattr(f"magvit2_pytorch.layers.{module}.convolve", wrong)

    return make


def weights(trainer):
    return copy.deepcopy(trainer.tokenizer.state_dict())


@pytest.mark.parametrize("respect", ["value", "gradient"])
@pytest.mark.parametrize("method", ["train", "dry_run"])
def test_a_wrong_layer_ends_the_run_before_a_weight_changes(
    make_trainer, make_wrong, respect, method
):
    make_wrong(16, respect)
    trainer = make_trainer(precision="bf16", layers=LAYERS)
    before = weights(trainer)
    with pytest.raises(WrongArithmetic, match=r"(?s)encoder.layers.1.*precision='fp32'") as raised:
        getattr(trainer, method)()
    assert ("value" in str(raised.value)) == (respect == "value")
    torch.testing.assert_close(weights(trainer), before, atol=0, rtol=0)
    assert trainer.step == 0


def test_each_layer_is_compared_once_and_training_is_what_it_would_have_been(make_trainer):
    options = dict(
        precision="bf16",
        layers=LAYERS,
        num_train_steps=2,
        frame_adversarial_weight=0.1,
        frame_discriminator=dict(dim=8, dim_mults=(2,)),
    )
    checked, unchecked = (
        make_trainer(name, **options, check_arithmetic=check)
        for name, check in (("checked", True), ("unchecked", False))
    )
    layers = len(checked.arithmetic_check._hooks)
    for trainer in (checked, unchecked):
        trainer.train()
    assert checked.arithmetic_check.num_compared == layers > 15
    assert unchecked.arithmetic_check.num_compared == 0
    torch.testing.assert_close(weights(checked), weights(unchecked), atol=0, rtol=0)


def test_a_switch_and_float32_leave_it_out(make_trainer, make_wrong):
    make_wrong(16, "value")
    make_trainer("off", precision="bf16", check_arithmetic=False, num_train_steps=1).train()
    trainer = make_trainer("fp32", num_train_steps=1)
    trainer.train()
    assert trainer.arithmetic_check.num_compared == 0


def test_bad_data_is_not_taken_for_wrong_arithmetic(make_trainer):
    data = clips()
    trainer = make_trainer(precision="bf16", dataset=data, num_train_steps=1)
    trainer.objective.reconstruction_loss = lambda recon, real: (recon * float("nan")).mean()
    trainer.train()
    assert trainer.optimization.skips.total == 1
