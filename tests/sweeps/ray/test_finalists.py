"""Scoring the best trials again."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from distvae.sweeps.progress import load_progress, load_trials
from tests.sweep_folders import scores, small_sweep, write_finalist

pytest.importorskip("ray", reason="no Ray: pip install -e '.[sweep]'")

from ray.exceptions import RayTaskError

from distvae.sweeps.ray.finalists import score_finalists
from distvae.system.signals import InterruptedRun


def test_finalists_are_scored_anew_with_other_importance_samples(state_of, monkeypatch):
    state = state_of(finalists={"count": 2, "importance_samples": 500})
    small_sweep(state.folder)
    state.trials = {trial.number: trial for trial in load_trials(state.folder)}
    for number in (0, 1, 5):
        (state.folder / "trials" / f"{number:04d}" / "best").mkdir()
    write_finalist(state.folder, 0, *(scores(19.0, 2.1, 1.9, 2, samples=100),) * 2)  # from an earlier attempt
    (state.folder / "finalists" / "0004.json").write_text("[]")
    asked = []

    def remote(run: Path, samples: int, *_) -> str:
        asked.append((run.name, samples))
        return run.name

    found = {"valid": {"scores": {"importance_samples": 700}}}
    monkeypatch.setattr(
        "distvae.sweeps.ray.finalists.ray",
        SimpleNamespace(
            remote=lambda work: SimpleNamespace(options=lambda **_: SimpleNamespace(remote=remote)),
            wait=lambda tasks, timeout: (tasks, []),
            get=lambda task: found,
        ),
    )
    score_finalists(state)
    assert asked == []
    assert sorted(path.name for path in (state.folder / "finalists").iterdir()) == ["0001.json", "0005.json"]
    finalists = replace(state.sweep.config.finalists, importance_samples=700)
    state.sweep = replace(state.sweep, config=replace(state.sweep.config, finalists=finalists))
    score_finalists(state)
    assert asked == [("0005", 700), ("0001", 700)]
    assert json.loads((state.folder / "finalists" / "0001.json").read_text()) == found


def test_a_finalist_that_cannot_be_scored_is_told_of_and_the_others_are(state_of, monkeypatch, capsys):
    state = state_of(finalists={"count": 2, "importance_samples": 700})
    small_sweep(state.folder)
    state.trials = {trial.number: trial for trial in load_trials(state.folder)}
    for number in (1, 5):
        (state.folder / "trials" / f"{number:04d}" / "best").mkdir()

    def get(task: str):
        if task == "0005":  # as Ray raises the error of a task
            raise RayTaskError("score", "Traceback …\nno room\n", RuntimeError())
        return {"valid": {}}

    monkeypatch.setattr(
        "distvae.sweeps.ray.finalists.ray.remote",
        lambda work: SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda run, *_: run.name)),
    )
    monkeypatch.setattr("distvae.sweeps.ray.finalists.ray.wait", lambda tasks, timeout: (tasks, []))
    monkeypatch.setattr("distvae.sweeps.ray.finalists.ray.get", get)
    (unscored,) = score_finalists(state)
    assert unscored == "finalist 5 could not be scored: no room"
    assert capsys.readouterr().out.count(unscored) == 1
    assert [path.name for path in (state.folder / "finalists").iterdir()] == ["0001.json"]


def test_the_time_of_interrupted_finalists_counts(state_of, clock, monkeypatch):
    state = state_of(finalists={"count": 2, "importance_samples": 700})
    small_sweep(state.folder)
    state.trials = {trial.number: trial for trial in load_trials(state.folder)}
    for number in (1, 5):
        (state.folder / "trials" / f"{number:04d}" / "best").mkdir()

    def wait(tasks, timeout):
        clock.now += 20.0
        return [], tasks

    remote = SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda *work: work))
    monkeypatch.setattr("distvae.sweeps.ray.finalists.ray", SimpleNamespace(remote=lambda work: remote, wait=wait))
    state.signals.received = "SIGTERM"
    with pytest.raises(InterruptedRun, match="interrupted by SIGTERM while scoring finalists"):
        score_finalists(state)
    state.save()
    assert load_progress(state.folder).finalist_seconds == 20.0
