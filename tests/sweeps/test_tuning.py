"""What Tune and its trials ask of ``distvae.tuning``, without a cluster."""

from types import SimpleNamespace

import pytest

from distvae import sweep as sweeps
from tests.sweep_folders import pbt_sweep, scores, sweep_of, write_run

pytest.importorskip("ray", reason="no Ray: pip install -e '.[sweep]'")

from distvae.tuning import trial as trials
from distvae.tuning.driver import Driver, _places
from launch.sweep import main


@pytest.fixture
def driver_of(tmp_path, monkeypatch):
    """The driver of a sweep whose file has this, as it is once its folder is open."""

    def make(**content) -> Driver:
        driver = Driver(sweep_of(tmp_path / "sweep", **content))
        driver.progress = sweeps.Progress(slots=2)
        monkeypatch.setattr(Driver, "current", driver)
        return driver

    return make


def test_a_trial_that_tune_gave_up_before_it_ran_has_failed(driver_of):
    """Tune would start again one that failed so seldom, but only one that ran."""
    one = SimpleNamespace(
        status="ERROR",
        last_result=None,
        should_recover=lambda: True,
        get_error=lambda: "Failure # 1\nRay's actor could not be reset\n",
    )
    assert driver_of()._state(one) == ("failed", "Ray's actor could not be reset")


@pytest.mark.parametrize(("workers", "reused"), [(1, True), (2, False)])
def test_only_trials_of_one_process_pass_it_on(driver_of, workers, reused):
    tuner = driver_of(trial={"workers": workers})._tuner(lambda choice: None)
    assert tuner._local_tuner._tune_config.reuse_actors is reused


def test_the_time_of_places_adds_up_however_many_there_are(driver_of, monkeypatch):
    driver = driver_of()
    driver.trials, driver.running = {0: sweeps.Trial(0, {}), 1: sweeps.Trial(1, {})}, {1}
    for slots, now in ((2, 10.0), (8, 13.0)):
        monkeypatch.setattr("time.monotonic", lambda now=now: now)
        driver.progress.slots = slots
        driver._count_time()
    assert (driver.progress.trial_seconds, driver.progress.place_seconds) == (13.0, 2 * 10.0 + 8 * 3.0)
    assert [driver.trials[number].seconds for number in (0, 1)] == [0.0, 13.0]


@pytest.mark.parametrize(
    ("cpus", "gpus", "places"),
    [(1, 0, 16), (0.5, 0, 32), (4, 1, 2), (1, 0.25, 8), (1, 1 / 3, 6), (1, 0.4, 4), (1, 0.6, 2), (8, 0.25, 2)],
)
def test_a_part_of_a_gpu_lies_on_one(cpus, gpus, places):
    assert _places({"CPU": 16.0, "GPU": 2.0, "memory": 1e9}, cpus, gpus) == places
    assert _places({"CPU": 16.0}, cpus, 0.5) == 0


def test_both_metrics_of_a_trial_whose_kl_is_wrong_are_told_behind_all_others(tmp_path):
    both = {"objective": {"second": "mutual_information"}, "search": "optuna"}
    asked = sweep_of(tmp_path / "sweep", space={"kl.multiplier": {"uniform": [0.1, 0.5]}}, **both)
    told = []
    for number, (kl, mi) in enumerate([(4.0, 3.0), (9.0, 8.0)]):
        run = asked.folder / "trials" / f"{number:04d}"
        write_run(run, scores(18.0, kl, mi, 3), curves=False)
        told.append(trials._told(asked, asked.config_of({}, run), run))
    assert (told[0]["objective"], told[0]["second"]) == (18.0, 3.0)
    assert told[1]["objective"] > 1000
    assert told[1]["second"] < -1000
    assert told[1]["mutual_information"] == 8.0


def test_a_bound_below_the_population_is_refused_in_a_line(tmp_path, capsys):
    pbt_sweep(tmp_path / "sweep")
    for sweep in (["--resume", str(tmp_path / "sweep")], [str(tmp_path / "file.yaml")]):
        assert main([*sweep, "--max-concurrent", "2", "--dry-run"]) == 0
        assert main([*sweep, "--max-concurrent", "1", "--dry-run"]) == 2
        error = capsys.readouterr().err
        assert "max_concurrent = 1" in error
        assert error.count("\n") == 1
