"""A run ends with exit code 0: gloo can abort a process whose model outlives its group."""

import pytest

from tests.conftest import fork

OPTIONS = [
    "pretrain.max_epochs=0", "train.max_epochs=1", "evaluation.samples=0", "evaluation.importance_samples=1",
    "data.train_size=17", "data.valid_size=4", "data.test_size=4",
]  # fmt: skip


def in_a_row(tiny, folder, runs, *options):
    """Runs by two processes each, one after the other."""
    return [
        {"processes": 2, "runs": [[str(tiny), *OPTIONS, *options, f"run={folder / str(number)}"]]}
        for number in range(runs)
    ]


@pytest.mark.long
def test_fifty_runs_in_a_row_end_well(tiny, tmp_path):
    codes, told = fork(tmp_path, in_a_row(tiny, tmp_path, 50))
    assert codes == [[0, 0]] * 50, told
    assert all((tmp_path / str(number) / "results.json").exists() for number in range(50))


def test_runs_that_stop_at_bad_numbers_end_as_they_should(tiny, tmp_path):
    """Their error, on its way out, holds on to the model."""
    bad = ["optimizer.learning_rate=1e30", "optimizer.clip_norm=null"]
    codes, told = fork(tmp_path, in_a_row(tiny, tmp_path, 3, *bad))
    assert codes == [[2, 2]] * 3, told
