"""The training program with places at which it waits for a campaign to kill it.

``victim.py CONFIG [key=value …]`` replaces distvae/train.py; its orders are JSON in FAULTS_ORDERS. ``victim.py
nursery`` imports everything once and forks runs: it answers each line of JSON with a line of JSON.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import importlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from distvae import train
from distvae.evaluation import scoring
from distvae.runs import attempts, checkpoints, resume
from distvae.training import preparation
from distvae.training.step import TrainStep
from distvae.training.trainer import Trainer
from distvae.training.writer import RunWriter
from tests.distributed.forked import LATE

# The system calls of a save, which the standard library makes too.
CALLS = ("fsync", "rename", "replace", "mkdir", "symlink", "unlink", "rmdir")

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Orders:
    """Where a process announces itself and waits."""

    folder: str  # of `here` and `go`
    place: str | None = None
    rank: int = 0
    after: int = 0  # the step from which the place counts
    skip: int = 0  # number of visits to skip first


class Places:
    """Notices when a process has reached its place.

    The process stops there once: it writes ``here``, and continues when ``go`` exists.
    """

    def __init__(self, orders: Orders, rank: int):
        self._orders, self._folder = orders, Path(orders.folder)
        self._waits = orders.place is not None and orders.rank == rank
        self._skip = orders.skip
        self._lock, self._local = threading.Lock(), threading.local()
        self.step = 0  # the current or the last one
        self.beginning = False  # an attempt takes over the files of the previous one

    def visit(self, place: str | None, what: str, prepare: Callable[[], object] = lambda: None) -> None:
        """Pass a place, and wait there if it is the ordered one. ``prepare`` first leaves what a kill would leave."""
        with self._lock:
            if not self._waits or place != self._orders.place or self.step < self._orders.after:
                return
            if self._skip:
                self._skip -= 1
                return
            self._waits = False
        prepare()
        new = self._folder / "new"
        with open(new, "w", encoding="utf-8") as file:
            json.dump({"process": os.getpid(), "step": self.step, "what": what}, file)
        _rename(new, self._folder / "here")
        while not (self._folder / "go").exists():
            time.sleep(0.002)

    def within(self, function: Callable, name: Callable[..., str]) -> Callable:
        """Wrap a function: its file-system calls become places called ``name(*arguments)``, except in an outer one."""

        @functools.wraps(function)
        def inside(*args, **kwargs):
            outer = self._inside
            self._local.place = outer or name(*args)
            try:
                result = function(*args, **kwargs)
                self.visit(self._inside, f"after {function.__name__}")
                return result
            finally:
                self._local.place = outer

        return inside

    def before(self, function: Callable) -> Callable:
        """Wrap a function: a call within a place becomes a place to wait."""

        @functools.wraps(function)
        def call(*args, **kwargs):
            if self._inside:
                self.visit(self._inside, f"before {function.__name__} {args[0]}")
            return function(*args, **kwargs)

        return call

    @property
    def _inside(self) -> str | None:
        return getattr(self._local, "place", None)

    def install(self) -> None:
        """Insert the places into the program."""
        writer = RunWriter
        for name in CALLS:
            setattr(os, name, self.before(getattr(os, name)))
        self._tear_files()
        resume.open_run = self.within(resume.open_run, lambda *_: "start-up")
        preparation.note = self.within(preparation.note, lambda *_: "start-up")
        writer.begin = self._begin(self.within(writer.begin, lambda *_: "take-over"))
        checkpoints.save_checkpoint = self.within(
            checkpoints.save_checkpoint, lambda *_: "take-over" if self.beginning else "save"
        )
        checkpoints.export = self.within(checkpoints.export, lambda folder, *_: f"export {folder.name}")
        writer.record = self.within(writer.record, lambda *_: "record")
        writer.conclude = self.within(writer.conclude, lambda *_: "end")
        attempts.Lease.release = self.within(attempts.Lease.release, lambda *_: "end")
        self._interrupt_training(Trainer)

    def _begin(self, function: Callable) -> Callable:
        def begin(writer, resumed, vocabulary):
            self.beginning = True
            function(writer, resumed, vocabulary)
            self.beginning, self.step = False, 0 if resumed is None else resumed.state.step

        return begin

    def _tear_files(self) -> None:
        """Write half of a file before its place."""
        save_file, write_text, opened = checkpoints.save_file, Path.write_text, Path.open

        def half_saved(tensors, path):
            def prepare():
                save_file(tensors, path)
                os.truncate(path, path.stat().st_size // 2)

            self.visit(self._inside, f"within save_file {path}", prepare)
            save_file(tensors, path)

        def half_written(path, text, **options):
            self.visit(
                self._inside, f"within write_text {path}", lambda: write_text(path, text[: len(text) // 2], **options)
            )
            return write_text(path, text, **options)

        def half_appended(path, mode="r", *args, **kwargs):
            file = opened(path, mode, *args, **kwargs)
            if mode not in ("a", "x") or self._inside is None:
                return file
            write = file.write

            def torn(text):
                file.write, rest = write, [text]

                def prepare():
                    write(text[: len(text) // 2])
                    file.flush()
                    rest[:] = [text[len(text) // 2 :]]

                self.visit(self._inside, f"within write {path}", prepare)
                return write(rest[0])

            file.write = torn
            return file

        checkpoints.save_file, Path.write_text, Path.open = half_saved, half_written, half_appended

    def _interrupt_training(self, trainer: type) -> None:
        step, run_stage, score_batch = TrainStep.__call__, trainer._run_stage, scoring._score_batch

        training = []

        def before_step(train_step, *args):
            self.step = training[0].step
            self.visit("step", f"before step {self.step}")
            return step(train_step, *args)

        def around_stage(trainer, stage, resumed):
            training[:] = [trainer]
            if stage.name == "train" and resumed is None:
                self.visit("stage change", "before the second stage")
            run_stage(trainer, stage, resumed)
            if stage.name == "pretrain":
                self.visit("stage change", "after the first stage")

        def before_batch(model, batch, numbers, settings, importance_samples, device):
            self.visit("evaluation" if importance_samples else "validation", "before a batch")
            return score_batch(model, batch, numbers, settings, importance_samples, device)

        TrainStep.__call__, trainer._run_stage, scoring._score_batch = before_step, around_stage, before_batch


_rename = os.rename  # before it is wrapped


def run(orders: Orders, rank: int, arguments: list[str]) -> int:
    """Run the program with its places."""
    Places(orders, rank).install()
    return train.main(arguments)


# -- The nursery -------------------------------------------------------------------------------------------------------


def nursery() -> None:
    """Answer requests on standard input.

    ``{"processes": n, "environment": {}, "orders": {}, "arguments": [], "log": file, "port": n}`` forks n processes as
    a group and returns their ids; ``null`` returns the exit codes of processes that have ended since the last one.
    """
    answers = os.dup(1)
    os.dup2(2, 1)  # libraries print
    for name in ("deepspeed", *LATE):
        importlib.import_module(name)
    torch.set_num_threads(1)
    gc.freeze()  # keeps these modules out of the runs' garbage collections
    for line in sys.stdin:
        request = json.loads(line)
        answer = _reap() if request is None else [_bear(request, rank) for rank in range(request["processes"])]
        os.write(answers, f"{json.dumps(answer)}\n".encode())


_group = 0


def _bear(request: dict, rank: int) -> int:
    global _group
    child = os.fork()
    if child:
        _group = child if rank == 0 else _group
        os.setpgid(child, _group)
        return child
    os.setpgid(0, 0 if rank == 0 else _group)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # end with the campaign
    log, nothing = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND), os.open(os.devnull, os.O_RDONLY)
    for descriptor, of in ((0, nothing), (1, log), (2, log)):
        os.dup2(of, descriptor)
    size = str(request["processes"])
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(request["port"]), **request["environment"]}
    sys.exit(run(Orders(**request["orders"]), rank, request["arguments"]))


def _reap() -> dict[int, int]:
    codes = {}
    while True:
        try:
            child, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return codes
        if child == 0:
            return codes
        codes[child] = os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    if sys.argv[1] == "nursery":
        nursery()
    else:
        sys.exit(run(Orders(**json.loads(os.environ["FAULTS_ORDERS"])), int(os.environ.get("RANK", "0")), sys.argv[1:]))
