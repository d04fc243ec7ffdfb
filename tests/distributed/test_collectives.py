"""Few collectives: gradients once a step, sums once an epoch, and what a method needs. No other can creep in."""

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


@pytest.mark.parametrize("method", METHODS)
def test_a_run_sends_what_it_has_to(tiny, tmp_path, method):
    options, expected = METHODS[method]
    counts = tmp_path / "counts.json"
    done = launch(
        str(counts), str(tiny), f"run={tmp_path / 'run'}", "evaluation.samples=0", *options,
        processes=2, program=[ROOT / "tests" / "distributed" / "counting.py"],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    seen = json.loads(counts.read_text())
    assert {name: count for name, count in seen.items() if name.startswith("all_reduce")} == EVERY_RUN | expected
    # What is left is said once, at the start: settings and first weights.
    rest = {name: count for name, count in seen.items() if not name.startswith("all_reduce")}
    assert {name.split()[0] for name in rest} <= {"broadcast", "all_gather"}
    assert sum(rest.values()) <= 12
