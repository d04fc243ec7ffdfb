"""Every way to train computes what one process does: engine × number of processes, each started by its own YAML.

All runs have unequal lengths, dropout and word dropout, and a partial batch of one sentence: in every epoch there are
processes that have none.
"""

import itertools
import math
from dataclasses import astuple, dataclass

import pytest
from safetensors.torch import load_file

from distvae.train import main
from tests.compare import records
from tests.conftest import LANGUAGE_MODEL, ROOT, fork, launch

SHORT = ["pretrain.max_epochs=1", "train.max_epochs=2"]
RUNS = {
    # γ falls, stays and rises; the learning rate decays, best weights and their γ come back, the second decay ends it.
    "steering": [
        "seed=4", "optimizer.learning_rate=0.7", "optimizer.clip_norm=1.0", "pretrain.max_epochs=3",
        "train.max_epochs=14", "plateau.patience=1", "plateau.max_decays=2", "kl.target_rate=2.0", "kl.threshold=0.2",
        "kl.multiplier=0.7",
    ],
    # The mean of the global batch, which the first micro-batch needs before the second is seen.
    "free_bits": [
        *SHORT, "kl.policy=linear", "kl.free_bits=dimension", "kl.target_rate=2", "optimizer.accumulation_steps=2",
    ],
    # Statistics of the global batch and running ones, learnt deviations, and dropped variances.
    "du": [*SHORT, "model.posterior=du", "optimizer.accumulation_steps=2"],
    # No latent variable: no encoder, and a KL of no dimensions.
    "language_model": [*SHORT, *LANGUAGE_MODEL, "optimizer.accumulation_steps=2"],
    # Moments and steps, forgotten where a stage begins. The encoder's hidden states are pooled.
    "adamw": [
        *SHORT, "optimizer.name=adamw", "optimizer.learning_rate=0.01", "optimizer.weight_decay=0.1",
        "optimizer.warmup_steps=5", "model.pooling=max",
    ],
}  # fmt: skip
BAND = 1.6, 2.4  # (1 ± β)λ of the steering run

# What sums of float32 in another order may come to over such runs, in nats and in weights.
TOLERANCE = 1e-4


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

# What a launcher tells each process, by its YAML.
TOLD = {
    "cpu": {},
    "fsdp2": {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_RESHARD_AFTER_FORWARD": "true"},
    **{f"zero{n}": {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": str(n)} for n in (1, 2, 3)},
}


def forked(folder, groups):
    """Run groups of processes, ``(engine, processes, runs)`` each, and see that all end well: what they said."""
    plan = [{"processes": n, "environment": TOLD[engine], "runs": runs} for engine, n, runs in groups]
    codes, told = fork(folder, plan)
    assert codes == [[0] * n for _, n, _ in groups], told
    return told


def check(alone, folder, record_property, engine, processes):
    differences = {name: compare(alone / name, folder / name) for name in RUNS}
    kl, loss = margins(alone / "steering")
    assert kl > 10 * differences["steering"].kl
    assert loss > 10 * differences["steering"].neg_elbo
    worst = Difference(*map(max, zip(*map(astuple, differences.values()), strict=True)))
    record_property("engine", (engine, processes, *astuple(worst)))
    assert max(astuple(worst)) < TOLERANCE, differences


# ZeRO-1 and ZeRO-2 are one code: both in `make test-long`.
@pytest.mark.parametrize(
    "engine", [pytest.param(name, marks=pytest.mark.long if name in ("zero1", "zero2") else []) for name in NAMES]
)
def test_every_engine_computes_what_one_process_does(alone, tiny, tmp_path, record_property, engine):
    words = [word for name in RUNS for word in ("--", *arguments(tiny, tmp_path, name))]
    program = [ROOT / "tests" / "distributed" / "several.py"]
    compiled = tmp_path / "compiled"
    done = launch(*words, processes=2, engine=engine, program=program, TORCH_EXTENSIONS_DIR=str(compiled))
    assert done.returncode == 0, done.stdout + done.stderr
    assert not compiled.exists()  # nobody needs a compiler, or waits for one
    assert done.stdout.count(f" 2 processes by {NAMES[engine]} on CPU") == len(RUNS)
    check(alone, tmp_path, record_property, engine, 2)


OTHERS = [("cpu", 3), ("cpu", 4)] + [(engine, n) for engine in list(NAMES)[1:] for n in (1, 3)]


@pytest.fixture(scope="module")
def others(tiny, tmp_path_factory):
    """The runs by other numbers of processes."""
    folder = tmp_path_factory.mktemp("others")
    runs = {way: [arguments(tiny, folder / f"{way[0]}-{way[1]}", name) for name in RUNS] for way in OTHERS}
    told = forked(folder, [(*way, runs[way]) for way in OTHERS])
    for engine, name in NAMES.items():
        assert told.count(f" by {name} on CPU") == sum(way[0] == engine for way in OTHERS) * len(RUNS)
    return folder


@pytest.mark.long
@pytest.mark.parametrize(("engine", "processes"), OTHERS)
def test_any_number_of_processes_computes_what_one_does(alone, others, record_property, engine, processes):
    check(alone, others / f"{engine}-{processes}", record_property, engine, processes)


def test_the_compared_run_decides_all_there_is_to_decide(alone):
    """What the comparison above rests on."""
    rows = [row for row in records(alone / "steering") if row["stage"] == "train"]
    assert {"improved", "decay", "stop", "not counted"} == {row["verdict"] for row in rows}
    weights = [row["kl_weight"] for row in rows[2:]]
    assert {-1, 0, 1} == {(after > before) - (after < before) for before, after in itertools.pairwise(weights)}


def test_a_checkpoint_goes_on_under_any_engine(tiny, tmp_path):
    """An epoch by ZeRO-3, one by DDP, one by ZeRO-1 and one by FSDP2 come to what four by one process do."""

    def run(folder, method, epochs):
        stages = ["pretrain.max_epochs=1", f"train.max_epochs={epochs}"]
        return [str(tiny), *RUNS[method], *stages, f"run={tmp_path / folder / method}"]

    methods, ways = ("steering", "adamw"), [("zero3", 2), ("cpu", 3), ("zero1", 2), ("fsdp2", 2)]
    for method in methods:
        assert main(run("unbroken", method, 4)) == 0
    groups = [(*way, [run("by turns", method, number) for method in methods]) for number, way in enumerate(ways, 1)]
    told = forked(tmp_path, groups)
    assert told.count("resuming from") == 3 * len(methods)
    for method in methods:
        assert max(astuple(compare(tmp_path / "unbroken" / method, tmp_path / "by turns" / method))) < TOLERANCE
        moments = tmp_path / "by turns" / method / "checkpoints" / "latest" / "optimizer.safetensors"
        assert moments.exists() == (method == "adamw")


def test_float64_shows_that_rounding_is_all_there_is(tiny, tmp_path):
    plan = [
        {
            "processes": n,
            "double": True,
            "runs": [[*arguments(tiny, tmp_path / str(n), "free_bits"), "optimizer.clip_norm=null"]],
        }
        for n in (1, 3)
    ]
    codes, told = fork(tmp_path, plan)
    assert codes == [[0], [0, 0, 0]], told
    difference = compare(tmp_path / "1" / "free_bits", tmp_path / "3" / "free_bits")
    assert max(astuple(difference)) < 1e-11
