"""``python -m tests.numbers REVISION``: does this tree compute, bit for bit, what REVISION computed?

Compares what tiny runs leave that are started as users start them: metrics, scores, weights, checkpoints.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from importlib.metadata import version
from pathlib import Path
from typing import Any

import safetensors
from pyarrow import parquet

from tests.compare import timeless
from tests.conftest import PATIENCE, ROOT, free_port

CACHE = Path("~/.cache/distvae/numbers").expanduser()

# New keys that a line lists.
_NEW = 8

CONFIG = """
data: {path: captions, train_size: 81, valid_size: 20, test_size: 20, cache: CACHE}
model: {embedding_size: 12, hidden_size: 16, latent_size: 4, init_range: 0.3, embedding_init_range: 1.0}
optimizer: {batch_size: 8, learning_rate: 0.1}
pretrain: {max_epochs: 0}
train: {max_epochs: 2}
kl: {anneal_epochs: 1}
evaluation: {importance_samples: 10, samples: 0}
cpu_threads: 1
"""


ADAMW = "optimizer.name=adamw optimizer.learning_rate=0.01 optimizer.weight_decay=0.1 optimizer.warmup_steps=5"
LINEAR = "kl.policy=linear kl.anneal_epochs=2"
FREE_BITS = f"{LINEAR} kl.target_rate=0.15 kl.free_bits"
NO_ANNEALING = "kl.anneal_epochs=10"  # the default, which other policies accept
LAGRANGIAN = f"{NO_ANNEALING} kl.policy=lagrangian kl.target_rate=0.3 kl.dual_learning_rate=0.02"
AGGRESSIVE = "inference.training=aggressive inference.max_steps=7 inference.check_every=2"
POWERSGD = "communication.compression=powersgd communication.powersgd_start=5"
# γ and the learning rate change, the best weights come back, and the plateau rule ends the run.
WHOLE = (
    "seed=4 optimizer.learning_rate=0.7 pretrain.max_epochs=3 train.max_epochs=40 plateau.patience=1"
    " plateau.max_decays=2 kl.anneal_epochs=2 kl.target_rate=2.0 kl.threshold=0.2 kl.multiplier=0.7"
)
OFTEN = "checkpoint.every_steps=4 checkpoint.keep=99 kl.every_steps=3"
# Settings, after the YAML of launch/accelerate/ of two processes. A resume goes on from within its second epoch, too.
RUNS = {
    "one process": "kl.target_rate=0.3",
    "AdamW": ADAMW,
    "accumulation": "optimizer.accumulation_steps=2",
    "constant": "kl.policy=constant kl.weight=0.7 kl.anneal_epochs=10",
    "linear": LINEAR,
    "every_steps": "kl.every_steps=4",
    "cyclical": f"{NO_ANNEALING} kl.policy=cyclical kl.cycles=2 kl.cycle_epochs=1",
    "lagrangian": LAGRANGIAN,
    "from above": f"{NO_ANNEALING} kl.policy=from_above kl.target_rate=0.3",
    "PI control": f"{NO_ANNEALING} kl.policy=pi_control kl.target_rate=0.3 kl.integral=0.01",
    "annealing by step": f"{LINEAR} kl.anneal_by=step",
    "aggressive": f"{LINEAR} {AGGRESSIVE}",
    **{form: f"{FREE_BITS}={form}" for form in ("dimension", "sentence_dimension", "sentence", "batch")},
    "BN-VAE": "model.posterior=batch_norm optimizer.accumulation_steps=2",
    "DU-VAE": "model.posterior=du optimizer.accumulation_steps=2",
    "pretraining": "pretrain.max_epochs=2",
    "word dropout": "model.word_dropout=0.3",
    "mean pooling": "model.pooling=mean pretrain.max_epochs=1",
    "max pooling": "model.pooling=max optimizer.mixed_precision=bf16",
    "language model": f"{NO_ANNEALING} kl.policy=constant model.latent_size=0",
    "bf16": "optimizer.mixed_precision=bf16",
    "plain output layer": "speed.output_layer=plain",
    "validation samples": "evaluation.validation_samples=5",
    "whole recipe": WHOLE,
    "resume": f"{OFTEN} {ADAMW} model.word_dropout=0.3",
    "DDP, free bits": f"cpu.yaml {FREE_BITS}=batch optimizer.accumulation_steps=2",
    "DDP": f"cpu.yaml {WHOLE}",
    "DDP, lagrangian, resume": f"cpu.yaml {LAGRANGIAN} checkpoint.every_steps=4 checkpoint.keep=99",
    "DDP, aggressive, resume": f"cpu.yaml {ADAMW} {AGGRESSIVE} checkpoint.every_steps=4 checkpoint.keep=99",
    "DDP, resume": f"cpu.yaml {OFTEN} {POWERSGD}",
    "BN-VAE, DDP, resume": "cpu.yaml model.posterior=batch_norm checkpoint.every_steps=4 checkpoint.keep=99",
    "local SGD": f"cpu.yaml {ADAMW} communication.local_sgd_steps=2",
    "PowerSGD": f"cpu.yaml {POWERSGD}",
    "bf16 compression": "cpu.yaml communication.compression=bf16",
    **{engine: f"{engine}.yaml {ADAMW}" for engine in ("zero2", "zero3", "fsdp2")},
}

# How a run ends by a user error, such as an option that the revision does not have. Launchers turn its 2 into a 1.
REFUSED = re.compile(r"ended with [12]: distvae: ")

Record = dict[str, str]  # what a run left: by its place, every value's repr and every tensor's digest
Outcome = Record | str  # or why it left nothing


def flatten(content: Any, place: str) -> Iterator[tuple[str, str]]:
    """The values in nested dicts and lists."""
    if not isinstance(content, dict | list):
        yield place, repr(content)
        return
    if isinstance(content, list):
        yield f"{place} length", str(len(content))
    for key, value in content.items() if isinstance(content, dict) else enumerate(content):
        if key != "advice":  # words, which may be put better
            yield from flatten(value, f"{place} {key}")


def record(run: Path) -> Record:
    """What a finished run left, in the order in which it came about."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    found = {"metrics.jsonl lines": str(len(rows))}
    for row in rows:
        found |= flatten(timeless(row), f"{row.get('stage')} {row.get('epoch')}")
    for path in sorted((run / "starts").glob("*.json")):
        found[f"start {path.stem} recorded_step"] = repr(json.loads(path.read_text()).get("recorded_step"))
    for name in ("pretrained", "best", "checkpoints/latest"):
        for path in sorted((run / name).glob("*.safetensors")):
            for tensor, value in sorted(safetensors.deserialize(path.read_bytes())):
                digest = hashlib.sha256(value["data"]).hexdigest()
                found[f"{name}/{path.name} {tensor}"] = f"{value['dtype']} {value['shape']} {digest}"
    for name in ("checkpoints/latest/state.json", "results.json"):
        found |= flatten(timeless(json.loads((run / name).read_text(encoding="utf-8"))), name)
    return found | dict(flatten(parquet.read_table(run / "sentences.parquet").to_pydict(), "sentences.parquet"))


def compare(before: Outcome, after: Outcome) -> tuple[bool, str]:
    """Whether a run of this tree left what the revision's run left, and that in a line. More than that may be there.

    A run whose settings the revision refuses is new: there is nothing to compare it with.
    """
    if isinstance(before, str) and REFUSED.match(before) and not isinstance(after, str):
        return True, f"new: the revision's {before}"
    for whose, outcome in (("the revision's", before), ("this tree's", after)):
        if isinstance(outcome, str):
            return False, f"FAILED: {whose} {outcome}"
    differing = [f"{key}: {old} → {after.get(key, 'missing')}" for key, old in before.items() if after.get(key) != old]
    line = f"DIFFERS in {len(differing)} of {len(before)} values, first in {differing[0]}" if differing else "same"
    new = [key for key in after if key not in before]
    more = f" and {len(new) - _NEW} more" if len(new) > _NEW else ""
    return not differing, line + (f"; new keys: {', '.join(new[:_NEW])}{more}" if new else "")


def train(tree: Path, folder: Path, name: str) -> Outcome:
    """Carry out a run of the matrix by the program of a tree, in a folder that has the config."""
    run, settings, command = folder / name, RUNS[name].split(), [sys.executable]
    if settings and settings[0].endswith(".yaml"):
        command += ["-m", "accelerate.commands.launch", "--config_file", f"launch/accelerate/{settings.pop(0)}"]
        command += ["--num_processes", "2", "--main_process_port", str(free_port())]
    command += ["distvae/train.py", str(folder / "numbers.yaml"), f"run={run}", *settings]
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    for again in (False, True) if "resume" in name else (False,):
        if again:
            (run / "results.json").unlink()
            for later in sorted((run / "checkpoints").glob("start-*"))[5:]:  # steps 4, 8, 11 (an epoch), 12 and 16 stay
                shutil.rmtree(later)
        done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, timeout=PATIENCE)
        if done.returncode != 0:
            said = [line for line in done.stderr.splitlines() if line.startswith("distvae: ")]
            return f"ended with {done.returncode}: {' '.join(said[:1]) or done.stderr[-500:]}"
    return record(run)


def train_all(tree: Path, title: str, names: list[str]) -> dict[str, Outcome]:
    """Carry out runs by the program of a tree, two at a time; prints a line as each ends."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="numbers-") as folder, ThreadPoolExecutor(2) as pool:
        Path(folder, "numbers.yaml").write_text(CONFIG.replace("CACHE", f"{folder}/cache"), encoding="utf-8")
        runs = {pool.submit(train, tree, Path(folder), name): name for name in names}
        try:
            for run in as_completed(runs):
                print(f"{time.monotonic() - began:4.0f} s  {title}: {runs[run]}", flush=True)
        finally:
            pool.shutdown(cancel_futures=True)
        return {name: repr(run.exception()) if run.exception() else run.result() for run, name in runs.items()}


def git(*arguments: str | Path) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def truth(revision: str, names: list[str], fresh: bool) -> dict[str, Outcome]:
    """The runs of a revision: those in its cache, if they were made as they are now, and the others carried out."""
    commit = git("rev-parse", "--verify", f"{revision}^{{commit}}")
    kept = CACHE / f"{commit}.json"
    cached = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    made = {name: f"{RUNS[name]} {CONFIG} torch {version('torch')}" for name in names}
    missing = [name for name in names if fresh or cached.get(name, {}).get("made") != made[name]]
    found = {name: cached[name]["record"] for name in names if name not in missing}
    if missing:
        tree = Path(tempfile.mkdtemp(prefix="numbers-"))
        git("worktree", "add", "--quiet", "--detach", tree, commit)
        try:
            found |= train_all(tree, revision, missing)
        finally:
            git("worktree", "remove", "--force", tree)
        cached |= {n: {"made": made[n], "record": found[n]} for n in missing if isinstance(found[n], dict)}
        CACHE.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(cached), encoding="utf-8")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.numbers", description=__doc__)
    parser.add_argument("revision", help="a commit, branch or tag, to which this tree is compared")
    parser.add_argument("--only", action="append", choices=RUNS, metavar="NAME", help="a run; may be repeated")
    parser.add_argument("--fresh", action="store_true", help="train the revision's runs anew, whatever is cached")
    options = parser.parse_args()
    names = options.only or list(RUNS)
    before, after = truth(options.revision, names, options.fresh), train_all(ROOT, "this tree", names)
    well = 0
    for name in names:
        same, line = compare(before[name], after[name])
        print(f"{name}: {line}")
        well += same
    print(f"{well} of {len(names)} runs are the same as by {options.revision}, or new")
    return 0 if well == len(names) else 1


if __name__ == "__main__":
    sys.exit(main())
