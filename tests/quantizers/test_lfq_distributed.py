import pytest
import torch

from tests.processes import run_two_processes
from tests.quantizers import distributed_worker as worker


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What each of two processes saw, with gradients as DDP averaged them."""
    return run_two_processes(worker, tmp_path_factory.mktemp("gloo"))


def one_process(case, part=slice(None)):
    options, counts, names = worker.CASES[case]
    lfq = worker.quantizer(options)
    return worker.losses(worker.encoder(lfq.latent_dim), lfq, worker.samples(counts)[part], names)


@pytest.mark.parametrize("case", [case for case in worker.CASES if case != "off"])
def test_two_processes_have_the_codebook_entropy_of_one(case, found):
    expected, _ = one_process(case)
    for values, _ in (rank[case] for rank in found):
        assert values["codebook_entropy"] == pytest.approx(expected["codebook_entropy"], rel=1e-12)


@pytest.mark.parametrize("case", [case for case in worker.CASES if case != "off"])
def test_gradients_averaged_over_two_processes_are_those_of_one(case, found):
    _, expected = one_process(case)
    for _, gradients in (rank[case] for rank in found):
        for ours, theirs in zip(gradients, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_without_distributed_each_process_has_its_own_mean(found):
    (_, (first, _), _) = worker.CASES["off"]
    parts = [one_process("off", slice(first)), one_process("off", slice(first, None))]
    for rank, (expected, _) in zip(found, parts, strict=True):
        assert rank["off"][0]["codebook_entropy"] == pytest.approx(
            expected["codebook_entropy"], rel=1e-12
        )
    averaged = [sum(pair) / 2 for pair in zip(parts[0][1], parts[1][1], strict=True)]
    for ours, theirs in zip(found[0]["off"][1], averaged, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_evaluation_waits_for_no_other_process(found):
    expected, _ = one_process("equal", slice(3))
    assert found[0]["eval"][0]["codebook_entropy"] == pytest.approx(
        expected["codebook_entropy"], rel=1e-12
    )
