"""Starts Ray, or joins a running cluster, and watches the processes of a cluster that this process started."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import ray

from distvae.runs.attempts import living
from distvae.system.cores import usable_cores


def connect(on_loss: Callable[[str], None], closing: threading.Event) -> None:
    """Join the cluster that RAY_ADDRESS names, or start one on this machine and watch over it.

    Args:
        on_loss: called from a thread with the name of a process of Ray that has died.
        closing: set before Ray is shut down.
    """
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
        return
    # Each sweep has its own cluster, so that two sweeps on a machine do not share one. RAY_TMPDIR names its temporary
    # folder, see `sweeps.ray.scratch`.
    context = ray.init(
        address="local",
        num_cpus=usable_cores(),
        include_dashboard=True,
        dashboard_host="127.0.0.1",
        dashboard_port=_free_port(),
        object_store_memory=200 * 2**20,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    token = os.environ["RAY_AUTH_TOKEN_PATH"]
    print(f"Ray dashboard: http://{context.dashboard_url} (token in {token})", flush=True)
    RayWatch(on_loss, closing).start()


class RayWatch(threading.Thread):
    """Watches the processes of the cluster that this process started, because Ray waits forever for some that died.

    Args:
        on_loss: called with the name of a process that has died.
        closing: set before Ray is shut down.
    """

    # Ray's own processes. No public call of Ray's tells whether they are alive.
    NAMES = ("gcs_server", "raylet")

    def __init__(self, on_loss: Callable[[str], None], closing: threading.Event):
        super().__init__(name="Ray watch", daemon=True)
        self._on_loss, self._closing = on_loss, closing
        found = {process: living(process) for process in descendants()}
        self.processes = {process: one for process, one in found.items() if one is not None and one[0] in self.NAMES}

    def run(self) -> None:
        while not self._closing.wait(1.0):
            for process, one in self.processes.items():
                if living(process) != one and not self._closing.is_set():
                    self._on_loss(one[0])
                    return


def kill_descendants() -> None:
    """Kill all processes that this one started, and their descendants."""
    for process in descendants():
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def descendants() -> set[int]:
    """Return the living processes that this one started, and their descendants."""
    every = {}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(PermissionError):  # another user's
            every[int(path.name)] = living(int(path.name))
    found: set[int] = set()
    more = {os.getpid()}
    while more:
        more = {process for process, one in every.items() if one is not None and one[1] in more}
        found |= more
    return found


def failure_reason(error: BaseException | None) -> str:
    """Return the last line of one of Ray's errors, which says why a trial or another task failed."""
    lines = [line.strip() for line in str(error or "").splitlines() if line.strip()]
    return lines[-1][:500] if lines else "its process ended without an error message"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
