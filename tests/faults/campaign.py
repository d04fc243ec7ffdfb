"""Kill runs and resume them: they must end like a run that was never interrupted.

A chain is one run: it is started, killed, started again by the same command, …, and finally left to finish. Its files
are compared with those of an undisturbed run of the same settings and processes.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

from tensorboard.backend.event_processing import event_accumulator, plugin_event_accumulator

from distvae.runs import checkpoints
from distvae.runs.records import read_metrics
from distvae.system.errors import UserError
from distvae.system.files import MANIFEST, read_json, sha256, verify
from distvae.system.signals import INTERRUPTED
from tests.compare import timeless
from tests.conftest import PATIENCE, ROOT, free_port, launcher, wait_until
from tests.faults.victim import Orders

VICTIM = ROOT / "tests" / "faults" / "victim.py"

# Everything that a run may have to resume: two stages, γ updates within epochs, decays that restore the best weights,
# dropout and word dropout, a partial batch of one sentence, a checkpoint every three steps.
CONFIG = """
data: {path: captions, train_size: 81, valid_size: 20, test_size: 20, cache: CACHE}
model:
  {embedding_size: 12, hidden_size: 16, latent_size: 4, init_range: 0.3, embedding_init_range: 1.0, word_dropout: 0.2}
seed: 4
optimizer: {batch_size: 16, learning_rate: 4.0, clip_norm: 1.0}
pretrain: {max_epochs: 3}
train: {max_epochs: 9}
plateau: {patience: 1, max_decays: 2}
kl: {anneal_epochs: 2, target_rate: 0.3, threshold: 0.5, multiplier: 0.5, every_steps: 2}
checkpoint: {every_steps: 3}
evaluation: {importance_samples: 10, samples: 2, batch_size: 4}
cpu_threads: 1
"""
VARIANTS = {
    "sgd": (),
    # Optimizer moments, and the gradients of two micro-batches.
    "adamw": (
        "optimizer.name=adamw",
        "optimizer.learning_rate=0.04",
        "optimizer.warmup_steps=9",
        "optimizer.accumulation_steps=2",
    ),
}
# A learning rate so small that sums in another order stay close.
VARIANTS_BY_TURNS = {
    "calm": (
        "optimizer.batch_size=8", "optimizer.learning_rate=0.7", "kl.target_rate=2.0", "kl.threshold=0.2",
        "kl.multiplier=0.7", "kl.every_steps=4",
    ),
}  # fmt: skip

# Seconds in which a launcher forwards a signal.
FORWARDED = 0.5

# A kill at any time happens up to this many seconds after a step.
AFTERWARDS = 0.5


@dataclass(frozen=True)
class Way:
    """The engine and the number of processes of a run."""

    engine: str
    processes: int

    @property
    def environment(self) -> dict[str, str]:
        """The variables that the launcher would set."""
        zero = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}
        return zero if self.engine == "ZeRO-2" else {}

    @property
    def yaml(self) -> str | None:
        """The launcher's file in launch/accelerate/; None: its options suffice."""
        return "zero2" if self.engine == "ZeRO-2" else None

    def __str__(self) -> str:
        return f"{self.engine} ×{self.processes}"


ALONE = Way("alone", 1)
WAYS = [ALONE, Way("DDP", 2), Way("DDP", 3), Way("ZeRO-2", 1), Way("ZeRO-2", 2)]

# The signals and their targets.
KILLS = (
    "KILL all", "KILL one rank", "KILL launcher", "TERM all", "TERM one rank", "TERM launcher", "INT launcher",
)  # fmt: skip
AT_RANDOM = "any time"


@dataclass(frozen=True)
class Place:
    """A place of victim.py. Where in the run it is visited is drawn between two shares of the run's steps."""

    visits: int  # how often a process passes it there, roughly
    first: float = 0.0
    last: float = 1.0
    every_rank: bool = False

    def at(self, position: float) -> float:
        """Return the share of the run's steps."""
        return self.first + position * (self.last - self.first)


def places(change: float) -> dict[str, Place]:
    """Return the places of a run whose second stage begins at this share of its steps."""
    return {
        AT_RANDOM: Place(1, every_rank=True),
        "step": Place(1, every_rank=True),
        "save": Place(25),
        "validation": Place(3, last=0.9, every_rank=True),
        "record": Place(4, last=0.9),
        "start-up": Place(19),
        "take-over": Place(50),
        "export pretrained": Place(13, change, change),
        "stage change": Place(2, change, change),
        "export best": Place(13, 0.4, 1.0),
        "evaluation": Place(3, 1.0, every_rank=True),
        "end": Place(14, 1.0),
    }


PLACES = tuple(places(0))
# Places before the first step of an attempt; the others come after it.
EARLY = ("start-up", "take-over")


@dataclass(frozen=True)
class Kill:
    """A signal to a job, and where it is sent."""

    what: str
    place: str
    rank: int  # announces the place; the target of "one rank"
    position: float  # of the place, as a share of the steps
    visit: float  # of the place, as a share of its visits

    @property
    def signal(self) -> signal.Signals:
        return signal.Signals[f"SIG{self.what.split()[0]}"]

    @property
    def target(self) -> str:
        return self.what.split(maxsplit=1)[1]


@dataclass(frozen=True)
class Chain:
    """A run and its kills."""

    number: int
    way: Way
    variant: str
    launched: bool  # by accelerate's launcher; False: forked
    kills: tuple[Kill, ...]


@dataclass
class KillOutcome:
    """The result of a kill."""

    chain: Chain
    kill: Kill
    faults: list[str] = field(default_factory=list)  # found right after the kill
    resumed: bool = False
    equal: bool = False


# -- Processes ---------------------------------------------------------------------------------------------------------


def _environment(**more: str) -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    left_out = ("SLURM_", "DISTVAE_", "FAULTS_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(left_out)}
    return {**kept, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **more}


class Nursery:
    """The process from which jobs are forked."""

    def __init__(self):
        self._process = subprocess.Popen(
            [sys.executable, str(VICTIM), "nursery"],
            env=_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._codes: dict[int, int] = {}

    def bear(self, **request) -> list[int]:
        """Fork processes and return their ids."""
        return self._ask(request)

    def codes(self) -> dict[int, int]:
        """Return the exit codes of processes that have ended."""
        self._codes |= {int(process): code for process, code in self._ask(None).items()}
        return self._codes

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()

    def _ask(self, request):
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


class Job:
    """One attempt of a run.

    Args:
        folder: holds the attempt's log, exit code and orders.
        nursery: forks the processes; None: accelerate's launcher starts them.
    """

    def __init__(
        self, way: Way, arguments: list[str], folder: Path, nursery: Nursery | None, orders: dict | None = None,
        environment: dict[str, str] | None = None,
    ):  # fmt: skip
        folder.mkdir(parents=True)
        self._folder, self._nursery = folder, nursery
        orders = asdict(Orders(str(folder), **(orders or {})))
        environment = {"DISTVAE_EXIT_FILE": str(folder / "code"), **(environment or {})}
        self._launcher, self._mark = None, uuid.uuid4().hex
        if nursery is not None:
            self.ranks = nursery.bear(
                processes=way.processes, environment=environment | way.environment, orders=orders, arguments=arguments,
                log=str(folder / "log"), port=free_port(),
            )  # fmt: skip
        else:
            environment = _environment(
                FAULTS_ORDERS=json.dumps(orders), FAULTS_JOB=self._mark, PYTHONFAULTHANDLER="0", **environment
            )
            with (folder / "log").open("w") as log:
                self._launcher = subprocess.Popen(
                    [*launcher([VICTIM], way.processes, way.yaml), *arguments],
                    env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True,
                )  # fmt: skip

    @property
    def log(self) -> str:
        """The output of its processes."""
        return (self._folder / "log").read_text(errors="replace") if (self._folder / "log").exists() else ""

    @property
    def code(self) -> int | None:
        """The exit code of the first process's program, once it has ended."""
        path = self._folder / "code"
        return int(path.read_text()) if path.exists() and path.read_text() else None

    @property
    def codes(self) -> list[int | None]:
        """The exit codes of its processes, or of its launcher."""
        if self._launcher is not None:
            return [self._launcher.poll()]
        codes = self._nursery.codes()
        return [codes.get(process) for process in self.ranks]

    def living(self) -> list[int]:
        """Return its living processes, with all descendants."""
        started = [self._launcher.pid] if self._nursery is None else self.ranks
        # A process some of whose threads still run looks dead, but has no exit code yet.
        ending = [process for process, code in zip(started, self.codes, strict=True) if code is None]
        everything = map(int, filter(str.isdecimal, os.listdir("/proc")))
        return list({*ending, *(process for process in everything if self._owns(process))})

    def _owns(self, process: int) -> bool:
        try:
            state, _, group = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[:3]
            if state in "ZX":
                return False
            if self._launcher is None:
                return int(group) == self.ranks[0]
            return f"FAULTS_JOB={self._mark}".encode() in Path(f"/proc/{process}/environ").read_bytes()
        except OSError:
            return False

    def come(self, name: str) -> dict | None:
        """Wait for an announcement and return it; None if the job ended before.

        Raises:
            AssertionError: neither happened.
        """
        path = self._folder / name
        wait_until(lambda: path.exists() or not self.living(), f"{path} is there", lambda: self.log, every=0.01)
        return json.loads(path.read_text() or "{}") if path.exists() else None

    def send(self, number: signal.Signals, target: str, process: int | None = None) -> None:
        """Send a signal to all, to the launcher, or to one process."""
        told = {"all": self.living, "launcher": lambda: [self._launcher.pid], "one rank": lambda: [process]}[target]()
        for each in told:
            with contextlib.suppress(ProcessLookupError):
                os.kill(each, number)

    def go(self) -> None:
        """Let the process that has announced its place continue."""
        (self._folder / "go").touch()

    def wait(self) -> list[int]:
        """Wait for the end of all processes; kill and return those that are left."""
        end = time.monotonic() + PATIENCE
        while living := self.living():
            if time.monotonic() > end:
                self.send(signal.SIGKILL, "all")
                return living
            time.sleep(0.01)
        return []


# -- The files of a run ------------------------------------------------------------------------------------------------


def remains(run: Path) -> dict[str, object]:
    """Return the contents of a finished run's files by name, without times."""
    found = {"status": read_json(run / "status.json")["state"]}
    found["results"] = timeless(read_json(run / "results.json"))
    lines = (run / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    counting = [json.loads(json.dumps(asdict(record))) for record in read_metrics(run)]
    assert counting == rows, "metrics.jsonl has superseded lines"
    for row in rows:
        found[f"line {row['stage']} {row['epoch']}"] = timeless(row)
    found["lines"] = [(row["stage"], row["epoch"], row["step"]) for row in rows]
    found["best weights"] = sha256(run / "best" / "model.safetensors")
    found["pretrained weights"] = sha256(run / "pretrained" / "model.safetensors")
    last = checkpoints.newest_checkpoint(run)
    for path in sorted(last.glob("*.safetensors")):
        found[f"last checkpoint, {path.name}"] = sha256(path)
    found["last checkpoint, state"] = timeless(read_json(last / "state.json"))
    return found | tensorboard(run)


def tensorboard(run: Path) -> dict[str, object]:
    """Return the curves and texts that TensorBoard shows, without those that depend on time or memory."""
    folder = str(run / "tensorboard")
    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # silence its notes about what it leaves out
    numbers = event_accumulator.EventAccumulator(folder, size_guidance={"scalars": 0}).Reload()
    found = {
        f"TensorBoard {tag}": [(event.step, event.value) for event in numbers.Scalars(tag)]
        for tag in numbers.Tags()["scalars"]
        if not tag.startswith(("throughput/", "memory/", "step/"))
    }
    # TensorBoard itself reads texts with this one; the other does not purge them.
    texts = plugin_event_accumulator.EventAccumulator(folder, size_guidance={"tensors": 0}).Reload()
    for tag in texts.Tags()["tensors"]:
        if tag.endswith("/text_summary"):
            events = texts.Tensors(tag)
            found[f"TensorBoard {tag}"] = [(event.step, event.tensor_proto.string_val[0]) for event in events]
    return found


def differences(reference: dict[str, object], run: Path) -> list[str]:
    """Return how a run's files differ from the reference's."""
    try:
        found = remains(run)
    except (OSError, UserError, AssertionError, ValueError, KeyError) as error:
        return [f"cannot be compared: {error!r}"]
    names = [name for name in [*reference, *found] if reference.get(name) != found.get(name)]
    return [f"{name}: {found.get(name)}, not {reference.get(name)}" for name in dict.fromkeys(names)]


def _unwhole(run: Path) -> list[str]:
    """Return the checkpoints and exports that are not whole."""
    faults = []
    for folder in [*checkpoints.list_checkpoints(run), *(run / name for name in ("best", "pretrained"))]:
        if folder.is_dir():
            try:
                verify(folder, "model.safetensors")
            except UserError as error:
                faults.append(f"not whole: {error}")
    return faults


def _last_step(run: Path) -> int:
    """Return the step of the newest checkpoint; 0 if there is none."""
    found = checkpoints.list_checkpoints(run)
    return read_json(found[-1] / MANIFEST)["step"] if found else 0


# -- The campaign ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reference:
    """An undisturbed run."""

    remains: dict[str, object]
    steps: int
    change: float  # share of the steps at which the second stage begins


class Campaign:
    """Carries out chains in a folder.

    Args:
        tell: receives lines of progress.
    """

    def __init__(self, folder: Path, tell: Callable[[str], None] = print):
        self.folder, self._tell = folder, tell
        self._config = folder / "config.yaml"
        self._config.write_text(CONFIG.replace("CACHE", str(folder / "cache")))
        self._references: dict[tuple[Way, str], Reference] = {}

    @cached_property
    def nursery(self) -> Nursery:
        return Nursery()

    def __enter__(self) -> Campaign:
        return self

    def __exit__(self, *exception) -> None:
        self.nursery.close()

    def arguments(self, variant: str, run: Path) -> list[str]:
        """Return the program's arguments."""
        return [str(self._config), *(VARIANTS | VARIANTS_BY_TURNS)[variant], f"run={run}"]

    def job(
        self, way: Way, variant: str, run: Path, launched: bool = False, orders: dict | None = None, **environment: str
    ) -> Job:
        """Start or resume a run."""
        folder = run.with_name(f"{run.name}-starts") / uuid.uuid4().hex
        return Job(
            way, self.arguments(variant, run), folder, None if launched else self.nursery, orders, environment
        )  # fmt: skip

    def reference(self, way: Way, variant: str) -> Reference:
        """Return the undisturbed run, which is trained once."""
        if (way, variant) not in self._references:
            run = self.run_of(way, variant)
            job = self.job(way, variant, run)
            began = time.monotonic()
            left = job.wait()
            assert not left, f"{run} did not end"
            assert set(job.codes) == {0}, job.log
            rows = read_metrics(run)
            stage_change = max(row.step for row in rows if row.stage == "pretrain")
            steps = rows[-1].step
            self._references[way, variant] = Reference(remains(run), steps, stage_change / steps)
            self._tell(f"reference {way} {variant}: {steps} steps in {time.monotonic() - began:.1f} s")
        return self._references[way, variant]

    def run_of(self, way: Way, variant: str) -> Path:
        """Return the folder of a reference run."""
        return self.folder / f"reference-{way.engine}-{way.processes}-{variant}"

    def carry_out(self, chain: Chain) -> list[KillOutcome]:
        """Kill a run as the chain orders, let it finish, and compare. A kill that came too late does not count."""
        reference = self.reference(chain.way, chain.variant)
        run = self.folder / f"chain-{chain.number:03d}"
        outcomes: list[KillOutcome] = []
        for kill in chain.kills:
            began = time.monotonic()
            outcome = self.kill(chain, kill, run, reference)
            if outcome is None:
                self._tell(f"chain {chain.number}: finished before {kill.what} at {kill.place}")
                break
            outcomes.append(outcome)
            said = "".join(f"; {fault}" for fault in outcome.faults)
            launched = ", launched" if chain.launched else ""
            self._tell(
                f"chain {chain.number}: {chain.way} {chain.variant}{launched}: {kill.what} at {kill.place}, rank"
                f" {kill.rank}; saved {_last_step(run)} of {reference.steps};"
                f" {time.monotonic() - began:.1f} s{said}"
            )
        last = self.job(chain.way, chain.variant, run, chain.launched)
        left = last.wait()
        ended = not left and set(last.codes) == {0}
        wrong = differences(reference.remains, run) if ended else [f"exit codes {last.codes}: {last.log[-2000:]}"]
        for outcome in outcomes:
            outcome.resumed, outcome.equal = ended, not wrong
        for line in wrong:
            self._tell(f"chain {chain.number}: DIFFERS: {line[:1000]}")
        if wrong or any(outcome.faults for outcome in outcomes):
            self._tell(f"chain {chain.number}: kept in {run} and {run}-starts")
        else:
            shutil.rmtree(run)
            shutil.rmtree(f"{run}-starts")
        return outcomes

    def kill(self, chain: Chain, kill: Kill, run: Path, reference: Reference) -> KillOutcome | None:
        """Start a run, kill it, and check what is left. Return None if it ended before the kill."""
        outcome = KillOutcome(chain, kill)
        place = places(reference.change)[kill.place]
        at_random = kill.place == AT_RANDOM
        position = place.at(kill.position)
        after = 0 if kill.place in EARLY else round(position * reference.steps)
        # A run without a checkpoint takes over little.
        visits = 9 if kill.place == "take-over" and not checkpoints.list_checkpoints(run) else place.visits
        orders = {"place": kill.place, "rank": kill.rank, "after": after, "skip": int(kill.visit * visits)}
        if at_random:
            orders |= {"place": "step", "skip": 0}
        saved = _last_step(run)
        job = self.job(chain.way, chain.variant, run, chain.launched, orders=orders)
        if at_random:
            job.go()
        try:
            here = job.come("here")
        except AssertionError as error:
            job.send(signal.SIGKILL, "all")
            job.wait()
            outcome.faults.append(str(error))
            return outcome
        if here is not None and at_random:
            time.sleep(kill.visit * AFTERWARDS)
        if here is None or not job.living():
            job.wait()
            return None
        job.send(kill.signal, kill.target, here["process"])
        if kill.signal != signal.SIGKILL or kill.target == "launcher":
            time.sleep(FORWARDED if kill.target == "launcher" else 0.02)
            job.go()
        if left := job.wait():
            outcome.faults.append(f"processes {left} survived")
        if (run / "results.json").exists() and kill.place != "end":
            return None  # it finished before the signal took effect
        outcome.faults += [*_unwhole(run), *_wrong_end(job, kill, chain, run, max(here["step"], saved))]
        return outcome


def _wrong_end(job: Job, kill: Kill, chain: Chain, run: Path, step: int) -> Iterator[str]:
    """Yield what is wrong with the end of a job that was killed at ``step``."""
    codes = job.codes
    if kill.signal == signal.SIGKILL and kill.target != "launcher":
        if 0 in codes and kill.place != "end":
            yield f"exit codes {codes}"
        if kill.target == "one rank" and kill.place != AT_RANDOM and _last_step(run) > step:
            yield f"saved step {_last_step(run)} after rank {kill.rank} died at step {step}"
        return
    # Before the first step there is nothing to save, and a process may notice its peer's end before its own signal.
    if kill.place in EARLY:
        if 0 in codes:
            yield f"exit codes {codes}"
        return
    if (run / "results.json").exists():
        return
    if job.code != INTERRUPTED:
        yield f"the program ended with {job.code}: {job.log[-1500:]}"
        return
    if not chain.launched and set(codes) != {INTERRUPTED}:
        yield f"exit codes {codes}"
    if 0 in codes:
        yield "the launcher ended with 0"
    if read_json(run / "status.json")["state"] != "interrupted":
        yield f"status {read_json(run / 'status.json')}"
    said = re.search(r"interrupted at step ([\d,]+) by", job.log)
    if said is None:
        yield f"no message about the interruption: {job.log[-500:]}"
    elif int(said[1].replace(",", "")) != _last_step(run):
        yield f"interrupted at step {said[1]}, but saved step {_last_step(run)}"


# -- Random chains -----------------------------------------------------------------------------------------------------


class Deck:
    """Draws all items equally often, in random order."""

    def __init__(self, items: list, rng: random.Random):
        self._items, self._rng, self._left = items, rng, []

    def draw(self, fits: Callable[[object], bool] = lambda _: True):
        """Return the next item that fits."""
        for _ in range(2):
            for i, item in enumerate(self._left):
                if fits(item):
                    return self._left.pop(i)
            self._left += self._rng.sample(self._items, len(self._items))
        raise AssertionError("nothing fits")


def chains(seed: int, ways: list[Way], change: float = 0.26) -> Iterator[Chain]:
    """Yield chains without end."""
    rng = random.Random(seed)
    kinds = Deck(["KILL all", "KILL all", "KILL one rank", "KILL one rank", "TERM all", "TERM one rank", *KILLS], rng)
    where = Deck([*PLACES, AT_RANDOM, "step", "save", "save"], rng)
    of_ways = Deck(ways, rng)
    variants, lengths = Deck(list(VARIANTS), rng), Deck([1, 2, 2, 3, 4], rng)
    known = places(change)
    number = 0
    while True:
        number += 1
        way, variant = of_ways.draw(), variants.draw()
        first = kinds.draw(lambda kind, way=way: way.processes > 1 or "one rank" not in kind)
        launched = "launcher" in first or rng.random() < 0.1

        def fits(kind, way=way, launched=launched):
            return ("launcher" not in kind or launched) and ("one rank" not in kind or way.processes > 1)

        length = min(lengths.draw(), 2 if launched else 4)  # a launcher starts slowly
        what = [first, *(kinds.draw(fits) for _ in range(length - 1))]
        spots = [where.draw() for _ in what]
        kills = [
            Kill(kind, spot, rng.randrange(way.processes) if known[spot].every_rank else 0, rng.random(), rng.random())
            for kind, spot in zip(what, spots, strict=True)
        ]
        # In the order in which a run reaches them.
        kills.sort(key=lambda kill: known[kill.place].at(kill.position))
        yield Chain(number, way, variant, launched, tuple(kills))
