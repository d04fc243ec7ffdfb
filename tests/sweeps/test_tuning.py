"""What Tune and its trials ask of ``distvae.sweeps.ray``, without a cluster."""

import json
import os
import pickle
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from distvae.config.load import dump_config
from distvae.runs import attempts
from distvae.runs.checkpoints import list_checkpoints
from distvae.runs.status import write_status
from distvae.runs.tracking import read_metrics
from distvae.sweeps.lineage import Generation, generations, history, save_lineage
from distvae.sweeps.pretraining import fingerprint, pretraining_of
from distvae.sweeps.progress import SweepProgress, Trial, load_progress, load_trials, save_progress
from distvae.sweeps.storage import dump_sweep, open_sweep
from distvae.sweeps.sweep import Sweep
from distvae.system.errors import UserError
from distvae.system.signals import SIGNALS, InterruptedRun, Signals
from distvae.train import train
from distvae.training.caller import Caller
from tests.sweep_folders import pbt_sweep, scores, small_sweep, sweep_of, write_finalist, write_run, write_sweep

pytest.importorskip("ray", reason="no Ray: pip install -e '.[sweep]'")

from ray.exceptions import RayTaskError
from ray.train.v2.api.exceptions import ControllerError
from ray.tune import CheckpointConfig
from ray.tune.schedulers import PopulationBasedTraining

from distvae.sweeps.ray import trial as trials
from distvae.sweeps.ray.driver import _STATE, Driver, Limits, Places, RayWatch, _places
from distvae.sweeps.ray.scratch import scratch
from distvae.sweeps.ray.search import scheduler
from launch.sweep import main


@pytest.fixture
def driver_of(tmp_path, monkeypatch):
    """The driver of a sweep whose file has this, as it is once its folder is open."""

    def make(**content) -> Driver:
        driver = Driver(sweep_of(tmp_path / "sweep", **content), tmp_path / "scratch")
        driver.progress, driver.hold = SweepProgress(slots=2), SimpleNamespace(lost=False, check=lambda: None)
        driver._before, driver._began = 0.0, time.monotonic()
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


def test_a_sweep_answers_for_its_own_sentences_alone(driver_of, monkeypatch):
    """Its file names the same path; what lies there has changed."""
    driver = driver_of()
    attempts.claim(driver.folder)
    for name, text in dump_sweep(driver.sweep).items():
        (driver.folder / name).write_text(text, encoding="utf-8")
    save_progress(driver.folder, SweepProgress(data=driver._data()))
    driver._look()
    monkeypatch.setattr("distvae.data.corpus.fingerprint", lambda data: "0123456789abcdef")
    with pytest.raises(UserError, match=r"its trials have other sentences \(\w+\) than .* now \(0123456789abcdef\)"):
        driver._look()
    save_progress(driver.folder, SweepProgress())  # of an older version
    driver._look()


@pytest.mark.parametrize(("workers", "reused"), [(1, True), (2, False)])
def test_only_trials_of_one_process_pass_it_on(driver_of, workers, reused):
    tuner = driver_of(trial={"workers": workers})._tuner(lambda choice: None)
    assert tuner._local_tuner._tune_config.reuse_actors is reused


def test_rays_folder_is_in_the_sweeps_own(driver_of, monkeypatch):
    asked = {}
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "token")
    monkeypatch.setattr(
        "distvae.sweeps.ray.driver.ray.init", lambda **given: asked.update(given) or SimpleNamespace(dashboard_url="")
    )
    driver = driver_of()
    driver._connect()
    driver._closing.set()
    assert Path(asked["_temp_dir"]).parent == driver.scratch


@pytest.fixture
def short(monkeypatch):
    """A folder as short as /tmp that takes its place for sweeps; the environment is as it was afterwards."""
    before = dict(os.environ)
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"):
        monkeypatch.delenv(name, raising=False)
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        monkeypatch.setattr("distvae.sweeps.ray.scratch.ROOT", Path(folder))
        monkeypatch.setattr(tempfile, "tempdir", None)
        yield Path(folder)
    os.environ.clear()
    os.environ.update(before)


def test_a_sweeps_temporary_folder_is_its_own_and_goes_with_it(short):
    with scratch() as folder:
        assert stat.filemode(folder.stat().st_mode) == "drwx------"
        token = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
        assert token.parent == folder
        assert len(token.read_text()) == 64
        assert os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0"
        assert os.environ["GLOO_SOCKET_IFNAME"] == "lo"
        with scratch() as other:  # another sweep's, which leaves it alone
            assert other != folder
        assert folder.is_dir()
    assert list(short.iterdir()) == []


def test_a_cluster_that_others_started_keeps_its_token_and_its_interfaces(short, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "node:6379")
    with scratch():
        assert not {"RAY_AUTH_TOKEN_PATH", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"} & os.environ.keys()


def test_what_a_killed_driver_left_is_removed_by_the_next_and_nothing_else(short):
    dies = f"""
import os, pathlib, signal
from distvae.sweeps.ray import scratch
scratch.ROOT = pathlib.Path({str(short)!r})
with scratch.scratch() as folder:
    (folder / "ray").mkdir()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", dies]).returncode == -signal.SIGKILL
    (left,) = short.iterdir()
    (others := short / f"{left.name[:-8]}noneofus").mkdir()
    (again := short / f"{left.name[:-8]}madagain").mkdir()
    os.utime(again, (0, 0))
    (short / "linked").mkdir()
    (short / f"{left.name[:-8]}aslinked").symlink_to(short / "linked")
    (short / "linked" / "lock").write_text("")
    with scratch():
        assert not left.exists()
        assert not again.exists()
        assert others.exists()
        assert (short / "linked" / "lock").exists()


@pytest.mark.parametrize(("length", "replaced"), [(60, False), (61, True), (93, True), (200, True)])
def test_a_tmpdir_that_is_too_long_for_sockets_is_replaced(short, monkeypatch, capsys, length, replaced):
    given = short / ("t" * (length - len(str(short)) - 1))
    given.mkdir()
    monkeypatch.setenv("TMPDIR", str(given))
    with scratch() as folder:
        assert tempfile.gettempdir() == str(folder if replaced else given)
        assert os.environ["TMPDIR"] == tempfile.gettempdir()
    error = capsys.readouterr().err
    assert error.count("\n") == replaced
    assert (f"TMPDIR = {given}" in error) == replaced


def test_where_no_temporary_folder_can_be_made_a_line_says_so(short, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("distvae.sweeps.ray.scratch.ROOT", short / "none")
    asked = sweep_of(tmp_path / "sweep")
    assert main([str(tmp_path / "file.yaml"), "max_restarts=1"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"distvae: {short / 'none'}: a sweep needs a temporary folder there")
    assert error.count("\n") == 1
    assert list(asked.folder.iterdir()) == []


@pytest.mark.parametrize("closing", [False, True])
def test_rays_processes_are_missed_when_they_die(monkeypatch, closing):
    monkeypatch.setattr("distvae.sweeps.ray.driver.RayWatch.NAMES", ("sleep",))
    process, over, missed = subprocess.Popen(["sleep", "100"]), threading.Event(), []
    end = time.monotonic() + 10
    while not (watch := RayWatch(missed.append, over))._processes and time.monotonic() < end:
        time.sleep(0.01)  # until it is no longer this program
    watch.start()
    process.kill()
    if closing:
        over.set()
    watch.join(20)
    assert missed == ([] if closing else ["sleep"])
    process.wait()


@pytest.fixture
def clock(monkeypatch):
    """Seconds of the clock that this test sets."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr("time.monotonic", lambda: clock.now)
    return clock


def test_the_time_of_places_adds_up_however_many_there_are(driver_of, clock):
    driver = driver_of()
    driver.trials, driver.running = {0: Trial(0, {}), 1: Trial(1, {})}, {1}
    for slots, seconds in ((2, 10.0), (8, 3.0)):
        driver.progress.slots = slots
        with driver._timed("trial_seconds"):
            clock.now += seconds
    assert (driver.progress.trial_seconds, driver.progress.place_seconds) == (13.0, 2 * 10.0 + 8 * 3.0)
    assert [driver.trials[number].seconds for number in (0, 1)] == [0.0, 13.0]


def test_time_is_saved_each_minute_though_no_trial_changes(driver_of, clock):
    driver = driver_of()
    driver.trials, driver.running = {0: Trial(0, {}, "running")}, {0}
    saved = []
    with driver._timed("trial_seconds"):
        driver._save()
        for _ in range(7):
            clock.now += 25.0
            driver.follow([])
            saved.append((load_progress(driver.folder).seconds, load_trials(driver.folder)[0].seconds))
    assert saved == [(0.0, 0.0)] * 2 + [(75.0, 75.0)] * 3 + [(150.0, 150.0)] * 2


def test_the_time_before_an_interruption_counts(driver_of, clock, monkeypatch):
    driver = driver_of(num_samples=1)

    def passes(*_, **__):
        clock.now += 20.0
        return [], []

    def interrupted(waiting):
        passes()
        raise InterruptedRun

    monkeypatch.setattr(driver, "_pretrain_side_by_side", interrupted)
    with pytest.raises(InterruptedRun):
        driver._pretrain()
    small_sweep(driver.folder)
    for number in (1, 5):
        (driver.folder / "finalists" / f"{number:04d}.json").unlink()
        (driver.folder / "trials" / f"{number:04d}" / "best").mkdir()
    driver.trials = {trial.number: trial for trial in load_trials(driver.folder)}
    driver.asked = "SIGTERM"
    remote = SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda *work: work))
    monkeypatch.setattr("distvae.sweeps.ray.driver.ray", SimpleNamespace(remote=lambda work: remote, wait=passes))
    with pytest.raises(InterruptedRun):
        driver._score_finalists()
    driver._save()
    told = load_progress(driver.folder)
    assert (told.pretraining_seconds, told.finalist_seconds) == (20.0, 20.0)


@pytest.mark.parametrize(
    ("cpus", "gpus", "places"),
    [(1, 0, 16), (0.5, 0, 32), (4, 1, 2), (1, 0.25, 8), (1, 1 / 3, 6), (1, 0.4, 4), (1, 0.6, 2), (8, 0.25, 2)],
)
def test_a_part_of_a_gpu_lies_on_one(cpus, gpus, places):
    assert _places({"CPU": 16.0, "GPU": 2.0, "memory": 1e9}, cpus, gpus) == places
    assert _places({"CPU": 16.0}, cpus, 0.5) == 0


def test_finalists_are_scored_anew_with_other_importance_samples(driver_of, monkeypatch):
    driver = driver_of(finalists={"count": 2, "importance_samples": 500})
    small_sweep(driver.folder)
    driver.trials = {trial.number: trial for trial in load_trials(driver.folder)}
    for number in (0, 1, 5):
        (driver.folder / "trials" / f"{number:04d}" / "best").mkdir()
    write_finalist(driver.folder, 0, *(scores(19.0, 2.1, 1.9, 2, samples=100),) * 2)  # of an earlier sweep's end
    (driver.folder / "finalists" / "0004.json").write_text("[]")
    asked = []

    def remote(run: Path, samples: int, *_) -> str:
        asked.append((run.name, samples))
        return run.name

    found = {"valid": {"scores": {"importance_samples": 700}}}
    monkeypatch.setattr(
        "distvae.sweeps.ray.driver.ray",
        SimpleNamespace(
            remote=lambda work: SimpleNamespace(options=lambda **_: SimpleNamespace(remote=remote)),
            wait=lambda tasks, timeout: (tasks, []),
            get=lambda task: found,
        ),
    )
    driver._score_finalists()
    assert asked == []
    assert sorted(path.name for path in (driver.folder / "finalists").iterdir()) == ["0001.json", "0005.json"]
    finalists = replace(driver.sweep.config.finalists, importance_samples=700)
    driver.sweep = replace(driver.sweep, config=replace(driver.sweep.config, finalists=finalists))
    driver._score_finalists()
    assert asked == [("0005", 700), ("0001", 700)]
    assert json.loads((driver.folder / "finalists" / "0001.json").read_text()) == found


def test_a_finalist_that_cannot_be_scored_is_told_of_and_the_others_are(driver_of, monkeypatch, capsys):
    driver = driver_of(finalists={"count": 2, "importance_samples": 700})
    small_sweep(driver.folder)
    driver.trials = {trial.number: trial for trial in load_trials(driver.folder)}
    for number in (1, 5):
        (driver.folder / "trials" / f"{number:04d}" / "best").mkdir()

    def get(task: str):
        if task == "0005":  # as Ray raises what a task has raised
            raise RayTaskError("score", "Traceback …\nno room\n", RuntimeError())
        return {"valid": {}}

    monkeypatch.setattr(
        "distvae.sweeps.ray.driver.ray.remote",
        lambda work: SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda run, *_: run.name)),
    )
    monkeypatch.setattr("distvae.sweeps.ray.driver.ray.wait", lambda tasks, timeout: (tasks, []))
    monkeypatch.setattr("distvae.sweeps.ray.driver.ray.get", get)
    (unscored,) = driver._score_finalists()
    assert unscored == "finalist 5 could not be scored: no room"
    assert capsys.readouterr().out.count(unscored) == 1
    assert [path.name for path in (driver.folder / "finalists").iterdir()] == ["0001.json"]


def test_a_sweeps_time_counts_from_its_start(driver_of, monkeypatch):
    """And not just from when Ray and the sentences are there, which is when it has a folder."""
    driver = driver_of()
    driver.lease = None
    for name in ("_install_signals", "_pretrain", "_tune"):
        monkeypatch.setattr(driver, name, lambda: None)
    for name in ("_connect", "_prepare"):
        monkeypatch.setattr(driver, name, lambda: time.sleep(0.2))
    monkeypatch.setattr(driver, "_fit", lambda: Places(0.0, 1, ("here",), 1.0, 0.0))
    monkeypatch.setattr(driver, "_score_finalists", list)
    assert driver.run() == 1  # no trial has come to anything
    progress = load_progress(driver.folder)
    assert progress.seconds >= 0.4
    assert time.time() - progress.begun >= 0.4


def test_a_sweep_that_stop_has_ended_says_so_and_stays_ended(driver_of, capsys):
    why = "stop.hours = 1 have passed"
    driver = driver_of(stop={"hours": 1})
    write_sweep(driver.sweep, [], SweepProgress("finished", why, 1e9, 1, 3700.0, ended_by=why))
    again = driver_of(stop={"hours": 2})
    again._open()
    again.lease.release()
    said = capsys.readouterr().out
    assert f"had ended before its trials: {why}" in said
    assert said.count("\n") == 1
    assert Limits().stop_all()
    again.lease = driver.lease
    again.sweep = driver.sweep
    again._before, again._began = again.progress.seconds, time.monotonic()
    again._end("finished", again.over)
    assert load_progress(driver.folder).reason == why


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("more", ["", "trials.json", "config.yaml", "sweep.yaml"])
def test_a_folder_that_no_sweep_wrote_is_refused_and_stays_as_it_is(tmp_path, capsys, more):
    """A user may keep the sweep's file, and the config that it names, where its results should be."""
    folder = tmp_path / "exp"
    asked = sweep_of(folder)
    files = dump_sweep(asked) if more != "sweep.yaml" else {}
    for name, text in (files | ({more: "mine: 1\n"} if more else {})).items():
        (folder / name).write_text(text)
    if more == "config.yaml":  # a run's folder
        attempts.claim(folder)
    before = contents(folder)
    file = [str(folder / "sweep.yaml"), f"run={folder}"] if not more else [str(tmp_path / "file.yaml")]
    refused = [file] if more == "sweep.yaml" else [file, ["--resume", str(folder)]]
    for arguments in refused:
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert str(folder) in error
        assert "no sweep wrote" in error
        assert error.count("\n") == 1
    assert contents(folder) == before


@pytest.mark.parametrize("left", [[], ["sweep.yaml"], ["sweep.yaml", "base.yaml"], ["base.yaml", "sweep.json"]])
def test_a_sweep_goes_on_in_its_own_folder_however_little_it_wrote(driver_of, left):
    driver = driver_of()
    write_sweep(driver.sweep, [], SweepProgress("interrupted", None, 1e9, 1, 3700.0))
    for name in ("sweep.yaml", "base.yaml", "sweep.json", "trials.json"):
        if name not in left:
            (driver.folder / name).unlink()
    driver._open()
    driver.hold.release()
    assert open_sweep(driver.folder).points() == driver.sweep.points()


def test_a_sweep_that_has_not_ended_goes_on(driver_of, capsys):
    driver = driver_of()
    write_sweep(driver.sweep, [], SweepProgress("interrupted", "interrupted by SIGTERM", 1e9, 1, 3700.0))
    driver._open()
    driver.lease.release()
    assert capsys.readouterr().out == ""
    assert not Limits().stop_all()
    assert (driver.progress.state, driver.progress.reason) == ("running", None)


@pytest.fixture
def in_processes(driver_of, monkeypatch):
    """A driver that pretrains in several processes, by a trainer that this test makes; its signals are installed."""
    driver = driver_of(trial={"workers": 2})
    former = {number: signal.getsignal(number) for number in SIGNALS}
    driver._install_signals()

    def pretrain(fit) -> None:
        monkeypatch.setattr("distvae.sweeps.ray.driver.trainer", lambda *_: SimpleNamespace(fit=fit))
        driver._pretrain()

    yield driver, pretrain
    for number, handler in former.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_pretraining_of_several_processes_is_saved_when_a_signal_comes(in_processes, number):
    driver, pretrain = in_processes
    (run,) = (Path(config.run) for config in driver.sweep.pretrainings().values())
    ended = threading.Event()

    def fit() -> None:
        write_run(run, scores(25, 9, 3, 4), curves=False, epochs=0, pretrain=1)
        write_status(run, "running", start=1)
        os.kill(os.getpid(), number)
        end = time.monotonic() + 10
        while not sweep_is_called_to_stop(driver.folder) and time.monotonic() < end:
            time.sleep(0.05)
        write_status(run, "interrupted", start=1)
        ended.wait(20)  # as processes that have saved themselves do

    with pytest.raises(InterruptedRun, match=f"interrupted by {number.name} while pretraining"):
        pretrain(fit)
    assert json.loads((run / "status.json").read_text())["state"] == "interrupted"
    assert 0 < driver.progress.pretraining_seconds < 20
    ended.set()


def sweep_is_called_to_stop(folder: Path) -> bool:
    return (folder / trials.STOP).exists() and (folder / trials.STOP).read_text() != ""


def test_signals_are_the_drivers_after_a_pretraining_of_several_processes(in_processes):
    """Ray Train takes SIGINT for good where it is run by the main thread."""
    driver, pretrain = in_processes

    def fit() -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.SIG_IGN)

    pretrain(fit)
    for number in SIGNALS:
        assert signal.getsignal(number) == driver._take


def test_a_sweep_under_nohup_outlives_its_terminal(in_processes):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    in_processes[0]._install_signals()
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_a_pretraining_of_several_processes_that_fails_is_told_of(in_processes, capsys):
    driver, pretrain = in_processes

    def fit() -> None:
        raise ControllerError(RuntimeError("no luck"))

    pretrain(fit)
    assert "no luck" in capsys.readouterr().out
    assert driver.shared == frozenset()


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


PBT = {"name": "pbt", "grace_epochs": 2}

STARTS = ("2026-01-01_10-00-00", "2026-01-02_10-00-00")


@pytest.fixture(params=["random", "optuna"])
def restarted(request, driver_of):
    """A sweep that has been started twice, and is opened again: its driver, and the files that Tune saved, by start."""
    driver = driver_of(space={"kl.target_rate": {"choice": [2, 4]}}, search=request.param)
    driver._tuner(lambda choice: None)
    files = [[driver.folder / "tune" / name.format(start) for name in _STATE[request.param]] for start in STARTS]
    for state, *others in files:
        state.write_text(json.dumps({"trial_data": []}))
        for other in others:
            other.write_bytes(pickle.dumps({"drawn": list(range(9))}))
    driver.trials = {0: Trial(0, {"kl.target_rate": 2}, "finished")}
    return driver, files


def goes_on(driver: Driver) -> bool:
    return driver._tuner(lambda choice: None)._local_tuner._is_restored


def test_tune_goes_on_from_what_it_saved_last(restarted):
    driver, files = restarted
    assert goes_on(driver)
    assert all(file.exists() for start in files for file in start)


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("part", [0.0, 0.5, 0.99])
def test_a_state_that_was_torn_is_passed_over_for_the_one_before(restarted, which, part):
    driver, (first, second) = restarted
    content = second[which].read_bytes()
    second[which].write_bytes(content[: int(part * len(content))])
    assert goes_on(driver)
    assert all(file.exists() for file in first)
    assert not any(file.exists() for file in second)
    assert driver.trials


def test_a_state_of_which_a_file_is_missing_is_passed_over(restarted):
    driver, (_, second) = restarted
    second[-1].unlink()
    assert goes_on(driver)
    assert not any(file.exists() for file in second)


def test_where_no_state_is_whole_the_sweep_begins_anew(restarted):
    driver, files = restarted
    for start in files:
        start[0].write_text('{"trial_data": [')
    assert not goes_on(driver)
    assert not list((driver.folder / "tune").glob("experiment_state-*.json"))
    # Those of a grid are the same again; Optuna's need not be.
    assert list(driver.trials) == ([0] if driver.sweep.config.search == "random" else [])


def test_where_tunes_own_settings_are_torn_the_sweep_begins_anew(restarted):
    driver, _ = restarted
    settings = driver.folder / "tune" / "tuner.pkl"
    settings.write_bytes(settings.read_bytes()[:-1])
    assert not goes_on(driver)


class Told:
    """A trial as a scheduler sees it, and the folder that Tune has it in."""

    status = "RUNNING"

    def __init__(self, folder: Path, number: int, values: dict):
        self.trial_id, self.config, self.experiment_tag = f"ab12_{number:05d}", {"values": values}, str(number)
        own = folder / "tune" / f"trial_{number:04d}"
        self.storage = SimpleNamespace(experiment_fs_path=str(folder / "tune"), trial_fs_path=str(own))
        self.checkpoint = None
        self.run_metadata = SimpleNamespace(
            checkpoint_manager=SimpleNamespace(checkpoint_config=SimpleNamespace(num_to_keep=None))
        )

    def is_finished(self) -> bool:
        return True  # for population-based training, which then acts on nothing


ALONE = SimpleNamespace(search_alg=None, get_trials=list)  # Tune's controller, as far as a scheduler asks it here


def restored(asked: Sweep):
    """A sweep's scheduler, as Tune has it when a start begins: of any start it is the first one's."""
    found = pickle.loads(pickle.dumps(scheduler(asked)))
    found.set_search_properties("objective", asked.config.objective.mode)
    return found


def trained(asked: Sweep, number: int, values: dict, epochs: int) -> list[dict]:
    """Have a trial's records be there; returns what it has told Tune after each epoch."""
    run = asked.folder / "trials" / f"{number:04d}"
    config = asked.config_of(values, run)
    write_run(run, scores(18.0 + number, values["kl.target_rate"], 3.0, 3), curves=False, epochs=epochs, pretrain=2)
    (run / "config.yaml").write_text(dump_config(config))
    rows = read_metrics(run)
    found = []
    for epoch in range(1, epochs + 1):
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[: 2 + epoch]))
        found.append(trials._told(asked, config, run))
    return found


def test_asha_knows_after_a_restart_what_it_knew_before(tmp_path):
    asked = sweep_of(tmp_path / "sweep", scheduler={"name": "asha", "grace_epochs": 1, "reduction_factor": 2})
    before, points = restored(asked), asked.points()
    every = [Told(asked.folder, number, values) for number, values in enumerate(points)]
    for one in every:
        before.on_trial_add(ALONE, one)
    told = [trained(asked, number, points[number], epochs=4 + number) for number in range(5)]  # the sixth is new
    for epoch in range(9):
        for one, results in zip(every, told, strict=False):
            if epoch < len(results):
                before.on_trial_result(ALONE, one, results[epoch])
    rungs = before._brackets[0]._rungs
    assert [(milestone, len(recorded)) for milestone, recorded in rungs] == [(8, 0), (4, 2), (2, 4), (1, 5)]
    asked.folder.rename(tmp_path / "moved")
    after = restored(asked)
    for _ in range(2):  # as Tune does with a trial that it starts again
        for number, values in enumerate(points):
            after.on_trial_add(ALONE, Told(tmp_path / "moved", number, values))
    assert after._brackets[0]._rungs == rungs


def test_population_based_training_knows_after_a_restart_how_its_trials_stood(tmp_path):
    asked = pbt_sweep(tmp_path / "sweep")
    before, after = restored(asked), restored(asked)
    for number, (run, rate) in enumerate([("0000", 4.0), ("0001.1", 4.8)]):
        values, first = {"kl.target_rate": rate}, asked.folder / "trials" / f"{number:04d}"
        (first / "config.yaml").write_text(dump_config(asked.config_of({"kl.target_rate": 4.0}, first)))
        one = Told(asked.folder, number, values)
        PopulationBasedTraining.on_trial_add(before, ALONE, one)
        rows = history(asked.folder, asked.folder / "trials" / run)
        for n in range(1, 9):
            before.on_trial_result(ALONE, one, trials._judgement(asked, asked.config_of(values, first), rows[:n]))
        after.on_trial_add(ALONE, one)
        there, here = vars(before._trial_state[one]), vars(after._trial_state[one])
        assert here == there
        assert here["last_perturbation_time"] == 4  # of 5 epochs after annealing, compared each second one


@pytest.mark.parametrize(("over", "exploits"), [(False, 1), (True, 0), (None, 1)])
def test_no_trial_goes_on_from_one_whose_training_has_ended(tmp_path, monkeypatch, over, exploits):
    """It would rank a copy of the other's weights, under values that they were never trained with."""
    asked = pbt_sweep(tmp_path / "sweep")
    population = restored(asked)
    donor, loser = (Told(asked.folder, number, {"kl.target_rate": 4.0}) for number in (0, 1))
    for trial in (donor, loser):
        population.on_trial_add(ALONE, trial)
    there = asked.folder / "tune" / "trial_0000" / "checkpoint_000003"
    there.mkdir(parents=True)
    origin = {"trial": 0, "run": "0000", "step": 40} | ({} if over is None else {"over": over})
    (there / "origin.json").write_text(json.dumps(origin))
    before = SimpleNamespace(path="/before/the/move/tune/trial_0000/checkpoint_000003")
    population._trial_state[donor].last_checkpoint = before
    found = []
    monkeypatch.setattr(PopulationBasedTraining, "_exploit", lambda *given: found.append(given[2:]))
    population._exploit(ALONE, loser, donor)
    assert found == [(loser, donor)] * exploits


@pytest.mark.parametrize(("epochs", "verdict", "over"), [(8, None, True), (5, None, False), (5, "stop", True)])
def test_a_checkpoint_is_handed_over_with_whether_the_training_has_ended(tmp_path, monkeypatch, epochs, verdict, over):
    asked = sweep_of(tmp_path / "sweep", space={"kl.target_rate": {"uniform": [2, 6]}}, scheduler=PBT)
    run = asked.folder / "trials" / "0000"
    write_run(run, scores(18, 4, 3.5, 3), curves=False, epochs=epochs)
    if verdict is not None:
        rows = read_metrics(run)
        rows[-1]["verdict"] = verdict
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    saves(run)
    (asked.folder / "tune").mkdir()
    monkeypatch.setattr(trials.checkpoint, "newest_checkpoint", lambda run: list_checkpoints(run)[-1])
    monkeypatch.setattr(trials.checkpoint, "load_state", lambda path: SimpleNamespace(step=80))
    told = []

    def report(metrics, checkpoint):
        told.append(json.loads((Path(checkpoint.path) / "origin.json").read_text()))

    monkeypatch.setattr(trials.tune, "report", report)
    trials._report_with_checkpoint(asked, asked.config_of({"kl.target_rate": 4.0}, run), 0, run)
    assert told == [{"trial": 0, "run": "0000", "step": 80, "over": over}]


@pytest.mark.parametrize(
    "changed", [{"optimizer.learning_rate": 0.2}, {"optimizer.clip_norm": 2.0}, {"model.word_dropout": 0.4}]
)
def test_a_trial_that_goes_on_from_another_pretrains_nothing(tmp_path, tiny, changed):
    """Its weights come from the pretraining that the other shares, though its own values would pretrain otherwise."""
    ((key, value),) = changed.items()
    asked = sweep_of(
        tmp_path / "sweep",
        base=str(tiny),
        space={key: {"choice": [0.1, value]}},
        set={"train.max_epochs": 3, "kl.anneal_epochs": 1, "evaluation.importance_samples": 1, "evaluation.samples": 0},
        num_samples=4,
        scheduler={"name": "pbt", "grace_epochs": 1, "quantile": 0.5},
        seed=1,
    )
    values = asked.points()[0]
    other = {key: value if values[key] != value else 0.1}
    pretraining = pretraining_of(asked.config_of(values, asked.folder), asked.folder)
    shared = frozenset([fingerprint(pretraining)])
    train(pretraining)
    first = asked.folder / "trials" / "0000"
    config = trials._trial_config(asked, values, first, shared)
    assert config.pretrained == pretraining.run
    train(replace(config, train=replace(config.train, max_epochs=2)))
    handed = asked.folder / "tune" / "trial_0000" / "checkpoint_000001"
    shutil.copytree(list_checkpoints(first)[-1], handed / "checkpoint")
    (handed / "origin.json").write_text(json.dumps({"trial": 0, "run": "0000", "step": 22}))
    # The other trial, twice: as it goes on, and as it is started again from its own checkpoint.
    for _ in range(2):
        run, there = trials._place(asked, 1, other, handed)
        config = trials._trial_config(asked, other, run, shared)
        assert config.pretrained == pretraining.run
        resumed = config if there is None else replace(config, resume=str(there))
        train(resumed, caller=Caller(may_change=frozenset({"pretrained", key, "train.max_epochs"})))
        assert [(row["stage"], row["epoch"]) for row in read_metrics(run)] == [("train", 3)]


def test_a_checkpoint_stays_until_no_trial_may_go_on_from_it(tmp_path, clock):
    asked = pbt_sweep(tmp_path / "sweep")
    asked = replace(asked, config=replace(asked.config, run=str(tmp_path / "new")))
    population = restored(asked)
    donor, loser = (Told(asked.folder, number, {"kl.target_rate": 4.0}) for number in (0, 1))
    for trial in (donor, loser):
        population.on_trial_add(ALONE, trial)

    def reports(epoch: int) -> set[int]:
        """Have the donor tell of an epoch, half a minute after the one before; returns what is there then."""
        clock.now += 30.0
        path = Path(donor.storage.trial_fs_path) / f"checkpoint_{epoch:06d}"
        path.mkdir(parents=True)
        donor.checkpoint = SimpleNamespace(path=str(path))
        population.on_trial_result(ALONE, donor, {"judged_epochs": 0, "objective": 20.0})
        return {int(one.name[-6:]) for one in path.parent.iterdir()}

    reports(1)
    reports(2)
    # The loser waits for its place with the second; of a third it is not yet known whether one will want it.
    loser.checkpoint = SimpleNamespace(path=f"/before/the/move/tune/trial_0000/checkpoint_{2:06d}")
    reports(3)
    population._trial_state[donor].last_checkpoint = donor.checkpoint
    assert [reports(epoch) for epoch in (4, 5, 6, 7)] == [{2, 3, 4}, {2, 3, 4, 5}, {2, 3, 4, 5, 6}, {2, 3, 5, 6, 7}]
    loser.checkpoint = population._trial_state[donor].last_checkpoint = None
    assert [reports(epoch) for epoch in (8, 9, 10)] == [{2, 3, 6, 7, 8}, {2, 3, 7, 8, 9}, {8, 9, 10}]


def test_tune_itself_removes_no_checkpoint_of_a_population(driver_of):
    driver = driver_of(
        space={"kl.target_rate": {"uniform": [2, 6]}}, scheduler={"name": "pbt", "grace_epochs": 2, "quantile": 0.5}
    )
    tuner = driver._tuner(lambda choice: None)._local_tuner
    assert (tuner._run_config.checkpoint_config or CheckpointConfig()).num_to_keep is None


def test_what_a_damaged_or_another_trial_recorded_is_not_told_again(tmp_path):
    asked = sweep_of(tmp_path / "sweep", scheduler={"name": "asha", "grace_epochs": 1})
    values = asked.points()[0]
    run = asked.folder / "trials" / "0000"
    write_run(run, scores(18.0, 2.0, 1.5, 3), curves=False)
    (run / "config.yaml").write_text(dump_config(asked.config_of(values, run)))
    assert len(trials.told_before(asked, 0, values)) == 8
    assert trials.told_before(asked, 0, values | {"kl.multiplier": 0.25}) == []
    assert trials.told_before(asked, 1, values) == []
    (run / "metrics.jsonl").write_text("no JSON\n" * 2)
    assert trials.told_before(asked, 0, values) == []


NEW, RATE = {"kl.target_rate": 4.8}, {"kl.target_rate": 4.0}


@pytest.fixture
def population(tmp_path):
    """Trial 1 has gone on from trial 0 in 0001.1: the sweep, and what has Tune hand over a run's checkpoint."""
    asked = pbt_sweep(tmp_path / "sweep")
    first = asked.folder / "trials" / "0001"
    (first / "config.yaml").write_text(dump_config(asked.config_of(RATE, first)))

    def hand(run: str, step: int, folder: Path = asked.folder) -> Path:
        path = folder / "tune" / f"trial_{run[:4]}" / f"checkpoint_{step:06d}"
        (path / "checkpoint").mkdir(parents=True)
        (path / "origin.json").write_text(json.dumps({"trial": int(run[:4]), "run": run, "step": step}))
        return path

    return asked, hand


def saves(run: Path, step: int = 80) -> None:
    (run / "checkpoints" / f"start-0001-step-{step:09d}-epoch-0008").mkdir(parents=True)


def test_a_trial_goes_on_with_the_run_that_tune_knows_and_later_ones_go(population):
    """Tune's state may be from before it had the trial go on from another's."""
    asked, hand = population
    runs = asked.folder / "trials"
    saves(runs / "0001.1")
    assert trials._place(asked, 1, NEW, hand("0001.1", 60)) == (runs / "0001.1", None)
    assert (runs / "0001.1").exists()
    assert trials._place(asked, 1, RATE, hand("0001", 30)) == (runs / "0001", None)
    assert not (runs / "0001.1").exists()
    assert (runs / "0001" / "metrics.jsonl").exists()


def test_a_trial_of_which_tune_knows_nothing_begins_with_its_first_run(population):
    asked, _ = population
    runs = asked.folder / "trials"
    assert trials._place(asked, 1, RATE, None) == (runs / "0001", None)
    assert not (runs / "0001.1").exists()
    assert trials._place(asked, 2, RATE, None) == (runs / "0002", None)


def test_a_trial_whose_checkpoint_tune_names_in_vain_goes_on_with_the_run_of_its_values(population):
    asked, hand = population
    runs = asked.folder / "trials"
    gone = [hand("0001.1", 60), hand("0000", 40)]
    for path in gone:
        path.rename(path.with_name("away"))
        assert trials._place(asked, 1, NEW, path) == (runs / "0001.1", None)
    assert trials._place(asked, 1, RATE, gone[0]) == (runs / "0001", None)
    assert not (runs / "0001.1").exists()


def test_a_run_that_went_on_from_another_goes_on_itself_once_it_has_saved(population):
    asked, hand = population
    run = asked.folder / "trials" / "0001.1"
    donor = hand("0000", 40)
    later = Generation(run.with_name("0001.2"), run.with_name("0000"), 60, RATE)
    save_lineage(later)
    saves(run)
    assert trials._place(asked, 1, NEW, donor) == (run, None)
    assert not later.run.exists()
    # Another of its checkpoints, or other values, are another run.
    assert trials._place(asked, 1, NEW, hand("0000", 60))[0] == run.with_name("0001.2")
    assert trials._place(asked, 1, {"kl.target_rate": 5.0}, donor)[0] == run.with_name("0001.3")


def test_a_run_that_was_cut_short_before_it_saved_begins_anew(population):
    asked, hand = population
    run = asked.folder / "trials" / "0001.1"
    (run / "checkpoints").mkdir()
    (run / "starts").mkdir()
    donor = hand("0000", 40)
    assert trials._place(asked, 1, NEW, donor) == (run, donor / "checkpoint")
    assert [path.name for path in run.iterdir()] == ["lineage.json"]
    assert generations(asked.folder, 1)[-1] == Generation(run, run.with_name("0000"), 40, NEW)


def test_anothers_checkpoint_is_found_where_the_sweep_lies_now(population, tmp_path):
    asked, hand = population
    donor = hand("0000", 60)
    asked.folder.rename(tmp_path / "moved")
    moved = replace(asked, config=replace(asked.config, run=str(tmp_path / "moved")))
    run, checkpoint = trials._place(moved, 1, RATE, donor)
    assert run == tmp_path / "moved" / "trials" / "0001.2"
    assert checkpoint == tmp_path / "moved" / "tune" / "trial_0000" / "checkpoint_000060" / "checkpoint"


def test_trials_are_told_to_stop_by_a_file_that_has_been_there_from_the_beginning(driver_of):
    """A file that a network's file system has not shown before may stay hidden for a minute."""
    driver = driver_of()
    write_sweep(driver.sweep, [])
    (driver.folder / trials.STOP).write_text("SIGTERM\n")  # of the start before
    driver._open()
    there = (driver.folder / trials.STOP).stat().st_ino
    signals = Signals()
    with trials._Ear(driver.folder, signals) as ear:
        ear.join(1.2)
        assert signals.asked is None
        driver.asked = "SIGTERM"
        driver._call_to_save()
        ear.join(10)
        assert signals.asked == "the sweep"
    driver.lease.release()
    assert (driver.folder / trials.STOP).stat().st_ino == there
