"""LeCam against formulas written out, O2-MAGVIT2's numbers, and on two processes."""

import pytest
import torch

from magvit2_pytorch.losses.adversarial import LeCamRegularizer, lecam_loss
from tests.losses import lecam_worker as worker
from tests.losses.test_adversarial import O2
from tests.processes import run_two_processes

O2_AFTER_ONE_UPDATE = {
    # Mean of real, mean of fake, loss, from the same run as the logits.
    "o2_2d_nres2": (-4.484310373663906e-05, -9.537071920931347e-06, 9.010240319184959e-05),
    "o2_3d_t1": (-0.00011213428527116786, -0.0001075405254960061, 0.011540859937667847),
}


def logits(num=6):
    return (torch.randn(num, 1, 2, dtype=torch.float64) * 2 for _ in range(2))


def scalar(value):
    return torch.tensor(value, dtype=torch.float64)


def test_closed_form():
    (real, fake), real_mean, fake_mean = logits(), 0.4, -0.3
    reals, fakes = real.flatten().tolist(), fake.flatten().tolist()
    expected = sum(max(0, r - fake_mean) ** 2 for r in reals) / len(reals)
    expected += sum(max(0, real_mean - f) ** 2 for f in fakes) / len(fakes)
    loss = lecam_loss(real, fake, scalar(real_mean), scalar(fake_mean))
    assert float(loss) == pytest.approx(expected, rel=1e-12)


def test_gradient_by_finite_differences():
    real, fake = (x.requires_grad_() for x in logits())
    means = scalar(0.4), scalar(-0.3)
    assert torch.autograd.gradcheck(lambda r, f: lecam_loss(r, f, *means), (real, fake))


def test_parts_of_a_batch_have_the_loss_of_the_whole():
    (real, fake), means = logits(), (scalar(0.1), scalar(-0.2))
    parts = [lecam_loss(real[i : i + 2], fake[i : i + 2], *means) for i in (0, 2, 4)]
    torch.testing.assert_close(sum(parts) / 3, lecam_loss(real, fake, *means))


@pytest.mark.parametrize("fixture", O2_AFTER_ONE_UPDATE)
def test_as_o2_computes_it(fixture):
    """O2-MAGVIT2 takes the mean logit of a batch, and averages zeros into the running means."""
    logits = [torch.tensor(O2[fixture][side]).mean()[None] for side in ("real", "fake")]
    means = [0.001 * x[0] for x in logits]
    found = [float(x) for x in (*means, lecam_loss(*logits, *means))]
    assert found == pytest.approx(O2_AFTER_ONE_UPDATE[fixture], rel=1e-5)


@pytest.mark.parametrize("num_updates", [1, 2, 7])
def test_means_are_weighted_averages(num_updates):
    """The weights are decay^age, and sum to 1."""
    lecam, batches = LeCamRegularizer(0.8), [list(logits()) for _ in range(7)]
    for real, fake in batches[:num_updates]:
        lecam.update(real, fake)
    weights = [0.2 * 0.8 ** (num_updates - 1 - i) for i in range(num_updates)]
    for side, found in enumerate((lecam.real_mean, lecam.fake_mean)):
        means = [float(batch[side].mean()) for batch in batches]
        expected = sum(w * m for w, m in zip(weights, means, strict=False)) / sum(weights)
        assert float(found) == pytest.approx(expected, rel=1e-5, abs=1e-7)


def test_real_and_fake_may_differ_in_number():
    lecam, (real, fake) = LeCamRegularizer(), logits()
    lecam.update(real, fake[:2])
    found = float(lecam.real_mean), float(lecam.fake_mean)
    assert found == pytest.approx((float(real.mean()), float(fake[:2].mean())), rel=1e-6)


def test_the_first_update_copies_and_the_next_averages():
    lecam = LeCamRegularizer()
    lecam.update(torch.ones(2, 1), -torch.ones(2, 1))
    assert (float(lecam.real_mean), float(lecam.fake_mean)) == pytest.approx((1, -1), abs=1e-6)
    lecam.update(torch.zeros(2, 1), torch.zeros(2, 1))
    assert float(lecam.real_mean) == pytest.approx(0.5, abs=1e-3)
    for _ in range(9_000):
        lecam.update(torch.full((1,), 3.0), torch.full((1,), -3.0))
    assert (float(lecam.real_mean), float(lecam.fake_mean)) == pytest.approx((3, -3), abs=1e-3)


def test_before_the_first_update_loss_and_gradient_are_zero():
    lecam, (real, fake) = LeCamRegularizer(), logits()
    real.requires_grad_()
    loss = lecam(real, fake)
    (gradient,) = torch.autograd.grad(loss, real)
    assert loss == 0
    assert not gradient.any()
    assert not lecam(real * float("inf"), fake).isfinite()


def test_state_round_trips_and_training_goes_on_as_if_it_never_stopped():
    batches = [list(logits()) for _ in range(4)]
    whole, first = LeCamRegularizer(0.9), LeCamRegularizer(0.9)
    for batch in batches:
        whole.update(*batch)
    for batch in batches[:2]:
        first.update(*batch)
    resumed = LeCamRegularizer(0.9)
    resumed.load_state_dict(first.state_dict())
    for batch in batches[2:]:
        resumed.update(*batch)
    torch.testing.assert_close(resumed.state_dict(), whole.state_dict(), rtol=0, atol=0)
    assert resumed(*batches[0]) == whole(*batches[0])


def test_nothing_of_it_is_trained_and_forward_changes_nothing():
    lecam, (real, fake) = LeCamRegularizer(), logits()
    real.requires_grad_()
    lecam.update(real, fake)
    before = {name: value.clone() for name, value in lecam.state_dict().items()}
    lecam(real, fake).backward()
    assert not list(lecam.parameters())
    torch.testing.assert_close(lecam.state_dict(), before, rtol=0, atol=0)
    assert not lecam.real_mean.requires_grad
    assert real.grad.ne(0).any()


def test_half_precision_logits_are_averaged_in_single():
    lecam, many = LeCamRegularizer(), torch.full((4096, 1), 3.0, dtype=torch.bfloat16)
    lecam.update(many, -many)
    assert lecam.real_mean.dtype == torch.float32
    assert float(lecam.real_mean) == pytest.approx(3, rel=1e-5)
    assert lecam(many, -many).dtype == torch.float32


@pytest.mark.parametrize("decay", [0, 1, 1.5, -0.1])
def test_decays_that_are_none_are_refused(decay):
    with pytest.raises(ValueError, match=r"between 0 and 1, as 0\.999 does"):
        LeCamRegularizer(float(decay))


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """The means of each of two processes."""
    return run_two_processes(worker, tmp_path_factory.mktemp("gloo"))


@pytest.mark.parametrize("case", worker.CASES)
def test_two_processes_have_the_means_of_one(case, found):
    lecam = LeCamRegularizer(0.9)
    for real, fake in worker.steps(worker.CASES[case]):
        lecam.update(real, fake)
    torch.testing.assert_close(found[0][case], lecam.state_dict())
    torch.testing.assert_close(found[0][case], found[1][case], rtol=0, atol=0)


@pytest.mark.parametrize("case", ["eval", "off"])
def test_one_process_alone_waits_for_no_other(case, found):
    real, fake = (logits[:3] for logits in worker.steps((3, 3))[0])
    means = torch.stack((found[0][case]["real_mean"], found[0][case]["fake_mean"]))
    torch.testing.assert_close(means, torch.stack((real.mean(), fake.mean())))
