"""The optimizers that a trainer builds, against torch's plain loop over parameters."""

import copy

import pytest
import torch
from torch.optim import Adam, AdamW

from magvit2_pytorch.layers import arithmetic
from magvit2_pytorch.layers.arithmetic import Conv2d
from magvit2_pytorch.training.loop_config import LoopConfig
from magvit2_pytorch.training.optimizer import Muon, build_adam, build_optimizers, decay_groups
from tests.conftest import build

ADAMS = {"adam": Adam, "adamw": AdamW}


def with_gradients(tokenizer, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in tokenizer.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("name", ADAMS)
def test_fused_adam_is_adam(name):
    fused = build("residual", "compress_space")
    plain = copy.deepcopy(fused)
    config = LoopConfig(optimizer=name, learning_rate=1e-2, weight_decay=0.1)
    (one,) = build_optimizers(fused, config.optimizer_options())
    groups = decay_groups(plain.parameters(), config.weight_decay)
    other = ADAMS[name](groups, lr=1e-2, betas=config.betas, fused=False, foreach=False)
    start = [parameter.detach().clone() for parameter in plain.parameters()]
    for step in range(5):
        for tokenizer, optimizer in ((fused, one), (plain, other)):
            with_gradients(tokenizer, step)
            optimizer.step()
    for ours, theirs, before in zip(fused.parameters(), plain.parameters(), start, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)
        assert not torch.equal(ours, before)


@pytest.mark.parametrize("name", ["adam", "adamw", "muon"])
def test_every_adam_of_a_run_is_fused(name, make_trainer):
    trainer = make_trainer(optimizer=name, frame_adversarial_weight=0.1)
    optimizers = [o.optimizer for x in trainer.optimizations.values() for o in x.optimizers]
    adams = [optimizer for optimizer in optimizers if not isinstance(optimizer, Muon)]
    assert len(adams) == 2
    assert all(adam.defaults["fused"] for adam in adams)


def test_where_torch_has_no_fused_adam_it_is_not_asked_for():
    weight = torch.nn.Parameter(torch.zeros(1, device="meta"))
    assert not build_adam(Adam, [{"params": [weight]}], 1e-3, (0.9, 0.99)).defaults["fused"]


def test_muon_steps_each_group_of_a_kernel_by_itself():
    grouped = torch.nn.Sequential(Conv2d(8, 12, 3, groups=4), Conv2d(12, 5, 1))
    single = [Conv2d(2, 3, 3) for _ in range(4)]
    for conv, weight in zip(single, grouped[0].weight.chunk(4), strict=True):
        conv.weight.data.copy_(weight)
    convs = torch.nn.ModuleList(single)
    ours, theirs = (
        build_optimizers(module, LoopConfig(optimizer="muon").optimizer_options())[0]
        for module in (grouped, convs)
    )
    for seed in range(2):
        with_gradients(grouped, seed)
        for conv, gradient in zip(single, grouped[0].weight.grad.chunk(4), strict=True):
            conv.weight.grad = gradient.clone()
        ours.step()
        theirs.step()
    torch.testing.assert_close(grouped[0].weight, torch.cat([conv.weight for conv in single]))


@pytest.mark.parametrize("where", ["gradient", "moments"])
def test_memory_order_of_gradients_and_moments_does_not_matter(where):
    order = torch.channels_last_3d
    weights = [torch.nn.Parameter(torch.randn(4, 3, 3, 3, 3).contiguous(memory_format=order))]
    weights.append(torch.nn.Parameter(weights[0].detach().clone(memory_format=order)))
    odd, even = (build_adam(Adam, [{"params": [w]}], 1e-2, (0.9, 0.99)) for w in weights)
    for step in range(3):
        gradient = torch.randn(4, 3, 3, 3, 3)
        weights[0].grad = gradient.clone(memory_format=torch.contiguous_format)
        weights[1].grad = gradient.clone(memory_format=order)
        if where == "moments":
            weights[0].grad = weights[1].grad.clone(memory_format=order)
            state = odd.state[weights[0]]
            for name in ("exp_avg", "exp_avg_sq") if step else ():
                state[name] = state[name].clone(memory_format=torch.contiguous_format)
        odd.step()
        even.step()
    torch.testing.assert_close(*weights)


@pytest.mark.parametrize(
    ("gpu", "kernels", "capabilities", "expected"),
    [
        (True, False, {}, "bf16"),
        (False, True, {"avx512_bf16": True}, "bf16"),
        (False, True, {"avx512_bf16": False}, "fp32"),
        (False, True, {}, "bf16"),
        (False, False, {}, "fp32"),
    ],
    ids=["gpu", "processor", "it-converts", "no-x86", "no-kernels"],
)
def test_auto_is_the_precision_that_the_machine_computes_in(
    monkeypatch, gpu, kernels, capabilities, expected
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: gpu)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    monkeypatch.setattr(arithmetic, "has_kernels", lambda dtype: kernels)
    # Logs and checkpoints say what was used.
    assert LoopConfig(precision="auto").to_dict()["precision"] == expected
    assert LoopConfig(precision="fp16").precision == "fp16"
