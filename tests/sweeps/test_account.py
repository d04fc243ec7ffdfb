"""Reading a sweep folder, in every state."""

import re
import shutil

import pytest

from distvae.sweeps.progress import SweepProgress, Trial
from distvae.sweeps.report import write_report
from distvae.sweeps.summary import endings, summary
from distvae.system.errors import UserError
from tests.sweep_folders import scores, sweep_of, write_run, write_sweep
from tests.sweeps.pages import cells, page


def test_a_sweep_that_has_not_begun(tmp_path):
    asked = sweep_of(tmp_path / "run")
    write_sweep(asked, [])
    account = write_report(asked.folder)
    assert account.best is None
    assert "of which 0 have begun" in summary(account)
    assert "No trial can be judged yet." in summary(account)
    assert page(asked.folder).figures == []
    assert "No trial has started." in (asked.folder / "sweep.md").read_text(encoding="utf-8")


def test_a_sweep_that_runs(tmp_path):
    asked = sweep_of(tmp_path / "run")
    write_run(asked.folder / "trials" / "0000", scores(20, 2, 2, 2), epochs=1)
    write_run(asked.folder / "trials" / "0001", scores(20, 2, 2, 2), epochs=0, pretrain=2)
    (asked.folder / "trials" / "0002").mkdir()
    values = {"kl.target_rate": 2, "kl.multiplier": 0.1}
    states = ["running", "running", "running", "waiting"]
    write_sweep(asked, [Trial(n, values, state) for n, state in enumerate(states)], SweepProgress(slots=3))
    account = write_report(asked.folder)
    assert account.judged == []
    assert "The sweep is running: 6 trials" in summary(account)
    rows = cells((asked.folder / "sweep.md").read_text(encoding="utf-8"))
    assert [row["NLL, K = 50"] for row in rows] == ["20.00 ± 0.15", "–", "–", "–"]
    assert [row["rank"] for row in rows] == ["–"] * 4
    assert len(page(asked.folder).figures) == 3  # no parallel coordinates of a single trial


def test_a_sweep_all_of_whose_trials_failed(tmp_path):
    asked = sweep_of(tmp_path / "run")
    write_run(asked.folder / "trials" / "0000", scores(20, 2, 2, 2), epochs=2)
    values = {"kl.target_rate": 2, "kl.multiplier": 0.1}
    write_sweep(asked, [Trial(n, values, "failed", "no luck") for n in range(2)], SweepProgress("failed"))
    account = write_report(asked.folder)
    assert account.best is None
    assert endings(account) == ["trials 0, 1 failed: no luck"]
    assert len(page(asked.folder).figures) == 1  # the curves of what was trained


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("sweep.json", r'"seconds": 200\.0', '"seconds": NaN'),
        ("sweep.json", r'"seconds": 200\.0', '"seconds": 1e300'),
        ("trials.json", r'"seconds": 30\.0', '"seconds": -1'),
        ("trials.json", r'"number": 1', '"number": 0'),
        ("trials.json", r"kl\.target_rate", "kl.threshold"),
        ("trials/0005/metrics.jsonl", r'("nll": {"mean": )', r"\g<1>1"),
        ("trials/0005/metrics.jsonl", r'"verdict": "wait"', '"verdict": "best"'),
        ("trials/0005/metrics.jsonl", r"(?s).*", ""),
        ("finalists/0005.json", r'("nll": {\s+"mean": )', r"\g<1>1"),
        ("finalists/0005.json", r'"split": "valid"', '"split": "test"'),
    ],
)
def test_what_no_sweep_writes_is_one_line_that_names_the_file(small, tmp_path, name, old, new):
    folder = shutil.copytree(small, tmp_path / "damaged")
    text = (folder / name).read_text(encoding="utf-8")
    (folder / name).write_text(re.sub(old, new, text, count=1), encoding="utf-8")
    assert (folder / name).read_text(encoding="utf-8") != text
    with pytest.raises(UserError, match=re.escape(str(folder / name))):
        write_report(folder)
