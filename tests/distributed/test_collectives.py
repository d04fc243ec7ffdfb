"""Few collectives: gradients once a step, sums once an epoch, and what a method needs. No other can creep in."""

import itertools
import json

from tests.conftest import fork

WEIGHTS = 24336  # of the tiny model: one bucket of gradients
SHORT = ["pretrain.max_epochs=1", "train.max_epochs=2"]
EPOCHS, TRAIN_EPOCHS, STEPS = 3, 2, 11  # of both stages; of the second stage; per epoch

LOOK = "all_reduce [6]"  # of flags

EVERY_RUN = {
    # Whether every machine has the sentences.
    "all_reduce []": 1,
    # Sentences, RE, objective and the KL of 4 dimensions.
    "all_reduce [7]": EPOCHS,
    # An evaluation's table of 20 sentences, and their mutual information: every epoch's, and the last.
    "all_reduce [20, 18]": EPOCHS + 1,
    # The floor under the last one's NLL is as long.
    "all_reduce [20]": EPOCHS + 1 + 1,
}
# In the first, of zeros, DDP lays out its buckets.
GRADIENTS = {f"all_reduce [{WEIGHTS}]": 1 + EPOCHS * STEPS}

METHODS = {
    "soft_free_bits": ([], GRADIENTS),
    # Sentences and KL when steps 4 and 11 of an epoch have been made.
    "every_steps": (["kl.every_steps=4"], GRADIENTS | {"all_reduce [2]": 2 * TRAIN_EPOCHS}),
    # The mean KL of each dimension.
    "free_bits": (
        ["kl.policy=linear", "kl.free_bits=dimension", "optimizer.accumulation_steps=2"],
        GRADIENTS | {"all_reduce [4]": TRAIN_EPOCHS * STEPS},
    ),
    # Weights after steps 4, 8 and 11 of an epoch.
    "local_sgd": (["communication.local_sgd_steps=4"], {f"all_reduce [{WEIGHTS}]": 3 * EPOCHS}),
}


def test_a_run_sends_what_it_has_to(tiny, tmp_path):
    runs = [
        ["--", str(tiny), f"run={tmp_path / name}", "evaluation.samples=0", *SHORT, *METHODS[name][0]]
        for name in METHODS
    ]
    words = [str(tmp_path / "counts.json"), *itertools.chain(*runs)]
    codes, told = fork(tmp_path, [{"processes": 2, "program": "tests.distributed.counting", "runs": [words]}])
    assert codes == [[0, 0]], told
    counted = json.loads((tmp_path / "counts.json").read_text())
    for (method, (_, expected)), counts in zip(METHODS.items(), counted, strict=True):
        sums = {name: count for name, count in counts.items() if name.startswith("all_reduce")}
        # About once a second, and at the beginning and the end of what is done.
        assert 2 * EPOCHS < sums.pop(LOOK) < 60, method
        assert sums == EVERY_RUN | expected, method
        # What each rank adds to a checkpoint: its sums, with those of the interval, and its step.
        assert counts.pop("gather [9]") == counts.pop("gather []") == EPOCHS
        # What is left is said once, at the start: settings and first weights.
        rest = {name: count for name, count in counts.items() if not name.startswith("all_reduce")}
        assert {name.split()[0] for name in rest} <= {"broadcast", "all_gather"}, method
        assert sum(rest.values()) <= 20, method
