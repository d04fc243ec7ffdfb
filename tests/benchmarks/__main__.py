"""How fast this machine trains and scores, against textbook code and against the machine's ceilings.

    python -m tests.benchmarks [--quick] [--out FILE] [--rounds N] [--batch-sizes 32,64,…] [key=value …]

Contestants take turns, round by round. A ratio is the median over rounds, with its quartiles. On a shared machine
compare ratios, not times, of several runs. See ``python -m tests.benchmarks.growth`` for how costs grow, and ``python
-m tests.benchmarks.sharing`` for runs that share a device.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from distvae.data import corpus
from distvae.distributed.device import has_bf16
from scaling.tables import plain_table
from tests.benchmarks import ceilings
from tests.benchmarks.communication import communication
from tests.benchmarks.contestants import PARTS, Contest, Ours, Process, Textbook, plan_of, prepare, quartiles, some_of
from tests.benchmarks.machine import CONSOLE, device, device_name


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="batch 32 alone, in seconds")
    parser.add_argument("--out", type=Path, help="write all figures to this JSON file")
    parser.add_argument("--rounds", type=int, help="number of timed rounds")
    parser.add_argument("--batch-sizes", help="such as 32,64,128")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings of the training")
    options = parser.parse_intermixed_args()
    sizes = options.batch_sizes or ("32" if options.quick else "32,64,128,256,512")
    with tempfile.TemporaryDirectory(prefix="distvae-benchmark-") as folder:
        found = compare(
            prepare(Path(folder), tuple(options.overrides), sentences=4 if options.quick else 8),
            [int(size) for size in sizes.split(",")],
            options.rounds or (5 if options.quick else 15),
        )
    show(found)
    if options.out is not None:
        options.out.write_text(json.dumps(found, indent=2), encoding="utf-8")


# Contestants by name: a class and settings.
Kinds = dict[str, tuple[Any, ...]]


def usual_kinds() -> Kinds:
    """Return the textbook, and this trainer in each precision that the device has."""
    kinds: Kinds = {"textbook": (Textbook,), "float32": (Ours, "optimizer.mixed_precision=no")}
    if has_bf16(device()):
        kinds["bf16"] = (Ours, "optimizer.mixed_precision=bf16")
    return kinds


def compare(
    contest: Contest, batch_sizes: list[int], rounds: int, kinds: Kinds | None = None, sending: bool = True
) -> dict[str, Any]:
    """Time all contestants and the machine.

    Args:
        kinds: must have ``textbook``; names of those in bfloat16 begin with ``bf16``. None: the usual ones.
        sending: also time what sending between processes takes.
    """
    kinds = kinds or usual_kinds()
    config = contest.load()
    prepared = corpus.load(corpus.prepare(config.data, progress=False))
    if config.cpu_threads is not None:
        torch.set_num_threads(config.cpu_threads)
    vocabulary_size = len(prepared.vocabulary)
    machine = ceilings.MeasuredMachine(device(), config.model.hidden_size, vocabulary_size, 32 * 9)
    processes = {name: Process(kind, contest, *overrides) for name, (kind, *overrides) in kinds.items()}
    found: dict[str, Any] = {
        "device": device_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "vocabulary": vocabulary_size,
        "training": [],
    }
    for batch_size in batch_sizes:
        CONSOLE.print(f"[dim]training, batch {batch_size} …")
        plan = plan_of(prepared, batch_size)
        count = max(2, 256 // batch_size)
        seconds: dict[str, list[float]] = {name: [] for name in processes}
        for number in range(-2, rounds):
            first = (number + 2) * count
            machine.measure()
            for name in _turn(list(processes), number):
                took = processes[name].ask("train", batch_size, first, count) / count
                if number >= 0:
                    seconds[name].append(took)
        numbers = [plan[i % len(plan)] for i in range(2 * count, (rounds + 2) * count)]
        sentences = float(np.mean([len(some) for some in numbers]))
        steps = float(np.mean([prepared.train.lengths[some].max() - 1 for some in numbers]))
        tokens = float(np.mean([(prepared.train.lengths[some] - 1).sum() for some in numbers]))
        row = {"batch_size": batch_size, "sentences": sentences, "tokens": tokens, "contestants": {}}
        for name, times in seconds.items():
            entry = {
                "seconds": median(times),
                "ratio": quartiles(np.array(seconds["textbook"]) / np.array(times)),
                "work": ceilings.training_step(
                    config.model, vocabulary_size, sentences, steps, name.startswith("bf16")
                ),
            }
            if name != "textbook":
                parts = processes[name].ask("parts", batch_size, 0, count)
                entry["parts"] = {part: value / count for part, value in parts.items()}
            entry["peak_bytes"] = processes[name].ask("memory")
            row["contestants"][name] = entry
        found["training"].append(row)
    CONSOLE.print("[dim]importance-weighted NLL …")
    found["scoring"] = _score(contest, processes, machine, rounds, config, vocabulary_size, prepared)
    for process in processes.values():
        process.close()
    sent = []
    if sending:
        CONSOLE.print("[dim]communication between processes …")
        words = round(float((prepared.train.lengths - 1).mean()))
        precision = f"optimizer.mixed_precision={'bf16' if 'bf16' in kinds else 'no'}"
        sent = communication(contest, batch_sizes, vocabulary_size, words, rounds, precision)
    found["communication"] = [vars(one) | {"communication": one.communication} for one in sent]
    limits = machine.ceilings()
    found["ceilings"] = vars(limits)
    for section in (*found["training"], found["scoring"]):
        for name, entry in section["contestants"].items():
            entry["floor_seconds"] = limits.floor(entry.pop("work"), name.startswith("bf16"))
    return found


def _score(contest, processes, machine, rounds, config, vocabulary_size, prepared) -> dict[str, Any]:
    seconds: dict[str, list[float]] = {name: [] for name in processes}
    nll = {}
    for number in range(-1, max(3, rounds // 3)):
        machine.measure()
        for name in _turn(list(processes), number):
            took, nll[name] = processes[name].ask("score")
            if number >= 0:
                seconds[name].append(took / contest.sentences)
    steps = float(some_of(prepared.valid, contest.sentences).lengths.mean()) - 1
    contestants = {}
    for name, times in seconds.items():
        work = ceilings.importance_sampling(
            config.model, vocabulary_size, 1, contest.samples, steps, name.startswith("bf16")
        )
        contestants[name] = {
            "seconds": median(times),
            "ratio": quartiles(np.array(seconds["textbook"]) / np.array(times)),
            "work": work,
            "nll": nll[name],
        }
    return {"sentences": contest.sentences, "samples": contest.samples, "contestants": contestants}


def _turn(names: list[str], number: int) -> list[str]:
    """Return the order of a round, which changes from round to round."""
    start = number % len(names)
    return names[start:] + names[:start]


def show(found: dict[str, Any]) -> None:
    limits = found["ceilings"]
    CONSOLE.print(
        f"\n{found['device']}, {found['threads']} threads, torch {found['torch']}: matrix products"
        f" {limits['float32'] / 1e9:,.0f} GFLOP/s in float32, {limits['bfloat16'] / 1e9:,.0f} in bfloat16; copies at"
        f" {limits['bandwidth'] / 1e9:.0f} GB/s; an operation on one value takes {limits['launch'] * 1e6:.1f} µs"
    )
    table = plain_table(
        "batch", "", "ms/step", "sentences/s", "tokens/s", "× textbook (quartiles)", "of the ceiling", "peak MiB"
    )
    split = plain_table("batch", "", *PARTS)
    for row in found["training"]:
        for name, entry in row["contestants"].items():
            low, mid, high = entry["ratio"]
            table.add_row(
                str(row["batch_size"]),
                name,
                f"{entry['seconds'] * 1e3:.1f}",
                f"{row['sentences'] / entry['seconds']:,.0f}",
                f"{row['tokens'] / entry['seconds']:,.0f}",
                f"{mid:.2f} ({low:.2f} … {high:.2f})",
                f"{entry['floor_seconds'] / entry['seconds']:.0%}",
                f"{entry['peak_bytes'] / 2**20:,.0f}",
            )
            if "parts" in entry:
                ms = [f"{entry['parts'][part] * 1e3:.1f}" for part in PARTS]
                split.add_row(str(row["batch_size"]), name, *ms)
    CONSOLE.print(f"\nTraining steps, vocabulary of {found['vocabulary']:,}", table)
    CONSOLE.print("\nParts of a step, in ms, timed one by one", split)
    if found["communication"]:
        table = plain_table("batch", "per process", "sending nothing, ms", "communication, ms", "of the step")
        for row in found["communication"]:
            table.add_row(
                str(row["batch_size"]),
                f"{row['batch_size'] // row['processes']}",
                f"{row['alone'] * 1e3:.1f}",
                f"{row['communication'] * 1e3:.1f}",
                f"{row['communication'] / row['sending']:.0%}",
            )
        CONSOLE.print(f"\nSteps of {found['communication'][0]['processes']} processes under DDP", table)
    scoring = found["scoring"]
    table = plain_table("", "s/sentence", "× textbook (quartiles)", "of the ceiling", "NLL")
    for name, entry in scoring["contestants"].items():
        low, mid, high = entry["ratio"]
        table.add_row(
            name,
            f"{entry['seconds']:.3f}",
            f"{mid:.2f} ({low:.2f} … {high:.2f})",
            f"{entry['floor_seconds'] / entry['seconds']:.0%}",
            f"{entry['nll']:.3f}",
        )
    CONSOLE.print(f"\nImportance-weighted NLL, {scoring['samples']} draws of {scoring['sentences']} sentences", table)


if __name__ == "__main__":
    main()
