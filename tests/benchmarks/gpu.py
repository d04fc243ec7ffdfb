"""All that waits for a GPU, in one run of at most eight minutes: is it right, and how fast?

    python -m tests.benchmarks.gpu [--out FOLDER] [--minutes N] [--rehearse]

writes ``gpu.json`` after each part, and at the end ``gpu.md``, which docs/performance.md takes over. A part that fails
does not end the others; a part for which no time is left is named. ``--rehearse`` does all of it in a small form, also
on a CPU.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.benchmarks import sharing
from tests.benchmarks.__main__ import Kinds, compare, show, usual_kinds
from tests.benchmarks.contestants import Contest, Ours, Process, prepare, quartiles
from tests.benchmarks.machine import CONSOLE, device, device_name

ROOT = Path(__file__).resolve().parents[2]

# Rows of the profile of a step.
OPERATIONS = 15


@dataclass(frozen=True)
class Size:
    """How much of each is measured.

    Attributes:
        batch_sizes: of training steps.
        rounds: of each comparison.
        compared: sentences whose scoring is compared with the textbook's.
        scored: sentences of one long scoring.
        samples: importance samples of each.
        together: numbers of trainings that share the device.
        settings: of the model.
    """

    batch_sizes: tuple[int, ...] = (32, 64, 128, 256, 1024)
    rounds: int = 7
    compared: int = 48
    scored: int = 6000
    samples: int = 500
    together: tuple[int, ...] = (1, 2, 4, 8)
    settings: tuple[str, ...] = ()


SMALL = Size(
    (8,),
    1,
    2,
    4,
    100,
    (1, 2),
    ("model.embedding_size=8", "model.hidden_size=8", "model.latent_size=2", "cpu_threads=1"),
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("."), metavar="FOLDER", help="for gpu.json and gpu.md")
    parser.add_argument("--minutes", type=float, default=8, help="no part begins later (default 8)")
    parser.add_argument("--rehearse", action="store_true", help="in a small form, also on a CPU")
    options = parser.parse_args()
    if device().type == "cpu" and not options.rehearse:
        parser.error("no GPU is visible; --rehearse runs a small form on a CPU")
    size = SMALL if options.rehearse else Size()
    options.out.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {"device": device_name(), "torch": torch.__version__, "seconds": {}, "failed": {}}
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="distvae-gpu-") as folder:
        for name, part in parts(size, Path(folder)).items():
            CONSOLE.print(f"[bold]{name}")
            since = time.monotonic()
            if since - began > 60 * options.minutes:
                found["failed"][name] = "no time was left"
                continue
            try:
                found[name] = part()
            except (Exception, SystemExit):
                found["failed"][name] = traceback.format_exc()
                CONSOLE.print(found["failed"][name])
            found["seconds"][name] = time.monotonic() - since
            (options.out / "gpu.json").write_text(json.dumps(found, indent=2), encoding="utf-8")
    text = "\n".join(markdown(found))
    (options.out / "gpu.md").write_text(text + "\n", encoding="utf-8")
    print(text)
    return 1 if found["failed"] else 0


def parts(size: Size, folder: Path) -> dict[str, Callable[[], Any]]:
    """Return what is measured, the most important first."""
    contest = prepare(folder, size.settings, size.scored)
    contest = replace(contest, sentences=size.compared, samples=size.samples, together=256)
    return {
        "tests": tests,
        "comparison": lambda: _comparison(contest, size),
        "scoring": lambda: _scoring(replace(contest, sentences=size.scored)),
        "sharing": lambda: sharing.measure(folder / "sharing", [*size.together], size.rounds, size.settings),
        "profile": lambda: _profile(contest, size.batch_sizes[0]),
    }


def tests() -> str:
    """Run the tests that need a GPU, and return their last line."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--durations=0", "tests/test_gpu.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    CONSOLE.print(done.stdout)
    if done.returncode not in (0, 5):
        raise RuntimeError(done.stdout + done.stderr)
    return done.stdout.strip().splitlines()[-1]


def _kinds() -> Kinds:
    """Return the usual contestants, and on a GPU the same with CUDA graphs."""
    kinds = usual_kinds()
    if device().type == "cuda":
        ours = {name: kind for name, kind in kinds.items() if kind[0] is Ours}
        kinds |= {f"{name}, graphs": (*kind, "speed.cuda_graphs=true") for name, kind in ours.items()}
    return kinds


def _comparison(contest: Contest, size: Size) -> dict[str, Any]:
    found = compare(contest, [*size.batch_sizes], size.rounds, _kinds(), sending=False)
    show(found)
    return found


def _scoring(contest: Contest) -> dict[str, dict[str, float]]:
    """Score many sentences in each precision."""
    found = {}
    for name, (kind, *overrides) in usual_kinds().items():
        if kind is Ours:
            process = Process(kind, contest, *overrides)
            process.ask("train", 32, 0, 1)  # what the first use of a device costs
            seconds, nll = process.ask("score")
            found[name] = {"seconds": seconds, "sentences": contest.sentences, "nll": nll}
            process.close()
    return found


def _profile(contest: Contest, batch_size: int) -> list[dict[str, Any]]:
    """Return the operations of three steps that take the longest on the device."""
    process = Process(Profiled, contest)
    found: list[dict[str, Any]] = process.ask("profile", batch_size)
    process.close()
    return found


class Profiled(Ours):
    """This trainer under the profiler."""

    def profile(self, batch_size: int) -> list[dict[str, Any]]:
        self.train(batch_size, 0, 3)
        with torch.profiler.profile() as profiler:
            self.train(batch_size, 0, 3)
        on_gpu = self.runtime.device.type == "cuda"
        rows = [
            {
                "operation": event.key,
                "calls": event.count,
                "milliseconds": (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e3,
            }
            for event in profiler.key_averages()
        ]
        return sorted(rows, key=lambda row: -row["milliseconds"])[:OPERATIONS]


# -- What is shown -----------------------------------------------------------------------------------------------------


def markdown(found: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of the page."""
    yield f"`python -m tests.benchmarks.gpu`, {found['device']}, torch {found['torch']}:"
    yield ""
    yield from _table(["", "measured", "goal"], [[title, *values] for title, *values in goals(found)])
    for name, why in found["failed"].items():
        yield f"- **{name} failed**: {why.strip().splitlines()[-1]}"
    if "tests" in found:
        yield f"- `tests/test_gpu.py`: {found['tests']}"
    if "comparison" in found:
        yield from _training(found["comparison"])
    if "scoring" in found:
        yield ""
        rows = [
            [name, f"{each['seconds']:.1f}", f"{each['sentences'] / each['seconds']:,.1f}", f"{each['nll']:.3f}"]
            for name, each in found["scoring"].items()
        ]
        scored = next(iter(found["scoring"].values()))["sentences"]
        yield from _table([f"scoring of {scored:,} sentences", "seconds", "sentences/s", "NLL"], rows)
    if "sharing" in found:
        yield ""
        alone = np.array(found["sharing"][next(iter(found["sharing"]))])
        rows = [
            [str(count), f"{np.median(rates):,.0f}", _ratio(quartiles(np.array(rates) / alone))]
            for count, rates in found["sharing"].items()
        ]
        yield from _table(["trainings together", "sentences/s in total", "relative to one (quartiles)"], rows)
    if "profile" in found:
        yield ""
        rows = [[f"`{row['operation']}`", str(row["calls"]), f"{row['milliseconds']:.2f}"] for row in found["profile"]]
        yield from _table(["operation of three steps", "calls", "ms"], rows)


def goals(found: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield what was hoped for: a title, the best value measured, and the goal."""
    if "comparison" in found:
        rows = found["comparison"]["training"]
        ours = [
            (each["ratio"][1], each["floor_seconds"] / each["seconds"], row["batch_size"], name)
            for row in rows
            for name, each in row["contestants"].items()
            if name != "textbook"
        ]
        smallest = rows[0]["batch_size"]
        ratio, _, _, name = max(each for each in ours if each[2] == smallest)
        yield f"training at batch {smallest}, × textbook", f"{ratio:.2f} ({name})", "4, better 6"
        _, share, batch_size, name = max(ours, key=lambda each: each[1])
        yield "training, of the ceiling", f"{share:.0%} ({name}, batch {batch_size})", "60%"
    if "comparison" in found and "scoring" in found:
        textbook = found["comparison"]["scoring"]["contestants"]["textbook"]["seconds"]
        each = {name: one["seconds"] / one["sentences"] for name, one in found["scoring"].items()}
        name = min(each, key=lambda name: each[name])
        yield "scoring, × textbook", f"{textbook / each[name]:.1f} ({name})", "30"
    if "sharing" in found:
        rates = {count: np.median(seen) for count, seen in found["sharing"].items()}
        alone, most = next(iter(rates)), [*rates][-1]
        yield f"{most} trainings together, × {alone}", f"{rates[most] / rates[alone]:.2f}", "5 (8 together)"


def _training(found: dict[str, Any]) -> Iterator[str]:
    limits = found["ceilings"]
    yield (
        f"- matrix products {limits['float32'] / 1e12:.1f} TFLOP/s in float32, {limits['bfloat16'] / 1e12:.1f} in"
        f" bfloat16; copies {limits['bandwidth'] / 1e9:,.0f} GB/s; an operation on one value"
        f" {limits['launch'] * 1e6:.1f} µs"
    )
    yield ""
    rows = [
        [
            f"{row['batch_size']:,}",
            name,
            f"{each['seconds'] * 1e3:.2f}",
            f"{row['sentences'] / each['seconds']:,.0f}",
            _ratio(each["ratio"]),
            f"{each['floor_seconds'] / each['seconds']:.0%}",
            f"{each['peak_bytes'] / 2**20:,.0f}",
        ]
        for row in found["training"]
        for name, each in row["contestants"].items()
    ]
    yield from _table(
        ["batch", "", "ms per step", "sentences/s", "× textbook (quartiles)", "of the ceiling", "peak MiB"], rows
    )


def _ratio(values: tuple[float, float, float]) -> str:
    low, mid, high = values
    return f"{mid:.2f} ({low:.2f} … {high:.2f})"


def _table(heads: list[str], rows: list[list[str]]) -> Iterator[str]:
    for row in [heads, ["---"] * len(heads), *rows]:
        yield f"| {' | '.join(row)} |"


if __name__ == "__main__":
    sys.exit(main())
