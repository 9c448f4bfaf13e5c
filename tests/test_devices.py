"""Laws that hold on a GPU as on a CPU; `pytest -m gpu` runs those of the GPU."""

import pytest
import torch

from magvit2_pytorch import VideoTokenizer
from magvit2_pytorch.training.tokenizer_task import Autoencoder

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is visible")
LAYERS = ("residual", "compress_space", "attend_space", "compress_time", "attend_time")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NO_GPU])])
def device(request):
    return request.param


@pytest.fixture
def pair(device):
    """One network on the CPU and on the device, and a video."""
    torch.manual_seed(0)
    options = dict(image_size=16, init_dim=16, layers=LAYERS, codebook_size=2**10)
    here, there = VideoTokenizer(**options), VideoTokenizer(**options)
    there.load_state_dict(here.state_dict())
    return here.double().eval(), there.double().to(device).eval(), torch.randn(2, 3, 9, 16, 16)


def test_latents_codes_and_video_are_the_cpu_s(pair, device):
    here, there, video = pair
    video = video.double()
    latents = there.encode(video.to(device))
    torch.testing.assert_close(latents.cpu(), here.encode(video))
    codes = there.tokenize(video.to(device))
    assert torch.equal(codes.cpu(), here.tokenize(video))
    decoded = there.decode_from_code_indices(codes)
    torch.testing.assert_close(decoded.cpu(), here.decode_from_code_indices(codes.cpu()))


def test_streams_and_tiles_are_the_whole(pair, device):
    _, there, video = pair
    video = video.double().to(device)
    codes, stream = there.tokenize(video), there.encode_stream()
    parts = [stream.push(frames) for frames in video.split(3, dim=2)]
    assert torch.equal(torch.cat([p for p in parts if p is not None], dim=1), codes)
    whole = there.decode_from_code_indices(codes)
    tiled = there.decode_from_code_indices(codes.cpu(), tile_size=8)
    assert tiled.device.type == "cpu"  # whole frames of tiled runs stay where they were
    torch.testing.assert_close(tiled, whole.cpu())


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_gradients_are_near_the_cpu_s(pair, device, precision):
    here, there, video = (x.float() for x in pair)

    def gradients(tokenizer, video, precision):
        out = Autoencoder(tokenizer.train(), precision)(video)
        out.latents.float().square().mean().backward()
        grads = [p.grad for p in tokenizer.encoder.parameters() if p.ndim > 1]
        return torch.cat([grad.cpu().float().flatten() for grad in grads])

    right = gradients(here, video, "fp32")
    found = gradients(there, video.to(device), precision)
    assert torch.cosine_similarity(found, right, dim=0) > 0.99
