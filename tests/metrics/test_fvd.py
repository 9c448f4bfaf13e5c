"""I3D from a file: what it is given, by which protocol, and what is said of files that are not."""

import pytest
import torch
from torch.nn import functional as F

from magvit2_pytorch.metrics.fvd import I3D
from tests.evaluation.reports import FakeI3D, fake_i3d


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return fake_i3d(tmp_path_factory.mktemp("i3d") / "i3d.pt")


def resized(video):
    """Frame by frame, whatever the proportions, by the centres of pixels."""
    frames = [
        F.interpolate(frame, (224, 224), mode="bilinear") for frame in video.clamp(-1, 1).unbind(2)
    ]
    return torch.stack(frames, dim=2)


def test_both_protocols_ask_in_their_own_way(path):
    video = torch.randn(2, 3, 6, 20, 30)
    seen = FakeI3D().weight @ resized(video).mean(dim=(3, 4))
    torch.testing.assert_close(I3D(path, "stylegan-v").features(video), seen.mean(dim=2).detach())
    # Logits of each frame, which are averaged; the fake's are twice its features.
    torch.testing.assert_close(I3D(path, "logits").features(video), 2 * seen.mean(dim=2).detach())
    assert I3D(path, "stylegan-v").settings.unbiased is False
    assert I3D(path, "logits").settings.unbiased is True


def test_grey_is_seen_as_rgb_and_opacity_is_refused(path):
    i3d = I3D(path, "stylegan-v")
    grey = torch.rand(1, 1, 5, 20, 20)
    torch.testing.assert_close(i3d.features(grey), i3d.features(grey.expand(-1, 3, -1, -1, -1)))
    with pytest.raises(ValueError, match="4 channels"):
        i3d.features(torch.zeros(1, 4, 5, 20, 20))
    assert i3d.check(5, 1) == i3d.check(5, 3) == 7


class Pair(torch.nn.Module):
    """Not one vector."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x, x


def test_files_that_are_no_i3d_are_refused(path, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        I3D(tmp_path / "none.pt", "logits")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "state.pt")
    (tmp_path / "text.pt").write_text("hello")
    for name in ("state.pt", "text.pt"):
        with pytest.raises(ValueError, match=f"{name} is not a TorchScript file"):
            I3D(tmp_path / name, "logits")
    torch.jit.script(Pair()).save(str(tmp_path / "pair.pt"))
    with pytest.raises(ValueError, match=r"returned tuple, not one feature vector"):
        I3D(tmp_path / "pair.pt", "logits").check(5, 3)
    with pytest.raises(ValueError, match=r"with the protocol stylegan-v .*another|other protocol"):
        I3D(tmp_path / "pair.pt", "stylegan-v").check(5, 3)


def test_an_unknown_protocol_is_refused(path, without_type_checks):
    with pytest.raises(ValueError, match="use stylegan-v or logits"):
        I3D(path, "videogpt")


def test_the_hash_is_that_of_the_file(path, tmp_path):
    import hashlib

    assert I3D(path, "logits").file_hash == hashlib.sha256(path.read_bytes()).hexdigest()
