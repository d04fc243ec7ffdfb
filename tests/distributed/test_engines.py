"""Every way to train computes what one process does: engine × number of processes, each started by its own YAML.

All runs have unequal lengths, dropout and word dropout, and a partial batch of one sentence: in every epoch there are
processes that have none.
"""

import itertools
import math
import shutil
from dataclasses import astuple, dataclass

import pytest
from safetensors.torch import load_file

from distvae.train import main
from tests.compare import records
from tests.conftest import ROOT, launch, needs

RUNS = {
    # γ falls, stays and rises; the learning rate decays, best weights and their γ come back, the second decay ends it.
    "steering": [
        "seed=4", "optimizer.learning_rate=0.7", "optimizer.clip_norm=1.0", "pretrain.max_epochs=3",
        "train.max_epochs=14", "plateau.patience=1", "plateau.max_decays=2", "kl.target_rate=2.0", "kl.threshold=0.2",
        "kl.multiplier=0.7",
    ],
    # The mean of the global batch, which the first micro-batch needs before the second is seen.
    "free_bits": ["kl.policy=linear", "kl.free_bits=dimension", "kl.target_rate=2", "optimizer.accumulation_steps=2"],
    # Moments and steps, forgotten where a stage begins.
    "adamw": ["optimizer.name=adamw", "optimizer.learning_rate=0.01", "optimizer.weight_decay=0.1"],
}  # fmt: skip
BAND = 1.6, 2.4  # (1 ± β)λ of the steering run

# What sums of float32 in another order may come to over such runs, in nats and in weights.
TOLERANCE = 1e-4


def needs_compiler(engine):
    needs(
        not engine.startswith("zero") or shutil.which("c++"), "DeepSpeed builds an operator for CPUs: no C++ compiler"
    )


def arguments(tiny, folder, name):
    return [str(tiny), "evaluation.samples=0", "evaluation.importance_samples=2", *RUNS[name], f"run={folder / name}"]


@pytest.fixture(scope="module")
def alone(tiny, tmp_path_factory):
    """The runs by one process: the truth of this module."""
    folder = tmp_path_factory.mktemp("alone")
    for name in RUNS:
        assert main(arguments(tiny, folder, name)) == 0
    return folder


def score(row, key):
    """Of the training and of the validation sentences of an epoch."""
    return row["train"][key], row["valid"][key]["mean"]


@dataclass(frozen=True)
class Difference:
    """The largest absolute differences between two runs: nats a sentence in any epoch, and final weights."""

    re: float
    kl: float
    neg_elbo: float
    weights: float


def compare(one, other) -> Difference:
    """Decisions have to be equal exactly; how far the rest is apart is returned."""
    expected, found = records(one), records(other)
    assert len(found) == len(expected)
    for here, there in zip(expected, found, strict=True):
        for key in ("stage", "epoch", "step", "kl_weight", "learning_rate", "verdict"):
            assert there[key] == here[key], f"{key} of {here['stage']} {here['epoch']}"
        assert there["train"]["sentences"] == here["train"]["sentences"] == 81
    nats = [
        max(
            abs(a - b)
            for here, there in zip(expected, found, strict=True)
            for a, b in zip(score(here, key), score(there, key), strict=True)
        )
        for key in ("re", "kl", "neg_elbo")
    ]
    here, there = (load_file(run / "best" / "model.safetensors") for run in (one, other))
    return Difference(*nats, max(float(there[name].sub(value).abs().max()) for name, value in here.items()))


def margins(run) -> tuple[float, float]:
    """How far from its threshold the nearest KL lies, and the nearest validation loss, of those that decide."""
    low, high = BAND
    kl, loss, best = [], [], {}
    for row in records(run):
        if row["stage"] == "train" and row["epoch"] >= 2:  # annealing's last epoch is judged too
            kl += [abs(row["train"]["kl"] - low), abs(row["train"]["kl"] - high)]
            kl += [abs(row["valid"]["kl"]["mean"] - low)] if row["epoch"] > 2 else []
        if row["verdict"] != "not counted":
            judged = row["valid"]["re" if row["stage"] == "pretrain" else "neg_elbo"]["mean"]
            before = best.get(row["stage"], math.inf)
            loss.append(abs(judged - before))
            best[row["stage"]] = min(judged, before)
    return min(kl), min(loss)


NAMES = {"cpu": "DDP", "zero1": "ZeRO-1", "zero2": "ZeRO-2", "zero3": "ZeRO-3", "fsdp2": "FSDP2"}
WAYS = [("cpu", n) for n in (2, 3, 4)] + [(engine, n) for engine in list(NAMES)[1:] for n in (1, 2, 3)]


# Two processes in `make test`; the whole table in `make test-cluster`.
@pytest.mark.parametrize(
    ("engine", "processes"),
    [pytest.param(*way, id="-".join(map(str, way)), marks=[] if way[1] == 2 else pytest.mark.long) for way in WAYS],
)
def test_every_engine_computes_what_one_process_does(alone, tiny, tmp_path, record_property, engine, processes):
    needs_compiler(engine)
    words = [word for name in RUNS for word in ("--", *arguments(tiny, tmp_path, name))]
    done = launch(*words, processes=processes, engine=engine, program=[ROOT / "tests" / "distributed" / "several.py"])
    assert done.returncode == 0, done.stdout + done.stderr

    differences = {name: compare(alone / name, tmp_path / name) for name in RUNS}
    kl, loss = margins(alone / "steering")
    assert kl > 10 * differences["steering"].kl
    assert loss > 10 * differences["steering"].neg_elbo
    worst = Difference(*map(max, zip(*map(astuple, differences.values()), strict=True)))
    record_property("engine", (engine, processes, *astuple(worst)))
    assert max(astuple(worst)) < TOLERANCE, differences
    assert done.stdout.count(f" by {NAMES[engine]} on CPU") == len(RUNS)


def test_the_compared_run_decides_all_there_is_to_decide(alone):
    """What the comparison above rests on."""
    rows = [row for row in records(alone / "steering") if row["stage"] == "train"]
    assert {"improved", "decay", "stop", "not counted"} == {row["verdict"] for row in rows}
    weights = [row["kl_weight"] for row in rows[2:]]
    assert {-1, 0, 1} == {(after > before) - (after < before) for before, after in itertools.pairwise(weights)}


def continued(tiny, run, method, epochs):
    return [
        str(tiny),
        *RUNS[method],
        "pretrain.max_epochs=1",
        f"train.max_epochs={epochs}",
        "resume=auto",
        f"run={run}",
    ]


@pytest.mark.parametrize("method", ["steering", "adamw"])
def test_a_checkpoint_goes_on_under_any_engine(tiny, tmp_path, method):
    """An epoch by ZeRO-3, one by DDP, one by ZeRO-1 and one by FSDP2 come to what four by one process do."""
    unbroken, run = tmp_path / "unbroken", tmp_path / "run"
    assert main(continued(tiny, unbroken, method, 4)) == 0
    needs_compiler("zero3")
    for epochs, (engine, processes) in enumerate([("zero3", 2), ("cpu", 3), ("zero1", 2), ("fsdp2", 2)], start=1):
        done = launch(*continued(tiny, run, method, epochs), processes=processes, engine=engine)
        assert done.returncode == 0, done.stderr
        assert f"by {NAMES[engine]} on CPU" in done.stdout
        assert ("going on from" in done.stdout) == (epochs > 1)
    assert max(astuple(compare(unbroken, run))) < TOLERANCE
    moments = run / "checkpoints" / "step-000000055" / "optimizer.safetensors"
    assert moments.exists() == (method == "adamw")


def test_float64_shows_that_rounding_is_all_there_is(tiny, tmp_path):
    for processes in (1, 3):
        done = launch(
            "--", *arguments(tiny, tmp_path / str(processes), "steering"),
            processes=processes, program=[ROOT / "tests" / "distributed" / "several.py", "--double"],
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    difference = compare(tmp_path / "1" / "steering", tmp_path / "3" / "steering")
    assert max(astuple(difference)) < 1e-11
