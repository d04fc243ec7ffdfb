"""The lines that a sweep prints."""

import pytest

from distvae.runs.records import read_metrics
from distvae.sweeps.progress import Trial, load_trials
from tests.sweep_folders import scores, small_sweep, write_run

pytest.importorskip("ray", reason="no Ray: pip install -e '.[sweep]'")

from distvae.sweeps.ray import console


def test_a_trial_that_ended_is_described_with_the_sweeps_progress(state_of):
    state = state_of()
    small_sweep(state.folder)
    state.trials = {trial.number: trial for trial in load_trials(state.folder)}
    line = console.trial_line(state, state.trials[0])
    assert line.startswith("trial   0 finished, NLL ")
    assert console.counts(state) in line
    assert "; best: trial " in line


def test_the_time_left_is_the_mean_of_ended_trials_over_all_slots(state_of):
    state = state_of()
    state.trials = {
        0: Trial(0, {}, "failed", "bad", seconds=60.0),
        1: Trial(1, {}, "running", seconds=10.0),
    }
    left = (state.sweep.trials - 1) * 60 - 10
    assert f"about {console.timedelta(seconds=round(left / 2))} left" in console.trial_line(state, state.trials[0])


def test_only_new_epochs_of_a_pretraining_are_printed(tmp_path, capsys):
    write_run(tmp_path / "run", scores(25, 9, 3, 4), curves=False, epochs=0, pretrain=3)
    assert console.print_epochs("abc", tmp_path / "run", 2, 6) == 3
    printed = capsys.readouterr().out
    assert printed.startswith("pretraining abc, epoch 3/6: validation RE ")
    assert printed.count("\n") == 1


def test_running_trials_are_shown_when_they_have_changed_and_not_too_often(state_of, clock, capsys):
    state = state_of()
    small_sweep(state.folder)
    state.trials = {trial.number: trial for trial in load_trials(state.folder)}
    table = console.StatusTable(state)
    state.running = {1, 7}
    state.trials[1].state, state.trials[7] = "running", Trial(7, {"kl.target_rate": 2.0}, "running")
    clock.now += console.PAUSE - 1
    capsys.readouterr()
    table.update()
    assert capsys.readouterr().out == ""
    clock.now += 1
    table.update()
    header, first, second = capsys.readouterr().out.splitlines()
    assert header.split() == ["trial", "status", "epoch", "KL", "−ELBO", "NLL", "MI"]
    last = read_metrics(state.folder / "trials" / "0001")[-1]
    kl, elbo, nll, mi = (
        f"{score.mean:.2f}"
        for score in (last.valid.kl, last.valid.neg_elbo, last.valid.nll, last.valid.mutual_information)
    )
    assert first.split()[:8] == ["1", "running", "train", "8/8", kl, elbo, nll, mi]
    assert second.split() == ["7", "running", *["–"] * 5, "kl.target_rate=2"]  # it has no record yet
    clock.now += console.PAUSE
    table.update()  # nothing has changed
    state.running.clear()
    clock.now += console.PAUSE
    table.update()
    assert capsys.readouterr().out == ""
