"""Several processes go on from the middle of an epoch to the same bits, whatever each of them alone has kept."""

import hashlib

import pytest

from tests.compare import numbers
from tests.conftest import fork

pytestmark = pytest.mark.cluster

# Processes, settings, and the step to go on from: of 66, within the second stage.
WAYS = {
    # From three ranks on, the order in which DDP adds depends on where it puts a value.
    "three": (3, ["kl.every_steps=4"], 40),
    "accumulation": (2, ["optimizer.accumulation_steps=2", "kl.policy=linear", "kl.free_bits=dimension"], 40),
    # Running statistics, learnt deviations and dropped variances.
    "DU-VAE": (3, ["model.posterior=du", "optimizer.accumulation_steps=2"], 40),
    # What the factors have left out, and the factors.
    "powersgd": (2, ["communication.compression=powersgd", "communication.powersgd_start=5"], 40),
    # Its own moments on each rank; step 40 is saved where the ranks' weights are one again, after the epoch's 8th.
    "local sgd": (
        2,
        [
            "communication.local_sgd_steps=2",
            "optimizer.name=adamw",
            "optimizer.learning_rate=0.01",
            "optimizer.warmup_steps=60",
            "model.posterior=batch_norm",
        ],
        41,
    ),
    # In the second group of the second stage's second epoch.
    "shards": (2, [], 88),
}


@pytest.fixture(scope="module")
def runs(tiny, in_shards, tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")

    def arguments(name, run, *more):
        more += tuple(in_shards) if name == "shards" else ()
        saving = ["checkpoint.every_steps=4", "checkpoint.keep=99"]
        return [str(tiny), f"run={folder / run / name}", *WAYS[name][1], *saving, *more]

    straight = [{"processes": n, "runs": [arguments(name, "straight")]} for name, (n, *_) in WAYS.items()]
    codes, told = fork(folder, straight)
    assert not any(code for group in codes for code in group), told
    broken = []
    for name, (n, _, step) in WAYS.items():
        (saved,) = (folder / "straight" / name / "checkpoints").glob(f"*-step-{step:09d}-*")
        broken.append({"processes": n, "runs": [arguments(name, "broken", f"resume={saved}")]})
    codes, told = fork(folder, broken)
    assert not any(code for group in codes for code in group), told
    return folder


@pytest.mark.parametrize("name", WAYS)
def test_a_run_goes_on_within_an_epoch_to_the_same_bits(runs, name):
    digests = [
        hashlib.sha256((runs / run / name / "best" / "model.safetensors").read_bytes()).hexdigest()
        for run in ("straight", "broken")
    ]
    assert digests[0] == digests[1]
    assert numbers(runs / "broken" / name) == numbers(runs / "straight" / name)[3:]
