"""The Tune run and its restart."""

import json
import pickle
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from distvae.sweeps.progress import Trial, load_progress, load_trials

pytest.importorskip("ray", reason="no Ray: pip install -e '.[sweep]'")

import signal

from ray import tune
from ray.tune import CheckpointConfig
from ray.tune.search.optuna import OptunaSearch

from distvae.sweeps.ray.state import SweepState
from distvae.sweeps.ray.tune_files import STATE_FILES
from distvae.sweeps.ray.tuning import BoundedSearcher, Grid, TuneMonitor, make_tuner

STARTS = ("2026-01-01_10-00-00", "2026-01-02_10-00-00")


def test_a_trial_that_tune_gave_up_before_it_ran_has_failed(state_of):
    """Tune would retry after so few failures, but only a trial that ran."""
    one = SimpleNamespace(
        status="ERROR",
        last_result=None,
        should_recover=lambda: True,
        get_error=lambda: "Failure # 1\nRay's actor could not be reset\n",
    )
    assert TuneMonitor(state_of()).state_of(one) == ("failed", "Ray's actor could not be reset")


@pytest.fixture
def settings(monkeypatch) -> dict:
    """What a new Tuner is given."""
    found: dict = {}
    monkeypatch.setattr("distvae.sweeps.ray.tuning.tune.Tuner", lambda trainable, **given: found.update(given))
    return found


@pytest.mark.parametrize(("workers", "reused"), [(1, True), (2, False)])
def test_only_trials_of_one_process_pass_it_on(state_of, settings, workers, reused):
    make_tuner(state_of(trial={"workers": workers}), lambda choice: None)
    assert settings["tune_config"].reuse_actors is reused


def test_time_is_saved_each_minute_though_no_trial_changes(state_of, clock):
    state = state_of()
    state.trials, state.running = {0: Trial(0, {}, "running")}, {0}
    saved = []
    with state.timed("trial_seconds"):
        state.save()
        for _ in range(7):
            clock.now += 25.0
            TuneMonitor.current.after_step([])
            saved.append((load_progress(state.folder).seconds, load_trials(state.folder)[0].seconds))
    assert saved == [(0.0, 0.0)] * 2 + [(75.0, 75.0)] * 3 + [(150.0, 150.0)] * 2


@pytest.fixture(params=["random", "optuna"])
def restarted(request, state_of):
    """A sweep that has had two attempts and is opened again: its state, and the files that Tune saved, by attempt."""
    state = state_of(space={"kl.target_rate": {"choice": [2, 4]}}, search=request.param)
    make_tuner(state, lambda choice: None)
    files = [[state.folder / "tune" / name.format(start) for name in STATE_FILES[request.param]] for start in STARTS]
    for first, *others in files:
        first.write_text(json.dumps({"trial_data": []}))
        for other in others:
            other.write_bytes(pickle.dumps({"drawn": list(range(9))}))
    state.trials = {0: Trial(0, {"kl.target_rate": 2}, "finished")}
    return state, files


@pytest.fixture
def resumes(monkeypatch) -> Callable[[SweepState], bool]:
    """Whether Tune is restored from what it saved."""
    restore, calls = tune.Tuner.restore, []
    monkeypatch.setattr(tune.Tuner, "restore", lambda *given, **more: calls.append(given) or restore(*given, **more))

    def make(state: SweepState) -> bool:
        make_tuner(state, lambda choice: None)
        return bool(calls)

    return make


def test_tune_resumes_from_what_it_saved_last(restarted, resumes):
    state, files = restarted
    assert resumes(state)
    assert all(file.exists() for start in files for file in start)


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("part", [0.0, 0.5, 0.99])
def test_a_state_that_was_torn_is_passed_over_for_the_one_before(restarted, resumes, which, part):
    state, (first, second) = restarted
    content = second[which].read_bytes()
    second[which].write_bytes(content[: int(part * len(content))])
    assert resumes(state)
    assert all(file.exists() for file in first)
    assert not any(file.exists() for file in second)
    assert state.trials


def test_a_state_of_which_a_file_is_missing_is_passed_over(restarted, resumes):
    state, (_, second) = restarted
    second[-1].unlink()
    assert resumes(state)
    assert not any(file.exists() for file in second)


def test_where_no_state_is_whole_the_sweep_begins_again(restarted, resumes):
    state, files = restarted
    for start in files:
        start[0].write_text('{"trial_data": [')
    assert not resumes(state)
    assert not list((state.folder / "tune").glob("experiment_state-*.json"))
    # A grid has the same trials again; Optuna may draw others.
    assert list(state.trials) == ([0] if state.sweep.config.search == "random" else [])


def test_where_tunes_own_settings_are_torn_the_sweep_begins_again(restarted, resumes):
    state, _ = restarted
    settings = state.folder / "tune" / "tuner.pkl"
    settings.write_bytes(settings.read_bytes()[:-1])
    assert not resumes(state)


def test_tune_itself_removes_no_checkpoint_of_a_population(state_of, settings):
    state = state_of(
        space={"kl.target_rate": {"uniform": [2, 6]}}, scheduler={"name": "pbt", "grace_epochs": 2, "quantile": 0.5}
    )
    make_tuner(state, lambda choice: None)
    assert (settings["run_config"].checkpoint_config or CheckpointConfig()).num_to_keep is None


def test_a_restart_has_room_for_as_many_trials_as_its_config_says(state_of):
    """Not for the number that Tune saved."""
    state = state_of(search="optuna", space={"kl.target_rate": {"choice": [2, 4]}})
    optuna = OptunaSearch(space=lambda trial: {}, metric="objective", mode="min")
    for way in (Grid(), BoundedSearcher(optuna, max_concurrent=1)):
        state.progress.slots = 1
        assert way.max_concurrent == 1
        saved = way.get_state()
        state.progress.slots = 2
        way.set_state(saved | {"max_concurrent": 1})
        assert way.max_concurrent == 2


def test_tune_is_interrupted_when_no_trial_is_left_to_save_itself(state_of):
    state, called = state_of(), []
    monitor = TuneMonitor.current
    former = signal.getsignal(signal.SIGUSR1)
    signal.signal(signal.SIGUSR1, lambda number, frame: called.append(number))
    try:
        monitor.before_step()
        assert signal.getsignal(signal.SIGUSR1) == state.signals.handle
        monitor.after_step([])
        assert not called
        state.signals.handle(signal.SIGTERM, None)
        monitor.after_step([])
    finally:
        signal.signal(signal.SIGUSR1, former)
    assert called == [signal.SIGUSR1]
    assert state.interrupted
    assert (state.folder / "stop").read_text() == "SIGTERM\n"
