"""Aggressive training under every engine, on any number of processes: the same turns, and the same weights."""

import hashlib

import pytest

from distvae.runs.checkpoints import load_state
from distvae.train import main
from tests.compare import numbers, records, weights
from tests.conftest import fork
from tests.distributed.test_engines import TOLD, TOLERANCE
from tests.training.test_aggressive import SETTINGS as ADAMW

SGD = [word for word in ADAMW if not word.startswith("optimizer.")] + ["optimizer.learning_rate=0.5"]
ADAMW = [*ADAMW, "optimizer.learning_rate=0.01"]
# Batches of eight, eight and one sentence: processes without one take part in every turn.
SHORT = [
    "data.train_size=17", "train.max_epochs=1", "evaluation.importance_samples=1", "inference.max_steps=5",
    "inference.check_every=1",
]  # fmt: skip
# What else of a method depends on the whole batch: its statistics, its masks and its mean KL.
DU = ["model.posterior=du", "kl.free_bits=dimension", "kl.target_rate=2"]

# Engine, processes and further settings.
WAYS = {
    "DDP, 3 processes": ("cpu", 3, []),
    "DDP, accumulation": ("cpu", 2, ["optimizer.accumulation_steps=2"]),
    "ZeRO-2": ("zero2", 2, []),
    "ZeRO-3": ("zero3", 2, []),
    "FSDP2": ("fsdp2", 2, []),
}
# Processes and settings of runs that are broken off within the loop of encoder steps.
RESUMED = {
    "three": (3, []),
    "powersgd": (2, ["communication.compression=powersgd", "communication.powersgd_start=3"]),
    "local sgd": (2, ["communication.local_sgd_steps=2"]),
}


def arguments(tiny, run, settings, *more):
    return [str(tiny), *settings, *SHORT, *more, f"run={run}"]


@pytest.fixture(scope="module")
def runs(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("aggressive")
    for name, settings in (("sgd", SGD), ("adamw", ADAMW)):
        assert main(arguments(tiny, folder / "alone" / name, settings)) == 0
    plan = [
        {
            "processes": n,
            "environment": TOLD[engine],
            "runs": [arguments(tiny, folder / way / name, s, *more) for name, s in (("sgd", SGD), ("adamw", ADAMW))],
        }
        for way, (engine, n, more) in WAYS.items()
    ]
    plan += [
        {
            "processes": n,
            "double": True,
            "runs": [arguments(tiny, folder / f"double {n}", SGD, *DU, f"optimizer.accumulation_steps={micros}")],
        }
        for n, micros in ((1, 1), (2, 2))
    ]
    often = ["checkpoint.every_steps=1", "checkpoint.keep=999"]
    plan += [
        {"processes": n, "runs": [arguments(tiny, folder / "straight" / name, ADAMW, *often, *more)]}
        for name, (n, more) in RESUMED.items()
    ]
    codes, told = fork(folder, plan)
    assert not any(code for group in codes for code in group), told
    return folder


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("method", ["sgd", "adamw"])
def test_every_engine_takes_the_turns_of_one_process(runs, way, method):
    one, other = runs / "alone" / method, runs / way / method
    for here, there in zip(records(one), records(other), strict=True):
        for key in ("step", "encoder_steps", "verdict"):
            assert here[key] == there[key]
        assert there["train"]["re"] == pytest.approx(here["train"]["re"], rel=2e-5)
    here, there = weights(one), weights(other)
    assert max(float((there[name] - value).abs().max()) for name, value in here.items()) < TOLERANCE
    assert 3 < records(one)[0]["encoder_steps"] < 15


def test_float64_shows_that_rounding_is_all_there_is(runs):
    one, other = runs / "double 1", runs / "double 2"
    assert [row["encoder_steps"] for row in records(one)] == [row["encoder_steps"] for row in records(other)]
    here, there = weights(one), weights(other)
    assert max(float((there[name] - value).abs().max()) for name, value in here.items()) < 1e-11


@pytest.mark.parametrize("name", RESUMED)
def test_a_run_resumes_within_the_loop_to_the_same_bits(runs, tiny, name):
    straight, broken = runs / "straight" / name, runs / "broken" / name
    states = {folder: load_state(folder) for folder in (straight / "checkpoints").glob("start-*")}
    within = [(state.step, folder) for folder, state in states.items() if state.batches == 1 and state.turns["steps"]]
    saved = max(within)[1]
    state = states[saved]
    assert state.encoder_steps > state.turns["steps"]
    n, more = RESUMED[name]
    often = ["checkpoint.every_steps=1", "checkpoint.keep=999", f"resume={saved}"]
    codes, told = fork(runs, [{"processes": n, "runs": [arguments(tiny, broken, ADAMW, *often, *more)]}])
    assert not any(code for group in codes for code in group), told
    digests = {
        hashlib.sha256((run / "best" / "model.safetensors").read_bytes()).hexdigest() for run in (straight, broken)
    }
    assert len(digests) == 1
    assert numbers(broken) == numbers(straight)
