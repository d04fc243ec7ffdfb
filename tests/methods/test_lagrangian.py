"""The Lagrangian minimum desired rate: its multiplier against torch's RMSProp, and its trainings against each other."""

import hashlib
import itertools
import json

import pytest
import torch

from distvae.config.kl import KLConfig
from distvae.methods.free_bits import NoFreeBits
from distvae.methods.lagrangian import START, Lagrangian
from distvae.methods.objective import Objective
from distvae.train import main
from tests.compare import numbers, records
from tests.conftest import fork
from tests.distributed.test_engines import NAMES, TOLD
from tests.methods.gamma import gamma_of, steps

CPU = torch.device("cpu")


def test_the_multiplier_ascends_by_rmsprop():
    policy = gamma_of(Lagrangian(target_rate=4.0, dual_learning_rate=0.003))
    u = torch.nn.Parameter(torch.tensor(START, dtype=torch.float64))
    ascent = torch.optim.RMSprop([u], lr=0.003, alpha=0.99, eps=1e-8, maximize=True)
    kls = [0.0, 1.0, 3.5, 4.0, 8.0, 20.0, 3.0] * 10
    expected = []
    for kl in kls:
        ascent.zero_grad()
        (u * (4.0 - kl)).backward()
        ascent.step()
        expected.append(1 - u.item())
    assert steps(policy, kls) == pytest.approx(expected, rel=1e-12)


def test_gamma_falls_below_lambda_and_rises_above_it_to_1():
    policy = gamma_of(Lagrangian(target_rate=4.0, dual_learning_rate=0.1))
    assert policy.value == pytest.approx(-0.01)
    low = steps(policy, [1.0] * 20)
    assert all(after < before for before, after in itertools.pairwise(low))
    high = steps(policy, [9.0] * 100)
    assert all(after >= before for before, after in itertools.pairwise(high))
    assert high[-1] == 1.0  # u = 0, and not less


def test_the_gradient_is_that_of_the_lagrangian():
    re, kl = torch.rand(3, dtype=torch.float64), torch.rand(3, 2, dtype=torch.float64)
    objective = Objective(Lagrangian(target_rate=4.0), NoFreeBits(), CPU)
    objective.gamma.end_step(torch.tensor(1.5))
    one, other = kl.clone().requires_grad_(), kl.clone().requires_grad_()
    objective.loss(re, one)[0].backward()
    u = 1 - objective.gamma.value
    (re + other.sum(dim=1) + u * (4.0 - other.sum(dim=1))).sum().backward()
    torch.testing.assert_close(one.grad, other.grad)


def test_weights_may_be_the_best_with_a_kl_near_lambda():
    policy = gamma_of(Lagrangian(target_rate=4.0))
    assert [policy.may_be_best(kl) for kl in (0.0, 3.79, 3.81, 9.0)] == [False, False, True, True]


def test_its_options_are_keys_of_the_config():
    kl = KLConfig(policy="lagrangian", target_rate=6.0, dual_learning_rate=0.01)
    assert kl.policy == Lagrangian(target_rate=6.0, dual_learning_rate=0.01)
    assert (kl.rate, kl.policy.warm_up, kl.policy.autoencoder, kl.policy.interval) == (6.0, 0, False, None)


# -- Trainings ---------------------------------------------------------------------------------------------------------

# γ rises from −0.01 to its cap of 1, and falls again.
METHOD = ["kl.policy=lagrangian", "kl.anneal_epochs=10", "kl.dual_learning_rate=0.02"]
RUNS = {  # processes and settings
    "ddp": (2, []),
    # A last batch of one sentence leaves two of them without any.
    "three": (3, []),
    "accumulation": (2, ["optimizer.accumulation_steps=2"]),
    # PowerSGD compresses no single value, and before its start no gradient either.
    "powersgd": (2, ["communication.compression=powersgd", "communication.powersgd_start=1000"]),
}


@pytest.fixture(scope="module")
def alone(tiny, tmp_path_factory):
    run = tmp_path_factory.mktemp("lagrangian") / "alone"
    assert main([str(tiny), *METHOD, f"run={run}"]) == 0
    return run


@pytest.fixture(scope="module")
def several(tiny, tmp_path_factory):
    """Runs by several processes."""
    folder = tmp_path_factory.mktemp("lagrangian")
    saving = ["checkpoint.every_steps=4", "checkpoint.keep=99"]
    plan = [
        {"processes": n, "runs": [[str(tiny), *METHOD, *more, *saving, f"run={folder / name}"]]}
        for name, (n, more) in RUNS.items()
    ]
    codes, told = fork(folder, plan)
    assert not any(code for group in codes for code in group), told
    return folder


def assert_like(alone, run):
    """See that γ and KL are those of the run by one process, up to rounding."""
    expected, found = records(alone), records(run)
    assert len(found) == len(expected)
    for one, other in zip(expected, found, strict=True):
        assert other["kl_weight"] == pytest.approx(one["kl_weight"], abs=1e-4)
        assert other["train"]["kl"] == pytest.approx(one["train"]["kl"], abs=1e-3)


def test_the_compared_runs_move_gamma(alone):
    weights = [row["kl_weight"] for row in records(alone) if row["stage"] == "train"]
    assert len(set(weights)) == 4
    assert max(weights) == 1.0


@pytest.mark.cluster
@pytest.mark.parametrize("name", RUNS)
def test_gamma_is_that_of_one_process(alone, several, name):
    assert_like(alone, several / name)


@pytest.mark.cluster
def test_it_resumes_within_an_epoch_to_the_same_bits(tiny, several, tmp_path):
    (saved,) = (several / "ddp" / "checkpoints").glob("*-step-000000040-*")
    run = [str(tiny), *METHOD, "checkpoint.every_steps=4", f"resume={saved}", f"run={tmp_path / 'run'}"]
    codes, told = fork(tmp_path, [{"processes": 2, "runs": [run]}])
    assert codes == [[0, 0]], told
    assert numbers(tmp_path / "run") == numbers(several / "ddp")[3:]
    digests = [
        hashlib.sha256((folder / "best" / "model.safetensors").read_bytes()).hexdigest()
        for folder in (several / "ddp", tmp_path / "run")
    ]
    assert digests[0] == digests[1]


@pytest.mark.cluster
def test_the_gradients_carry_the_kl(tiny, tmp_path):
    """A step sends one more value, and no more messages."""
    counts = tmp_path / "counts.json"
    runs = [
        ["--", str(tiny), *settings, "evaluation.samples=0", f"run={tmp_path / name}"]
        for name, settings in (("linear", ["kl.policy=linear", "kl.target_rate=4"]), ("lagrangian", METHOD))
    ]
    words = [str(counts), *itertools.chain(*runs)]
    codes, told = fork(tmp_path, [{"processes": 2, "program": "tests.distributed.counting", "runs": [words]}])
    assert codes == [[0, 0]], told
    linear, lagrangian = json.loads(counts.read_text())
    assert linear.pop("all_reduce [24336]") == lagrangian.pop("all_reduce [24337]")
    reduced = [{kind for kind in counts if kind.startswith("all_reduce")} for counts in (linear, lagrangian)]
    assert reduced[0] == reduced[1]


@pytest.mark.cluster
@pytest.mark.parametrize("engine", ["zero2", "zero3", "fsdp2"])
def test_engines_that_partition_gradients_send_the_kl(alone, tiny, tmp_path, engine):
    run = tmp_path / "run"
    group = {"processes": 2, "environment": TOLD[engine], "runs": [[str(tiny), *METHOD, f"run={run}"]]}
    codes, told = fork(tmp_path, [group])
    assert codes == [[0, 0]], told
    assert f"by {NAMES[engine]} on CPU" in told
    assert_like(alone, run)
