"""The paper's rows on a real cluster, with tiny models: which jobs wait for which, and how they end."""

import re
from pathlib import Path

import pytest
import yaml

from distvae.config.load import load_config
from tests.slurm.conftest import Cluster
from tests.slurm.test_cluster import contain

pytestmark = pytest.mark.cluster

ROWS = {
    "ae": {"train": {"max_epochs": 0}},
    "kla": {"pretrain": {"max_epochs": 0}, "kl": {"policy": "linear", "target_rate": 4.0}},
    "pt_kla": {"kl": {"policy": "linear", "target_rate": 4.0}},
    "pt_kla_fb": {"kl": {"policy": "linear", "free_bits": "dimension"}},
    "pt_kla_sfb": {"kl": {"policy": "soft_free_bits"}},
}
PRETRAINED = [name for name in ROWS if name.startswith("pt")]

# Slow down the first start of the pretraining.
SLOW = """

def collate(*arguments, whole=collate):
    import os, time
    if ":ae:" in os.environ["SLURM_JOB_NAME"] and "SLURM_RESTART_COUNT" not in os.environ:
        time.sleep(0.5)
    return whole(*arguments)
"""


def write_rows(folder: Path, tiny: Path, names: list[str]) -> Path:
    """A config for each row, with one epoch per stage."""
    folder.mkdir()
    for name in names:
        tree = yaml.safe_load(tiny.read_text())
        tree["evaluation"] = {"importance_samples": 2, "samples": 0}
        for stage in ("pretrain", "train"):
            tree[stage] = {"max_epochs": 1}
        for section, changes in ROWS[name].items():
            tree[section] = tree[section] | changes
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(tree))
    return folder


def jobs_of(said: str) -> dict[str, int]:
    """Jobs by run name, without the seed."""
    return {name: int(job) for name, job in re.findall(r"^(?:seed-0/)?(\w+): job (\d+)", said, flags=re.MULTILINE)}


def queue(cluster: Cluster) -> list[str]:
    return cluster.run("squeue", "--noheader", "--format=%A").stdout.split()


def test_the_rows_train_once_each_behind_their_pretraining_and_before_the_report(cluster, checkout, tiny, tmp_path):
    rows = write_rows(tmp_path / "my rows", tiny, list(ROWS))
    with (checkout / "distvae" / "data" / "batches.py").open("a") as module:
        module.write(SLOW)
    marker = contain(checkout, tmp_path)
    own = ["--rows", str(rows), "--folder=runs/ta ble", "--seeds=0", "optimizer.learning_rate=0.2"]
    command = ["bash", "slurm/table.sh", "--time=9", "--hold", *own]
    done = cluster.run(*command, cwd=checkout)
    assert done.returncode == 0, done.stderr
    numbers = jobs_of(done.stdout)
    assert list(numbers) == [*ROWS, "report"]
    assert cluster.job(numbers["ae"]).fields["TimeLimit"] == "00:09:00"
    # Nothing is submitted twice.
    waiting = queue(cluster)
    done = cluster.run(*command, cwd=checkout)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(", in the queue\n") == 6
    assert jobs_of(done.stdout) == numbers
    assert queue(cluster) == waiting

    # A pretraining that is interrupted and requeued has not completed.
    cluster.run("scontrol", "release", ",".join(map(str, numbers.values())))
    folder = checkout / "runs" / "ta ble"
    cluster.wait_until((folder / "seed-0" / "ae" / "starts").exists, "the pretraining has started")
    cluster.run("scancel", "--signal=USR1", str(numbers["ae"]))
    jobs = {name: cluster.wait(number) for name, number in numbers.items()}
    for name in ROWS:
        assert jobs[name].state == "COMPLETED", jobs[name].log
    assert jobs["ae"].fields["Restarts"] == "1"
    results = (folder / "seed-0" / "ae" / "results.json").stat().st_mtime
    for name in PRETRAINED:
        run = folder / "seed-0" / name
        assert jobs[name].fields["StartTime"] >= jobs["ae"].fields["EndTime"]
        assert (run / "environment.json").stat().st_mtime > results
        assert load_config(run / "config.yaml").optimizer.learning_rate == 0.2
    assert jobs["report"].fields["StartTime"] >= max(jobs[name].fields["EndTime"] for name in ROWS)
    last = marker.read_text().splitlines()[-1]
    node, runs = jobs["report"].fields["NodeList"], " ".join(f"runs/ta ble/seed-0/{name}" for name in ROWS)
    assert re.match(rf"{node}; .*; python3 runs/slurm/report-.*/code/distvae/cli\.py ", last)
    assert last.endswith(f" report --out runs/ta ble {runs}")

    assert jobs["report"].state == "COMPLETED", jobs["report"].log
    assert (folder / "report.html").exists()
    assert (folder / "report.md").read_text().splitlines()[2].startswith("5 runs. 20 test sentences")

    # Finished runs are not trained again.
    done = cluster.run(*command, cwd=checkout)
    assert done.returncode == 0, done.stderr
    report = jobs_of(done.stdout)
    cluster.run("scancel", *map(str, report.values()))
    assert list(report) == ["report"]
    assert report["report"] > max(numbers.values())
    assert done.stdout.count(": finished\n") == len(ROWS)


def test_a_pretraining_that_fails_takes_with_it_what_waits_for_it(cluster, checkout, tiny, tmp_path):
    rows = write_rows(tmp_path / "rows", tiny, ["ae", "pt_kla"])
    given = ["--rows", str(rows), "--seeds", "0", "optimizer.learning_rate=1e30", "optimizer.clip_norm=null"]
    done = cluster.run("bash", "slurm/table.sh", *given, cwd=checkout)
    assert done.returncode == 0, done.stderr
    numbers = jobs_of(done.stdout)
    jobs = {name: cluster.wait(number) for name, number in numbers.items()}
    assert (jobs["ae"].state, jobs["pt_kla"].state) == ("FAILED", "CANCELLED")
    assert "is not finite" in jobs["ae"].log
    assert not (checkout / "runs" / "table" / "rows" / "seed-0" / "pt_kla").exists()
    assert jobs["report"].fields["StartTime"] >= jobs["ae"].fields["EndTime"]
    assert jobs["report"].state == "COMPLETED", jobs["report"].log
    assert "0 of 1 runs" in (checkout / "runs" / "table" / "rows" / "report.md").read_text()
    assert not set(queue(cluster)) & {str(number) for number in numbers.values()}
