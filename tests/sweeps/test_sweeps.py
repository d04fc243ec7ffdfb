"""Sweeps with real Ray, as users start them."""

import contextlib
import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from distvae.config.keys import flatten
from distvae.config.load import load_config
from distvae.runs.checkpoints import list_checkpoints
from distvae.runs.records import read_metrics
from distvae.sweeps.lineage import generations, history
from distvae.sweeps.ranking import outcome, rank
from distvae.sweeps.storage import open_sweep
from distvae.system.cores import usable_cores
from distvae.train import main
from tests.compare import numbers, records
from tests.conftest import ROOT, needs

pytestmark = pytest.mark.cluster

# A number of sentences for which rounding errors stay small.
SET = {"evaluation.importance_samples": 50, "data.train_size": 81}


@pytest.fixture(autouse=True)
def ray():
    needs(shutil.which("ray", path=str(Path(sys.executable).parent)), "no Ray: pip install -e '.[sweep]'")


def write(folder: Path, tiny: Path, **settings: Any) -> Path:
    """Write a sweep file."""
    path = folder / "sweep file.yaml"
    settings = {"base": str(tiny), "run": str(folder / "sweep"), "finalists": {"count": 0}, "set": SET} | settings
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path


def start(*arguments: str | Path, **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, ROOT / "launch" / "sweep.py", *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(*arguments: str | Path, code: int = 0) -> tuple[str, str]:
    """Run a sweep to its end. Return its output."""
    process = start(*arguments)
    said = process.communicate(timeout=400)
    assert process.returncode == code, said
    return said


def trials(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "trials.json").read_text())["trials"]


def alone(tmp_path: Path, tiny: Path, **overrides: Any) -> Path:
    """Train the run of a trial by itself. Return its folder."""
    folder = tmp_path / "alone"
    settings = SET | {"evaluation.validation_samples": 50} | overrides
    assert main([str(tiny), f"run={folder}", *(f"{key}={value}" for key, value in settings.items())]) == 0
    return folder


def after_pretraining(folder: Path) -> list[dict[str, Any]]:
    """The records of a run's VAE, without step numbers, which depend on the pretraining."""
    rows = [row for row in numbers(folder) if row["stage"] == "train"]
    for row in rows:
        del row["step"]
    return rows


def until(condition, process: subprocess.Popen, seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.1)


def account(folder: Path) -> None:
    """Check that the times of all started trials, over all their attempts, fit the sweep's."""
    begun = [trial for trial in trials(folder) if trial["starts"]]
    told = json.loads((folder / "sweep.json").read_text())
    for trial in begun:
        rows = records(folder / "trials" / f"{trial['number']:04d}")
        assert trial["seconds"] > sum(row["train"]["seconds"] for row in rows if row["stage"] == "train") > 0
    assert sum(trial["seconds"] for trial in begun) <= told["place_seconds"]
    assert told["trial_seconds"] < told["seconds"]


def test_a_trial_is_the_training_and_the_sweep_tells_of_it(tmp_path, tiny):
    file = write(
        tmp_path,
        tiny,
        space={"kl.target_rate": {"grid": [0.3, 0.6]}, "kl.multiplier": {"choice": [0.1, 0.2]}},
        finalists={"count": 1, "importance_samples": 60},
    )
    folder = tmp_path / "sweep"
    said, _ = run(file)
    assert "2 of 2 done, 0 running, 0 failed" in said
    found = trials(folder)
    assert [(trial["state"], trial["starts"]) for trial in found] == [("finished", 1)] * 2
    # The pretraining is shared, and each trial equals the same run by itself.
    assert len(list((folder / "pretrained").iterdir())) == 1
    one = alone(tmp_path, tiny, **found[1]["values"])
    assert after_pretraining(folder / "trials" / "0001") == after_pretraining(one)
    best = rank(
        open_sweep(folder).config.objective,
        {
            trial["number"]: outcome(
                load_config(folder / "trials" / f"{trial['number']:04d}" / "config.yaml"),
                read_metrics(folder / "trials" / f"{trial['number']:04d}"),
            )
            for trial in found
        },
    )[0]
    finalist = json.loads((folder / "finalists" / f"{best:04d}.json").read_text())
    assert {split: scores["scores"]["importance_samples"] for split, scores in finalist.items()} == {
        "valid": 60,
        "test": 60,
    }
    assert (folder / "sweep.html").exists()
    # The same command has nothing left to do.
    said, _ = run(file)
    assert trials(folder) == found
    # Another sweep does not change it.
    _, error = run(file, "seed=1", code=2)
    assert error.count("\n") == 1
    assert "seed (0 there, 1 here)" in error


def test_what_is_lost_goes_on_from_its_checkpoint(tmp_path, tiny):
    file = write(tmp_path, tiny, space={"kl.multiplier": {"grid": [0.1, 0.2]}}, set=SET | {"train.max_epochs": 60})
    folder, moved = tmp_path / "sweep", tmp_path / "moved"
    process = start(file)
    runs = [folder / "trials" / name for name in ("0000", "0001")]
    until(lambda: list_checkpoints(runs[0]) and (runs[0] / "metrics.jsonl").exists(), process)
    os.kill(json.loads((runs[0] / "starts" / "0001.json").read_text())["process"], signal.SIGKILL)
    until(lambda: (runs[0] / "starts" / "0002.json").exists(), process)
    until(lambda: list_checkpoints(runs[0])[-1:] and "start-0002" in list_checkpoints(runs[0])[-1].name, process)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=240)
    assert process.returncode == 75, said
    assert "rerun the same command to resume" in said[1]
    assert json.loads((folder / "sweep.json").read_text())["state"] == "interrupted"
    status = json.loads((runs[0] / "status.json").read_text())
    assert status["state"] in ("interrupted", "finished"), status
    account(folder)
    # Resume it in another place, from its folder alone.
    folder.rename(moved)
    run("--resume", moved)
    found = trials(moved)
    assert [trial["state"] for trial in found] == ["finished"] * 2
    assert found[0]["starts"] >= 3
    account(moved)
    for trial in found:
        one = alone(tmp_path / f"by itself {trial['number']}", tiny, **trial["values"] | {"train.max_epochs": 60})
        assert after_pretraining(moved / "trials" / f"{trial['number']:04d}") == after_pretraining(one)


def family(process: int) -> set[int]:
    """A process and its descendants."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(path.parent.name)] = int(path.read_text(errors="replace").rpartition(")")[2].split()[1])
    found, more = set(), {process}
    while more:
        found |= more
        more = {child for child, parent in parents.items() if parent in more} - found
    return found


def listening(processes: set[int]) -> set[str]:
    """The addresses on which processes listen for TCP connections, as the kernel writes them."""
    sockets = set()
    for process in processes:
        with contextlib.suppress(OSError):
            for link in Path(f"/proc/{process}/fd").iterdir():
                with contextlib.suppress(OSError):
                    sockets.add(os.readlink(link))
    rows = [line.split() for kind in ("tcp", "tcp6") for line in Path(f"/proc/net/{kind}").read_text().splitlines()[1:]]
    return {row[1].partition(":")[0] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in sockets}


# 127.0.0.1, the same as an IPv6 address, and ::1.
LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}


def test_on_one_machine_ray_is_for_this_machine_alone_and_its_death_is_no_hang(tmp_path, tiny):
    """A TMPDIR that is too long for sockets does no harm."""
    long = tmp_path / ("t" * (93 - len(str(tmp_path)) - 1) if len(str(tmp_path)) < 60 else "t" * 33)
    long.mkdir()
    file = write(tmp_path, tiny, space={"kl.multiplier": {"grid": [0.1, 0.2]}}, set=SET | {"train.max_epochs": 60})
    runs = [tmp_path / "sweep" / "trials" / name for name in ("0000", "0001")]
    process = start(file, TMPDIR=str(long))
    until(lambda: list_checkpoints(runs[0]) and (runs[0] / "metrics.jsonl").exists(), process)
    ours = family(process.pid)
    assert listening(ours)
    assert listening(ours) <= LOOPBACK
    (raylet,) = (p for p in ours if Path(f"/proc/{p}/comm").read_text().strip() == "raylet")
    os.kill(raylet, signal.SIGKILL)
    said, error = process.communicate(timeout=90)
    assert process.returncode == 75, (said, error)
    assert error.splitlines()[0] == (
        f"TMPDIR = {long}: is too long for the paths of sockets; this sweep uses "
        + error.splitlines()[0].rpartition(" ")[2]
    )
    assert error.splitlines()[-1].endswith("Ray's raylet has ended; rerun the same command to resume")
    assert not Path(error.splitlines()[0].rpartition(" ")[2]).exists()
    assert json.loads((tmp_path / "sweep" / "sweep.json").read_text())["state"] == "interrupted"
    end = time.monotonic() + 30
    while left := [p for p in ours if Path(f"/proc/{p}/cmdline").exists()]:
        assert time.monotonic() < end, left
        time.sleep(0.5)
    run(file)
    assert [trial["state"] for trial in trials(tmp_path / "sweep")] == ["finished"] * 2
    assert list(long.iterdir()) == []


def test_a_sweep_whose_terminal_is_closed_has_saved_itself(tmp_path, tiny):
    file = write(tmp_path, tiny, space={"kl.multiplier": {"grid": [0.1]}}, set=SET | {"train.max_epochs": 3000})
    run = tmp_path / "sweep" / "trials" / "0000"
    process, terminal = pty.fork()
    if process == 0:
        os.execv(sys.executable, [sys.executable, str(ROOT / "launch" / "sweep.py"), str(file)])
    end = time.monotonic() + 240
    while not (list_checkpoints(run) and records(run)):
        assert time.monotonic() < end
        if select.select([terminal], [], [], 0.1)[0]:
            os.read(terminal, 2**16)
    os.close(terminal)
    os.waitpid(process, 0)
    for folder, name in ((run, "status.json"), (tmp_path / "sweep", "sweep.json")):
        told = json.loads((folder / name).read_text())
        assert told["state"] == "interrupted", told


def test_trials_that_fail_are_told_of_and_the_others_go_on(tmp_path, tiny):
    file = write(
        tmp_path,
        tiny,
        set=SET | {"pretrain.max_epochs": 0},
        space={
            "optimizer.learning_rate": {"grid": [0.1, 1e30]},
            "model.hidden_size": {"grid": [16, 30_000_000]},
            "seed": {"grid": [0]},
        },
        max_restarts=1,
    )
    folder = tmp_path / "sweep"
    said, _ = run(file)
    found = trials(folder)
    assert [trial["state"] for trial in found] == ["finished", "failed", "failed", "failed"]
    reasons = {(t["values"]["model.hidden_size"], t["values"]["optimizer.learning_rate"]): t["reason"] for t in found}
    assert "not finite" in reasons[16, 1e30]
    assert "out of memory" in reasons[30_000_000, 0.1]
    # Numbers that are not finite would come again, so such trials are not retried.
    assert [trial["starts"] for trial in found] == [1] * 4
    assert "1 of 4 done, 0 running, 3 failed" in said
    for name in ("sweep.html", "sweep.md"):
        assert "not finite" in (folder / name).read_text(encoding="utf-8")


def test_a_trial_that_raises_is_tried_again_and_then_told_of(tmp_path, tiny):
    file = write(tmp_path, tiny, space={"kl.multiplier": {"grid": [0.1, 0.2]}}, max_restarts=1)
    broken = tmp_path / "sweep" / "trials" / "0000" / "starts"
    process = start(file)
    until(lambda: (tmp_path / "sweep" / "pretrained").is_dir(), process)
    broken.parent.mkdir(parents=True)
    (broken.parent / "metrics.jsonl").write_text("no JSON\n")
    (broken.parent / "config.yaml").write_text("")
    said = process.communicate(timeout=400)
    assert process.returncode == 0, said
    found = trials(tmp_path / "sweep")
    assert [trial["state"] for trial in found] == ["failed", "finished"]
    assert found[0]["reason"]
    assert (tmp_path / "sweep" / "logs" / "0000.log").read_text().count("Traceback") >= found[0]["starts"] - 1


def test_optuna_draws_from_a_space_with_conditions_and_asha_ends_trials(tmp_path, tiny):
    file = write(
        tmp_path,
        tiny,
        search="optuna",
        num_samples=4,
        space={
            "kl.policy": {"choice": ["soft_free_bits", "linear"]},
            "kl.target_rate": {"uniform": [0.2, 0.6], "when": {"kl.policy": "soft_free_bits"}},
            "optimizer.learning_rate": {"log_uniform": [0.01, 0.3]},
            "model.latent_size": {"integer": [2, 6]},
        },
        set=SET | {"train.max_epochs": 10},
        objective={"kl_tolerance": None},
        scheduler={"name": "asha", "grace_epochs": 1, "reduction_factor": 2},
        trial={"cpus": 0.5},
    )
    run(file)
    slots = json.loads((tmp_path / "sweep" / "sweep.json").read_text())["slots"]
    assert slots == min(4, 2 * usable_cores())
    found = trials(tmp_path / "sweep")
    assert {trial["state"] for trial in found} == {"finished", "stopped"}
    for trial in found:
        values = trial["values"]
        assert ("kl.target_rate" in values) == (values["kl.policy"] == "soft_free_bits")
        rows = records(tmp_path / "sweep" / "trials" / f"{trial['number']:04d}")
        # No trial ends during annealing (two epochs) or its grace epoch.
        assert max(row["epoch"] for row in rows if row["stage"] == "train") >= 3
        if trial["state"] == "stopped":
            assert "asha" in trial["reason"]


def test_two_objectives(tmp_path, tiny):
    file = write(
        tmp_path,
        tiny,
        search="optuna",
        num_samples=2,
        space={"kl.target_rate": {"uniform": [0.2, 0.6]}},
        objective={"second": "mutual_information"},
        finalists={"count": 2, "importance_samples": 10},
    )
    run(file)
    assert [trial["state"] for trial in trials(tmp_path / "sweep")] == ["finished"] * 2
    assert list((tmp_path / "sweep" / "finalists").iterdir())


def test_population_based_training_goes_on_from_better_trials(tmp_path, tiny):
    space = {"kl.target_rate": {"uniform": [0.2, 0.6]}, "optimizer.learning_rate": {"choice": [0.01, 0.1]}}
    file = write(
        tmp_path,
        tiny,
        num_samples=4,
        space=space,
        set=SET | {"train.max_epochs": 10},
        objective={"kl_tolerance": None},
        scheduler={"name": "pbt", "grace_epochs": 2, "interval_epochs": 2, "quantile": 0.5},
    )
    folder = tmp_path / "sweep"
    run(file)
    found = trials(folder)
    assert [trial["state"] for trial in found] == ["finished"] * 4
    later = 0
    for trial in found:
        every = generations(folder, trial["number"])
        for generation in every:
            rows = history(folder, generation.run)
            steps = [row.step for row in rows]
            assert steps == sorted(set(steps))  # none twice, none missing
            if generation.parent is None:
                continue
            assert records(generation.run)  # it has trained with its own values
            later += 1
            assert rows[len(rows) - len(records(generation.run))].step - generation.step == 11  # an epoch's
            here, there = (dict(flatten(load_config(g / "config.yaml"))) for g in (generation.run, generation.parent))
            assert {key for key in here if here[key] != there[key]} <= {*space, "run", "resume", "pretrained"}
            assert {key: here[key] for key in space} == generation.values
            assert {row["stage"] for row in records(generation.run)} == {"train"}  # it pretrains nothing
            for key in ("kl.target_rate",):
                assert 0.2 <= here[key] <= 0.6
        assert history(folder, every[-1].run)[-1].epoch == 10
        assert trial["values"] == (every[-1].values or trial["values"])
    assert later > 0


def test_two_processes_of_a_trial_give_what_one_gives(tmp_path, tiny):
    file = write(tmp_path, tiny, space={"kl.multiplier": {"grid": [0.1]}}, trial={"workers": 2})
    run(file)
    folder = tmp_path / "sweep" / "trials" / "0000"
    assert json.loads((folder / "results.json").read_text())["world_size"] == 2
    for here, there in zip(numbers(folder), numbers(alone(tmp_path, tiny)), strict=True):
        for key in ("stage", "epoch", "kl_weight", "learning_rate", "verdict"):
            assert here[key] == there[key]
        assert here["train"]["kl"] == pytest.approx(there["train"]["kl"], rel=2e-5)
        if here["stage"] == "train":
            assert here["valid"]["nll"]["mean"] == pytest.approx(there["valid"]["nll"]["mean"], rel=2e-5)


def test_what_no_node_has_is_refused(tmp_path, tiny):
    _, error = run(write(tmp_path, tiny, space={"kl.multiplier": {"grid": [0.1]}}, trial={"cpus": 1024}), code=2)
    assert "no node has more than" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "sweep").exists()


def test_sentences_that_are_not_there_are_refused(tmp_path, tiny):
    """No folder is left, so that the corrected sweep can use it."""
    wrong = {"data.path": str(tmp_path / "nowhere")}
    _, error = run(write(tmp_path, tiny, space={"kl.multiplier": {"grid": [0.1]}}, set=wrong), code=2)
    assert "nowhere" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "sweep").exists()


def test_a_dry_run_writes_nothing(tmp_path, tiny):
    said, _ = run(write(tmp_path, tiny, space={"kl.multiplier": {"grid": [0.1, 0.2]}}), "--dry-run")
    assert "2 trials, each with 1 CPUs" in said
    assert not (tmp_path / "sweep").exists()
