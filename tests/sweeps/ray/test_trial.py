"""A trial's reports."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from distvae.runs.checkpoints import list_checkpoints
from distvae.runs.records import read_metrics
from tests.sweep_folders import scores, sweep_of, write_run

pytest.importorskip("ray", reason="no Ray: pip install -e '.[sweep]'")

from distvae.sweeps.ray import trial as trials
from distvae.sweeps.ray.search import trial_number

PBT = {"name": "pbt", "grace_epochs": 2}


@pytest.mark.parametrize(("epochs", "verdict", "over"), [(8, None, True), (5, None, False), (5, "stop", True)])
def test_a_checkpoint_is_reported_unless_the_training_has_ended(tmp_path, monkeypatch, epochs, verdict, over):
    asked = sweep_of(tmp_path / "sweep", space={"kl.target_rate": {"uniform": [2, 6]}}, scheduler=PBT)
    run = asked.folder / "trials" / "0000"
    write_run(run, scores(18, 4, 3.5, 3), curves=False, epochs=epochs)
    if verdict is not None:
        rows = read_metrics(run)
        rows[-1] = replace(rows[-1], verdict=verdict)
        (run / "metrics.jsonl").write_text("".join(json.dumps(asdict(row)) + "\n" for row in rows))
    (run / "checkpoints" / "start-0001-step-000000080-epoch-0008").mkdir(parents=True)
    (asked.folder / "tune").mkdir()
    monkeypatch.setattr(trials.checkpoints, "newest_checkpoint", lambda run: list_checkpoints(run)[-1])
    monkeypatch.setattr(trials.checkpoints, "load_state", lambda path: SimpleNamespace(step=80))
    told = []

    def report(metrics, checkpoint=None):
        told.append(checkpoint and json.loads((Path(checkpoint.path) / "origin.json").read_text()))

    monkeypatch.setattr(trials.tune, "report", report)
    trials._report_with_checkpoint(asked, asked.config_of({"kl.target_rate": 4.0}, run), run, 0)
    assert told == [None if over else {"trial": 0, "run": "0000", "step": 80}]
    assert list((asked.folder / "tune").iterdir()) == []


def test_trackers_group_a_trial_by_the_name_of_its_sweep(tmp_path, monkeypatch):
    asked = sweep_of(tmp_path / "lr")
    run, seen = asked.folder / "trials" / "0000", []
    monkeypatch.setattr(trials, "train", lambda config, signals, caller: seen.append(caller.group))
    assert trials._train(asked, asked.config_of({}, run), run, 0) is None
    assert seen == ["lr"]


def test_a_trials_number_is_optunas_or_tunes():
    assert trial_number("ab12_00003", {"values": {}}) == 3
    assert trial_number("ab12_00003", {"values": {}, "number": 7}) == 7
