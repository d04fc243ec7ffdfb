"""Steps that several processes take, with a progress bar."""

from __future__ import annotations

import multiprocessing
import signal
import sys
from collections.abc import Callable, Collection
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from distvae.system.errors import UserError, printable
from distvae.system.plural import counted
from distvae.system.signals import SIGNALS, signal_of_parents_death

T = TypeVar("T")


class KilledError(UserError):
    """A process was killed. What it has finished is of use to the next attempt."""


def announce(title: str, count: int, processes: int) -> None:
    """Print what begins, unless a progress bar will show it."""
    from datasets import are_progress_bars_disabled

    if are_progress_bars_disabled():
        print(printable(f"data: {title}: {counted(count, 'part')}, {processes} at a time"), file=sys.stderr)


def map_numbers(numbers: Collection[int], step: Callable[[int], T], processes: int, title: str) -> list[T]:
    """Take a step for each number, and return the outcomes in order.

    Args:
        step: is inherited by the processes, and need not be picklable; its outcomes must be.
        processes: if there is more than one, they are forked; those still at work are killed when a step fails, and
            when this process ends, however it ends.
        title: of the progress bar.

    Raises:
        KilledError: a process was killed.
    """
    from datasets.utils import tqdm

    if processes <= 1:
        return [step(number) for number in tqdm(numbers, desc=title, unit=" parts")]
    others = {*multiprocessing.active_children()}
    with ProcessPoolExecutor(processes, multiprocessing.get_context("fork"), _begin, (step,)) as pool:
        try:
            outcomes = [pool.submit(_take, number) for number in numbers]
            for outcome in tqdm(as_completed(outcomes), desc=title, total=len(outcomes), unit=" parts"):
                outcome.result()
            return [outcome.result() for outcome in outcomes]
        except BaseException as error:
            for process in {*multiprocessing.active_children()} - others:
                process.kill()
            if not isinstance(error, BrokenProcessPool):
                raise
            raise KilledError(
                f"data.workers: one of {processes} processes that prepare the sentences was killed, most often because"
                " memory is short; rerun the same command with fewer, such as data.workers=1"
            ) from error


# The step of a forked process.
_step: Callable[[int], Any]


def _begin(step: Callable[[int], Any]) -> None:
    """Begin a forked process. It leaves signals to its parent."""
    from datasets import disable_progress_bars

    global _step
    _step = step
    disable_progress_bars()
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal_of_parents_death(signal.SIGKILL)


def _take(number: int) -> Any:
    return _step(number)
