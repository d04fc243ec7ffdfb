"""Few collectives: gradients once a step, sums once an epoch, and what a method needs. No other can creep in."""

import itertools
import json

import pytest

from tests.conftest import ROOT, launch

WEIGHTS = 24336  # of the tiny model: one bucket of gradients
EPOCHS, STEPS = 6, 11  # of both stages; of an epoch
TRAIN_STEPS = 4 * STEPS  # of the second stage

EVERY_RUN = {
    # RE, objective and the KL of 4 dimensions.
    "all_reduce [6]": EPOCHS,
    # An evaluation's table of 20 sentences, and their mutual information: every epoch's, and the last.
    "all_reduce [20, 17]": EPOCHS + 1,
    "all_reduce [20]": EPOCHS + 1,
}
GRADIENTS = {f"all_reduce [{WEIGHTS}]": EPOCHS * STEPS}

METHODS = {
    "soft_free_bits": ([], GRADIENTS),
    # One scalar when steps 4 and 11 of an epoch have been made.
    "every_steps": (["kl.every_steps=4"], GRADIENTS | {"all_reduce []": 2 * 4}),
    # The mean KL of each dimension.
    "free_bits": (
        ["kl.policy=linear", "kl.free_bits=dimension", "optimizer.accumulation_steps=2"],
        GRADIENTS | {"all_reduce [4]": TRAIN_STEPS},
    ),
    # Weights after steps 4, 8 and 11 of an epoch, and a flag in each look for what is not finite.
    "local_sgd": (
        ["communication.local_sgd_steps=4"],
        {f"all_reduce [{WEIGHTS}]": 3 * EPOCHS, "all_reduce []": EPOCHS},
    ),
}


@pytest.fixture(scope="module")
def seen(tiny, tmp_path_factory):
    """What two real processes took part in, by method."""
    folder = tmp_path_factory.mktemp("counting")
    runs = [["--", str(tiny), f"run={folder / name}", "evaluation.samples=0", *METHODS[name][0]] for name in METHODS]
    program = [ROOT / "tests" / "distributed" / "counting.py", folder / "counts.json"]
    done = launch(*itertools.chain(*runs), processes=2, program=program)
    assert done.returncode == 0, done.stderr
    return dict(zip(METHODS, json.loads((folder / "counts.json").read_text()), strict=True))


@pytest.mark.parametrize("method", METHODS)
def test_a_run_sends_what_it_has_to(seen, method):
    counts, expected = seen[method], METHODS[method][1]
    assert {name: count for name, count in counts.items() if name.startswith("all_reduce")} == EVERY_RUN | expected
    # What is left is said once, at the start: settings and first weights.
    rest = {name: count for name, count in counts.items() if not name.startswith("all_reduce")}
    assert {name.split()[0] for name in rest} <= {"broadcast", "all_gather"}
    assert sum(rest.values()) <= 12
