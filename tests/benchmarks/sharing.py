"""Throughput of several trainings that share a device.

    python -m tests.benchmarks.sharing [--together 1,2,4,8] [--rounds N] [--out FILE] [key=value …]

They train at once; rounds of 1, 2, 4 … trainings take turns. On a CPU each gets its share of the cores, at least one.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np

from distvae.system.cores import usable_cores
from scaling.tables import plain_table
from tests.benchmarks.contestants import Ours, Process, prepare, quartiles
from tests.benchmarks.machine import CONSOLE, device_name

STEPS = 24


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.sharing", description=__doc__.splitlines()[0])
    parser.add_argument("--together", default="1,2,4,8")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, help="write all figures to this JSON file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings of the training")
    options = parser.parse_intermixed_args()
    together = [int(count) for count in options.together.split(",")]
    with tempfile.TemporaryDirectory(prefix="distvae-benchmark-") as folder:
        rates = measure(Path(folder), together, options.rounds, tuple(options.overrides))
    alone = np.array(rates[together[0]])
    table = plain_table("together", "sentences/s", f"× {together[0]} (quartiles)", "sentences/s of each")
    for count, seen in rates.items():
        low, mid, high = quartiles(np.array(seen) / alone)
        rate = float(np.median(seen))
        table.add_row(str(count), f"{rate:,.0f}", f"{mid:.2f} ({low:.2f} … {high:.2f})", f"{rate / count:,.0f}")
    CONSOLE.print(f"\n{device_name()}", table)
    if options.out is not None:
        options.out.write_text(json.dumps({"device": device_name(), "sentences_per_second": rates}, indent=2))


def measure(folder: Path, together: list[int], rounds: int, overrides: tuple[str, ...]) -> dict[int, list[float]]:
    """Return sentences per second over all trainings, by their number and round."""
    contest = prepare(folder, overrides, sentences=2)
    batch_size = contest.load().optimizer.batch_size
    cores = usable_cores()
    crowds = {
        count: [Process(Ours, contest, f"cpu_threads={max(1, cores // count)}") for _ in range(count)]
        for count in together
    }
    rates: dict[int, list[float]] = {count: [] for count in together}
    for number in range(-1, rounds):
        for count, crowd in crowds.items():
            for process in crowd:
                process.tell("train", batch_size, (number + 1) * STEPS, STEPS)
            seconds = max(process.answer() for process in crowd)
            if number >= 0:
                rates[count].append(count * STEPS * batch_size / seconds)
    for crowd in crowds.values():
        for process in crowd:
            process.close()
    return rates


if __name__ == "__main__":
    main()
