"""``sweep.json`` and ``trials.json``."""

import pytest

from distvae.sweeps.progress import SweepProgress, Trial, load_progress, load_trials, save_progress, save_trials
from distvae.system.errors import UserError


def test_trials_and_progress_come_back(tmp_path):
    assert load_trials(tmp_path) == []
    assert load_progress(tmp_path) == SweepProgress()
    trials = [
        Trial(0, {"a": 1, "b": 0.5, "c": "x", "d": None, "e": True}, "failed", "no good", "n1", 1e9, 2.5, 3),
        Trial(1, {}),
    ]
    save_trials(tmp_path, trials)
    progress = SweepProgress("interrupted", "SIGTERM", 1e9, 2, 3.0, 1.0, 1.5, 0.25, 6.0, 4, ("n1", "n2"))
    save_progress(tmp_path, progress)
    assert load_trials(tmp_path) == trials
    assert load_progress(tmp_path) == progress


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *(("trials.json", text) for text in ("", "[]", "{}", "3", '{"trials": 3}', '{"trials": [{}]}')),
        *(("sweep.json", text) for text in ("", "[]", "3", '{"state": "odd"}', '{"slots": "many"}')),
    ],
)
def test_a_damaged_file_is_one_line_that_names_it(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError) as caught:
        (load_trials if name == "trials.json" else load_progress)(tmp_path)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)
