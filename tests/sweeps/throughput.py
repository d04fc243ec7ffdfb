"""Trials per hour by how many share a device, and the cost of a trial beyond its training.

    python -m tests.sweeps.throughput [--together 1,2,4,8] [--trials 8] [--sentences 16000] [--epochs 3] [key=value …]

On GPUs each trial gets that share of one, on a machine without that share of its cores, one at most. Prints a table and
writes it as JSON to ``runs/throughput/throughput.json``.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch
import yaml

from distvae.system.cores import usable_cores
from tests.conftest import ROOT

FOLDER = Path("runs/throughput")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--together", default="1,2,4,8")
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--sentences", type=int, default=16_000)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the training")
    options = parser.parse_intermixed_args()
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    base = {
        "data": {"path": "captions", "train_size": options.sentences, "valid_size": 500, "test_size": 500},
        "pretrain": {"max_epochs": 0},
        "train": {"max_epochs": options.epochs},
        "kl": {"policy": "linear", "anneal_epochs": 1},
        "cpu_threads": 1,
        "evaluation": {"validation_samples": 50, "importance_samples": 50},
    }
    config = FOLDER / "base.yaml"
    config.write_text(yaml.safe_dump(base))
    plain = train_alone(config, options.overrides)
    rows = [sweep_of(int(together), config, options) for together in options.together.split(",")]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(f"\n{device}; the training alone, its process's start included: {plain:.1f} s")
    print("together   trials/hour   against 1   seconds a trial   of these not training   beside the training alone")
    for row in rows:
        gain = row["trials_per_hour"] / rows[0]["trials_per_hour"]
        overhead = row["trial_seconds"] - plain
        print(
            f"{row['together']:>8}   {row['trials_per_hour']:>11.0f}   {gain:>9.2f}   {row['trial_seconds']:>15.1f}"
            f"   {row['around']:>21.1f}   {overhead:>+8.1f} s {overhead / plain:>+8.0%}"
        )
    found = {"device": device, "alone_seconds": plain, "rows": rows, "settings": vars(options)}
    (FOLDER / "throughput.json").write_text(json.dumps(found, indent=2))


def train_alone(config: Path, overrides: list[str]) -> float:
    """Seconds of the training as users start it, the second time, when the sentences are prepared."""
    for name in ("first", "alone"):
        began = time.monotonic()
        command = [sys.executable, ROOT / "distvae" / "train.py", config, f"run={FOLDER / name}", *overrides]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - began


def sweep_of(together: int, config: Path, options: argparse.Namespace) -> dict:
    """Run a sweep of trials that differ only in their seeds."""
    folder = FOLDER / f"together-{together}"
    settings = {
        "base": str(config),
        "run": str(folder),
        "set": dict(override.split("=", 1) for override in options.overrides),
        "space": {"seed": {"grid": list(range(options.trials))}},
        "objective": {"kl_tolerance": None},
        "finalists": {"count": 0},
        "max_concurrent": together,
    }
    settings["set"] = {key: yaml.safe_load(value) for key, value in settings["set"].items()}
    if torch.cuda.is_available():
        settings["trial"] = {"gpus": 1 / together}
    else:
        settings["trial"] = {"cpus": min(1.0, usable_cores() / together)}
    path = FOLDER / f"together-{together}.yaml"
    path.write_text(yaml.safe_dump(settings))
    subprocess.run([sys.executable, ROOT / "launch" / "sweep.py", path], check=True)
    progress = json.loads((folder / "sweep.json").read_text())
    trials = json.loads((folder / "trials.json").read_text())["trials"]
    assert all(trial["state"] == "finished" for trial in trials)
    seconds = sum(trial["seconds"] for trial in trials) / len(trials)
    training = 0.0
    for trial in trials:
        lines = (folder / "trials" / f"{trial['number']:04d}" / "metrics.jsonl").read_text().splitlines()
        training += sum(json.loads(line)["train"]["seconds"] for line in lines) / len(trials)
    return {
        "together": together,
        "trials_per_hour": 3600 * len(trials) / progress["trial_seconds"],
        "trial_seconds": seconds,
        "around": seconds - training,
    }


if __name__ == "__main__":
    main()
