"""Detect a process of a run that hangs, and name it.

A thread of each process increments a counter in the store through which the processes have found each other. Rank 0
watches the counters of all others, and they watch rank 0's. The counter of a busy process rises; that of a process that
is stopped, or whose machine is, does not. So a slow rank may keep the others waiting, and training sends nothing extra.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Protocol

from distvae.system.errors import WAIT, one_line

# The most seconds between two counts.
BEAT = 5.0

# Added to the counter of a process that has left the run.
LEFT = 1 << 40


class Store(Protocol):
    """The methods of torch's ``Store`` that are used here."""

    def add(self, key: str, amount: int) -> int: ...
    def set(self, key: str, value: str) -> None: ...
    def get(self, key: str) -> bytes: ...
    def check(self, keys: list[str]) -> bool: ...
    def clone(self) -> Store: ...


class Heartbeat:
    """The heartbeat of this process, and its watch over others.

    Args:
        store: the store of the process group.
        rank: this process's rank.
        world_size: number of processes.
        patience: seconds without a heartbeat after which a process is considered hung.
    """

    def __init__(self, store: Store, rank: int, world_size: int, patience: float):
        self._rank, self._patience = rank, patience
        self._interval = min(BEAT, patience / 4)
        # Only the main process watches all, so that the store gets few requests.
        self._watched = range(1, world_size) if rank == 0 else range(1)
        # Called with the reason before this process exits because another one hangs.
        self.on_loss: Callable[[str], None] = lambda reason: None
        self._store = store.clone()  # a connection serves one thread at a time
        self._store.set(f"distvae/who/{rank}", f"process {os.getpid()} of {socket.gethostname()}")
        self._store.add(f"distvae/beat/{rank}", 1)
        self._names: dict[int, str] = {}
        self._counts: dict[int, int] = {}  # replaced with each answer of the store
        self._left = threading.Event()
        self._beating = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._watching = threading.Thread(target=self._watch, name="watch over heartbeats", daemon=True)
        self._beating.start()
        self._watching.start()

    def close(self) -> None:
        """Leave the run, so that nobody waits for another heartbeat."""
        self._left.set()
        self._watching.join()
        self._beating.join(WAIT)  # the store may have stopped answering

    def _beat(self) -> None:
        """Count up, and read the watched counters. Blocks for as long as the store is stopped."""
        with contextlib.suppress(RuntimeError):  # the store ended with its process, which ends the run too
            while not self._left.wait(self._interval):
                self._store.add(f"distvae/beat/{self._rank}", 1)
                for rank in self._watched:
                    if rank not in self._names and self._store.check([f"distvae/who/{rank}"]):
                        self._names[rank] = self._store.get(f"distvae/who/{rank}").decode()
                self._counts = {rank: self._store.add(f"distvae/beat/{rank}", 0) for rank in self._watched}
            self._store.add(f"distvae/beat/{self._rank}", LEFT)

    def _watch(self) -> None:
        silent = dict.fromkeys(self._watched, 0.0)
        seen, unanswered, looked = self._counts, 0.0, time.monotonic()
        while not self._left.wait(self._interval) and self._beating.is_alive():
            # If this process itself was stopped, as in a suspended job, so were the others.
            elapsed, looked = min(time.monotonic() - looked, 2 * self._interval), time.monotonic()
            counts = self._counts
            unanswered = unanswered + elapsed if counts is seen else 0.0
            for rank, count in counts.items():
                lives = count >= LEFT or (counts is not seen and count != seen.get(rank))
                silent[rank] = 0.0 if lives else silent[rank] + elapsed
                if silent[rank] > self._patience and not unanswered:
                    self._end(f"rank {rank}", rank)
            if unanswered > self._patience:
                # torch's launchers host the store themselves.
                launched = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
                self._end("the launcher of rank 0" if launched else "rank 0", 0)
            seen = counts

    def _end(self, what: str, rank: int) -> None:
        """Exit this process at once, because its main thread may wait where nothing can wake it."""
        if self._rank > 1:
            time.sleep(WAIT)  # rank 1 reports it, and launchers end all processes when one ends
        who = f" ({self._names[rank]})" if rank in self._names else ""
        reason = one_line(
            f"{what}{who} has given no sign of life for {self._patience / 60:g} minutes"
            " (communication.timeout_minutes): it was stopped, or its machine hangs; end it, and rerun the same command"
            " to resume from the last checkpoint"
        )
        if self._left.is_set():
            return
        with contextlib.suppress(Exception):
            self.on_loss(reason)
        print(f"distvae: {reason}", file=sys.stderr, flush=True)
        os._exit(1)
