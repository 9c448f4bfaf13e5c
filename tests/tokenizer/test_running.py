"""How a tokenizer runs: recomputed, compiled, and with nothing kept that nobody asked for."""

import pytest
import torch
from torch.utils._pytree import tree_leaves

from magvit2_pytorch.layers.stateful import Residual
from magvit2_pytorch.tokenizer.layer_spec import LAYERS
from magvit2_pytorch.tokenizer.tiling import MemoryTracker
from tests.conftest import EVERY_PRESET, build, cond_of, layer_params, narrow, random_video
from tests.processes import Started
from tests.tokenizer import compile_worker


def gradients(tokenizer, video, cond):
    torch.manual_seed(1)  # of dropout
    tokenizer.zero_grad()
    tokenizer(video, cond).square().mean().backward()
    return [parameter.grad for parameter in tokenizer.parameters()]


@pytest.mark.parametrize("layer", layer_params(sorted(LAYERS)))
def test_recomputed_activations_give_the_same_gradients(layer):
    tokenizer = build("compress_space", layer, "compress_time", layer, attn_dropout=0.5).train()
    video, cond = random_video(5, batch=2), cond_of(tokenizer, 2)
    kept = gradients(tokenizer, video, cond)
    tokenizer.checkpoint_activations()
    runs = []
    for module in tokenizer.modules():
        if isinstance(module, Residual):
            module.layer.register_forward_pre_hook(lambda *_: runs.append(1))
    recomputed = gradients(tokenizer, video, cond)
    for ours, theirs in zip(recomputed, kept, strict=True):
        assert torch.equal(ours, theirs) if theirs is not None else ours is None
    forward = len(runs)
    tokenizer.checkpoint_activations(False)
    gradients(tokenizer, video, cond)
    assert forward == 2 * (len(runs) - forward)


def bytes_kept(tokenizer, video):
    """What the graph of a forward pass holds, weights aside."""
    kept = {}
    weights = {parameter.untyped_storage().data_ptr() for parameter in tokenizer.parameters()}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = tokenizer(video)  # noqa: F841  holds what is counted, so that no address comes twice
    return sum(kept.values())


@pytest.mark.parametrize("name", ["small", "magvit2"])
def test_recomputing_keeps_a_fraction(name):
    tokenizer, video = narrow(name).train(), random_video(5, (64, 64))
    before = bytes_kept(tokenizer, video)
    tokenizer.checkpoint_activations()
    assert bytes_kept(tokenizer, video) < before / 2


@pytest.mark.parametrize("name", EVERY_PRESET)
def test_without_gradients_no_activation_outlives_its_use(name):
    """A past that is a view would keep all activations of the encoder in memory."""
    tokenizer = narrow(name)
    video = random_video(9, (64, 64))
    with torch.no_grad(), MemoryTracker() as tracker:
        _, past = tokenizer.encode_chunk(video)
    frame = tokenizer.config.init_dim * 64 * 64 * 4
    for leaf in tree_leaves(past):
        assert leaf.untyped_storage().nbytes() <= 6 * frame
    with torch.no_grad(), MemoryTracker() as whole:
        tokenizer.encode_chunk(video, last=True)
    # Six of the largest activations at a time, and not one of every layer.
    num_frames = 9 + (tokenizer.time_factor - 1) * tokenizer.config.repeat_first_frame
    assert whole.peak <= min(6 * num_frames * frame, tracker.peak)


def test_an_image_makes_no_past():
    """It would be twice the image for every convolution."""
    tokenizer = build("residual", "compress_time")
    with torch.no_grad(), MemoryTracker() as tracker:
        tokenizer.encode_chunk(random_video(1, (64, 64)), last=True)
    with torch.no_grad(), MemoryTracker() as with_past:
        tokenizer.encode_chunk(random_video(1, (64, 64)))
    assert tracker.total < with_past.total


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["own", "magvit2"])
def test_encoder_and_decoder_compile_into_one_graph_each(kind):
    with Started(compile_worker.main, kind) as run:
        assert run.wait() == 0, run.stderr[-3000:]
