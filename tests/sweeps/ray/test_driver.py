"""Opening, resuming and ending a sweep."""

import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from distvae.runs import attempts
from distvae.runs.attempts import read_attempts
from distvae.runs.trackers import libraries
from distvae.sweeps import storage, sweep
from distvae.sweeps.__main__ import main
from distvae.sweeps.progress import SweepProgress, load_progress, save_progress
from distvae.system.errors import UserError
from tests.sweep_folders import pbt_sweep, sweep_of, write_sweep

pytest.importorskip("ray", reason="no Ray: pip install -e '.[sweep]'")

from distvae.sweeps.ray import driver
from distvae.sweeps.ray.driver import check_folder, data_fingerprint, end, open_folder, run_sweep
from distvae.sweeps.ray.placement import Placement
from distvae.sweeps.ray.signals import StopSignals
from distvae.sweeps.ray.tuning import SweepLimits, TuneMonitor


def test_a_sweep_begins_without_what_only_its_trials_need():
    look = "import sys, distvae.sweeps.ray.driver; print({'torch', 'accelerate', 'datasets'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_a_sweep_answers_for_its_own_sentences_alone(tmp_path, monkeypatch):
    """Its file names the same path; the sentences there have changed."""
    asked = sweep_of(tmp_path / "sweep")
    attempts.claim(asked.folder)
    for name, text in storage.dump_sweep(asked).items():
        (asked.folder / name).write_text(text, encoding="utf-8")
    save_progress(asked.folder, SweepProgress(data=data_fingerprint(asked)))
    check_folder(asked)
    monkeypatch.setattr("distvae.data.corpus.fingerprint", lambda data: "0123456789abcdef")
    with pytest.raises(UserError, match=r"its trials have other sentences \(\w+\) than .* now \(0123456789abcdef\)"):
        check_folder(asked)
    save_progress(asked.folder, SweepProgress())  # by an older version
    check_folder(asked)


@pytest.fixture
def stages(monkeypatch):
    """A driver whose stages do nothing, and whose preparations take 0.2 seconds each."""
    monkeypatch.setattr(driver.StopSignals, "install", lambda self: None)
    monkeypatch.setattr(driver.cluster, "connect", lambda on_loss, closing: time.sleep(0.2))
    monkeypatch.setattr(driver, "prepare_sentences", lambda sweep: time.sleep(0.2))
    monkeypatch.setattr(driver, "fit", lambda sweep: Placement(0.0, 1, ("here",), 1.0, 0.0))
    monkeypatch.setattr(driver, "pretrain", lambda state: frozenset())
    monkeypatch.setattr(driver, "run_trials", lambda state, shared: None)
    monkeypatch.setattr(driver, "score_finalists", lambda state: [])


def test_a_sweeps_time_counts_from_its_start(tmp_path, stages):
    """Not only from when its folder is open, after Ray has started and the sentences are prepared."""
    asked = sweep_of(tmp_path / "sweep")
    assert run_sweep(asked, tmp_path / "scratch") == 1  # no trial has ended well
    progress = load_progress(asked.folder)
    assert progress.seconds >= 0.4
    assert time.time() - progress.begun >= 0.4
    (attempt,) = read_attempts(asked.folder)
    assert attempt.ended


def test_a_sweep_that_was_fitted_to_the_cluster_resumes(tmp_path, stages):
    """Its folder holds the sweep as given, not the GPUs that its trials got."""
    asked = sweep_of(tmp_path / "sweep")
    assert asked.config.trial.gpus is None
    for _ in range(2):
        assert run_sweep(asked, tmp_path / "scratch") == 1
    assert load_progress(asked.folder).starts == 2


def opened(asked: sweep.Sweep):
    """The state of a sweep whose folder has been opened, and whose lease has been released."""
    state = open_folder(asked, StopSignals(), time.monotonic())
    state.lease.release()
    return state


def test_a_sweep_that_stop_has_ended_says_so_and_stays_ended(tmp_path, capsys, monkeypatch):
    why = "stop.hours = 1 have passed"
    asked = sweep_of(tmp_path / "sweep", stop={"hours": 1})
    write_sweep(asked, [], SweepProgress("finished", why, 1e9, 1, 3700.0, ended_by=why))
    state = opened(sweep_of(tmp_path / "sweep", stop={"hours": 2}))
    printed = capsys.readouterr().out
    assert f"has already ended: {why}" in printed
    assert printed.count("\n") == 1
    monkeypatch.setattr(TuneMonitor, "current", TuneMonitor(state), raising=False)
    assert SweepLimits().stop_all()
    end(state, "finished", state.ended_by)
    assert load_progress(asked.folder).reason == why


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("more", ["", "trials.json", "config.yaml", "sweep.yaml"])
def test_a_folder_that_no_sweep_wrote_is_refused_and_stays_as_it_is(tmp_path, capsys, more):
    """A user may keep the sweep file and its base config in the folder for the results."""
    folder = tmp_path / "exp"
    asked = sweep_of(folder)
    files = storage.dump_sweep(asked) if more != "sweep.yaml" else {}
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
def test_a_sweep_resumes_in_its_own_folder_however_little_it_wrote(tmp_path, left):
    asked = sweep_of(tmp_path / "sweep")
    write_sweep(asked, [], SweepProgress("interrupted", None, 1e9, 1, 3700.0))
    for name in ("sweep.yaml", "base.yaml", "sweep.json", "trials.json"):
        if name not in left:
            (asked.folder / name).unlink()
    opened(asked)
    assert storage.open_sweep(asked.folder).points() == asked.points()


def test_a_sweep_that_has_not_ended_resumes(tmp_path, capsys, monkeypatch):
    asked = sweep_of(tmp_path / "sweep")
    write_sweep(asked, [], SweepProgress("interrupted", "interrupted by SIGTERM", 1e9, 1, 3700.0))
    state = opened(asked)
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(TuneMonitor, "current", TuneMonitor(state), raising=False)
    assert not SweepLimits().stop_all()
    assert (state.progress.state, state.progress.reason) == ("running", None)


def test_a_bound_below_the_population_is_refused_in_a_line(tmp_path, capsys):
    pbt_sweep(tmp_path / "sweep")
    for asked in (["--resume", str(tmp_path / "sweep")], [str(tmp_path / "file.yaml")]):
        assert main([*asked, "--max-concurrent", "2", "--dry-run"]) == 0
        assert main([*asked, "--max-concurrent", "1", "--dry-run"]) == 2
        error = capsys.readouterr().err
        assert "max_concurrent = 1" in error
        assert error.count("\n") == 1


def test_a_tracking_library_that_is_not_installed_is_refused_before_anything_else(tmp_path, monkeypatch):
    def missing(package: str) -> str:
        raise PackageNotFoundError(package)

    monkeypatch.setattr(libraries, "version", missing)
    asked = sweep_of(tmp_path / "sweep", set={"tracking.with": ["wandb"]})
    with pytest.raises(UserError, match="tracking.with=wandb: not installed"):
        run_sweep(asked, tmp_path)
    assert list(asked.folder.iterdir()) == []
