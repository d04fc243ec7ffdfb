"""What Tune and its trials ask of ``distvae.tuning``, without a cluster."""

from types import SimpleNamespace

import pytest

from distvae import sweep as sweeps
from tests.sweep_folders import sweep_of

pytest.importorskip("ray", reason="no Ray: pip install -e '.[sweep]'")

from distvae.tuning.driver import Driver


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
