"""``python -m tests.faults.environments --seed 0 --count 100``: run programs in hostile environments.

Each case is a tiny training, or a command on a finished run, with random variables, locales, descriptors and temporary
folders. It must end with the numbers of an undisturbed one, or with one line and exit code 2, and leave nothing
half-written. Every third case has a single disturbance, to isolate its effect.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import PATIENCE, ROOT, TINY

# A run of a second. The timeout is short because variables may ask for processes that do not exist.
SHORT = ("pretrain.max_epochs=1", "train.max_epochs=1", "communication.timeout_minutes=0.05")

# Where the standard streams lead; {out} and {err} are files.
STREAMS = {
    "files": "> {out} 2> {err}",
    "stdout closed": ">&- 2> {err}",
    "stderr closed": "> {out} 2>&-",
    "all closed": "<&- >&- 2>&-",
    "stdout full": "> /dev/full 2> {err}",
    "stderr full": "> {out} 2> /dev/full",
    "both full": "> /dev/full 2>&1",
    "nobody reads": "2> {err} | true",
    "a line is read": "2> {err} | head -1 > {out}",
    "nobody reads either": "2>&1 | head -c 1 > {out}",
}
LOCALES = [
    {"PYTHONIOENCODING": "ascii"},
    {"PYTHONIOENCODING": "latin-1:strict"},
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    {"LC_ALL": "POSIX", "LANG": ""},
    {"LC_ALL": "xx_YY.nothing"},
    {"PYTHONUNBUFFERED": "1"},
]
NUMBERS = ("", " ", "0", "1", "2", "3", "-1", "abc", "1.5", "99999999999999999999", "٣", "1 2")
VARIABLES = {
    **dict.fromkeys(
        ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT", "SLURM_RESTART_COUNT",
         "SLURM_STEP_NUM_TASKS", "SLURM_CPUS_ON_NODE", "PMI_SIZE", "PMI_RANK", "OMPI_COMM_WORLD_SIZE",
         "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE"), NUMBERS
    ),
    "MASTER_ADDR": ("", "127.0.0.1", "a..b", "x" * 300, "256.1.1.1"),
    "SLURM_JOB_ID": ("", "7", "x"),
    "ACCELERATE_USE_DEEPSPEED": ("", "true", "false", "abc"),
    "ACCELERATE_USE_FSDP": ("", "true", "false", "abc"),
    "ACCELERATE_USE_CPU": ("", "true", "abc"),
    "ACCELERATE_MIXED_PRECISION": ("", "no", "fp8", "fp16", "abc"),
    "ACCELERATE_DYNAMO_BACKEND": ("", "no", "NO", "INDUCTOR", "eager", "abc"),
    "ACCELERATE_DYNAMO_USE_FULLGRAPH": ("abc",),
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": ("", "4", "abc"),
    "ACCELERATE_TORCH_DEVICE": ("", "cpu", "abc"),
    "ACCELERATE_DEBUG_MODE": ("", "true", "abc"),
    "ACCELERATE_USE_MEGATRON_LM": ("true",),
    "ACCELERATE_USE_PARALLELISM_CONFIG": ("true",),
    "OMP_NUM_THREADS": ("", "0", "abc", "-3", "4"),
    "CUDA_VISIBLE_DEVICES": ("", "abc", "7", "-1"),
    "DISTVAE_EXIT_FILE": ("", "/dev/null/x", "/nowhere/x", "/dev/full", "."),
    "HOME": ("", "/dev/null", "/nowhere", "."),
    "COLUMNS": ("", "abc", "0", "-5", "7"),
    "LINES": ("", "abc", "0"),
    "TERM": ("", "abc", "dumb", "xterm-256color"),
    "NO_COLOR": ("", "1"),
    "FORCE_COLOR": ("0",),
    "TZ": ("", "abc"),
    "PYTHONHASHSEED": ("0", "7"),
    "TORCHELASTIC_RUN_ID": ("", "none"),
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A program and its environment."""

    number: int
    program: str  # train, sample or compare
    streams: str
    variables: tuple[tuple[str, str], ...]
    temporary: str  # the kind of TMPDIR

    def __str__(self) -> str:
        words = [f"{name}={value[:24]!r}" for name, value in self.variables]
        words += [self.streams] if self.streams != "files" else []
        words += [f"TMPDIR {self.temporary}"] if self.temporary != "as it is" else []
        return f"{self.number:4} {self.program:<8} {', '.join(words) or 'no disturbance'}"


def cases(seed: int) -> Iterator[Case]:
    """Yield cases without end. A case depends only on the seed and its number."""
    number = 0
    while True:
        chance = random.Random(f"{seed} {number}")
        program = chance.choice(["train", "train", "train", "sample", "compare"])
        kinds = ["streams", "locale", "variables", "temporary"]
        chosen = [chance.choice(kinds)] if number % 3 == 0 else chance.sample(kinds, chance.randint(1, 3))
        variables: dict[str, str] = {}
        if "locale" in chosen:
            variables |= chance.choice(LOCALES)
        if "variables" in chosen:
            count = 1 if number % 3 == 0 else chance.randint(1, 4)
            variables |= {name: chance.choice(VARIABLES[name]) for name in chance.sample(sorted(VARIABLES), count)}
        streams = chance.choice([*STREAMS][1:]) if "streams" in chosen else "files"
        temporary = chance.choice(["long", "longer", "missing", "a file", "empty"]) if "temporary" in chosen else ""
        yield Case(number, program, streams, tuple(variables.items()), temporary or "as it is")
        number += 1


class Surroundings:
    """Runs cases in a folder, and compares them with an undisturbed run."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.config = folder / "tiny.yaml"
        self.config.write_text(TINY.replace("test_size: 20}", f"test_size: 20, cache: {folder / 'cache'}}}"))
        self.reference = folder / "reference"
        done = self._run("train", self.reference, STREAMS["files"], self._environment())
        assert done == 0, (folder / "err").read_text()
        self.scores = self._scores(self.reference)
        self.printed = {}
        for program in ("sample", "compare"):
            assert self._run(program, self.reference, STREAMS["files"], self._environment()) == 0
            self.printed[program] = json.loads((folder / "out").read_text(encoding="utf-8"))

    def carry_out(self, case: Case) -> tuple[int, list[str]]:
        """Run a case. Return its exit code and its faults."""
        run = self.folder / f"run-{case.number}" if case.program == "train" else self.reference
        environment = self._environment() | dict(case.variables) | self._temporary(case.temporary)
        code = self._run(case.program, run, STREAMS[case.streams], environment)
        faults = list(self._faults(case, code, run))
        if case.program == "train" and not faults:
            shutil.rmtree(run, ignore_errors=True)
        return code, faults

    def _faults(self, case: Case, code: int, run: Path) -> Iterator[str]:
        out, err = self._read("out"), self._read("err")
        if "Traceback" in out + err:
            yield "a traceback"
        lost = {"stdout closed", "all closed", "stdout full", "both full"}
        if code == 0 and case.program == "train":
            if self._scores(run) != self.scores:
                yield "different scores"
            if json.loads((run / "status.json").read_text())["state"] != "finished":
                yield "status is not finished"
        elif code == 0:
            if case.streams in lost:
                yield "exit code 0, but the output was lost"
            if (
                case.streams in ("files", "stderr closed", "stderr full")
                and self._parsed(out) != self.printed[case.program]
            ):
                yield "different output"
        elif code == 2:
            heard = case.streams not in (
                "stderr closed",
                "all closed",
                "stderr full",
                "both full",
                "nobody reads either",
            )
            # OpenMP's library warns about OMP_NUM_THREADS when it is loaded, and the program about an exit file that it
            # cannot write, because a job script waits for that.
            beside = ("libgomp:", "distvae: WARNING DISTVAE_EXIT_FILE=")
            err = "".join(line for line in err.splitlines(True) if line.strip() and not line.startswith(beside))
            if heard and not (err.startswith("distvae: ") and err.count("\n") == 1):
                yield "the error is not one line"
            if case.program == "train" and run.exists() and {path.name for path in run.iterdir()} - {"status.json"}:
                yield "half-written files"
            if case.program != "train" and not case.variables and case.streams not in lost:
                yield "refused without a reason in the environment"
        elif not (code == 141 and case.program != "train" and "read" in case.streams):
            yield f"exit code {code}"
        if [path for path in self.folder.rglob(".*") if path.name.startswith(".") and "cache" not in path.parts]:
            yield "hidden files are left"

    def _run(self, program: str, run: Path, streams: str, environment: dict[str, str]) -> int:
        for name in ("out", "err"):
            (self.folder / name).unlink(missing_ok=True)
        command = {
            "train": [str(ROOT / "distvae" / "train.py"), str(self.config), f"run={run}", *SHORT],
            "sample": ["-m", "distvae.cli", "sample", str(run), "--json", "--count", "3"],
            "compare": ["-m", "distvae.cli", "compare", str(run), "--json"],
        }[program]
        line = shlex.join([sys.executable, *command])
        line += " " + streams.format(out=self.folder / "out", err=self.folder / "err")
        work = self.folder / "work"
        work.mkdir(exist_ok=True)
        try:
            # The shell's own messages go to /dev/null.
            return subprocess.run(
                ["bash", "-c", f"{line}; exit ${{PIPESTATUS[0]}}"], env=environment, cwd=work, timeout=PATIENCE,
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            ).returncode  # fmt: skip
        except subprocess.TimeoutExpired:
            return 124

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if name not in VARIABLES or name == "HOME"}
        return kept | {"PYTHONPATH": str(ROOT)}

    def _temporary(self, kind: str) -> dict[str, str]:
        if kind == "as it is":
            return {}
        if kind == "empty":
            return {"TMPDIR": ""}
        path = self.folder / {"long": "l" * 77, "longer": "l" * 200, "missing": "missing", "a file": "file"}[kind]
        if kind == "a file":
            path.touch()
        elif kind != "missing":
            path.mkdir(exist_ok=True)
        return {"TMPDIR": str(path)}

    def _read(self, name: str) -> str:
        path = self.folder / name
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    @staticmethod
    def _parsed(text: str):
        try:
            return json.loads(text)
        except ValueError:
            return None

    @staticmethod
    def _scores(run: Path):
        path = run / "results.json"
        return json.loads(path.read_text())["scores"] if path.exists() else None


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.environments", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    options = parser.parse_args()
    began, ends, bad = time.monotonic(), collections.Counter(), 0
    with tempfile.TemporaryDirectory(prefix="environments-") as folder:
        surroundings = Surroundings(Path(folder))
        for case in cases(options.seed):
            if case.number < options.first:
                continue
            if case.number == options.first + options.count:
                break
            code, faults = surroundings.carry_out(case)
            ends[case.program, code] += 1
            bad += bool(faults)
            told = f"   FAULT: {'; '.join(faults)}" if faults else ""
            print(f"{time.monotonic() - began:6.0f} s  {code:3} {case}{told}", flush=True)
            if faults:
                print(surroundings._read("err")[-1500:], flush=True)
    for (program, code), count in sorted(ends.items()):
        print(f"{program:<8} exit code {code:<3} {count:4}")
    print(f"{options.count} environments, seed {options.seed}: {bad} with a fault")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
