"""Where the time of a sweep went."""

import re
import shutil
from dataclasses import replace

from distvae.sweeps.account import gather
from distvae.sweeps.progress import load_progress, save_progress
from distvae.sweeps.timing import by_the_clock, by_the_trials, utilisation


def test_where_the_time_went(small):
    account = gather(small)
    clock = {part.what: (part.seconds, part.share) for part in by_the_clock(account)}
    assert clock == {
        "pretraining that trials share": (20.0, 0.1), "trials": (100.0, 0.5), "finalists": (40.0, 0.2),
        "startup and everything else": (40.0, 0.2),
    }  # fmt: skip
    trials = {part.what: part.seconds for part in by_the_trials(account)}
    assert trials == {
        "training steps": 80.0, "validation, including the NLL": 40.0, "training blocked by a checkpoint": 10.0,
        "startup, test sentences and everything else": 25.0, "free slots": 45.0,
    }  # fmt: skip
    assert utilisation(account) == 155 / 200
    assert "Trials held 78% of the time of all slots" in (small / "sweep.md").read_text(encoding="utf-8")


def test_the_places_of_every_start_count_and_not_only_those_of_the_last(small, tmp_path):
    folder = shutil.copytree(small, tmp_path / "grown")
    save_progress(folder, replace(load_progress(folder), slots=8))
    assert utilisation(gather(folder)) == 155 / 200
    assert next(p.seconds for p in by_the_trials(gather(folder)) if p.what == "free slots") == 45.0


def test_time_before_records_told_that_of_validation_is_not_lost(small, tmp_path):
    folder = shutil.copytree(small, tmp_path / "old")
    for path in folder.glob("trials/*/metrics.jsonl"):
        path.write_text(re.sub(r'"valid_seconds": [^,]*, ', "", path.read_text()))
    trials = {part.what: part.seconds for part in by_the_trials(gather(folder))}
    assert trials["startup, test sentences and everything else"] == 65.0
    assert "validation, including the NLL" not in trials
