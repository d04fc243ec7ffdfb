"""Work on rows that is shared by several processes, with a progress bar."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Collection, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from distvae.system.errors import UserError, printable
from distvae.system.files import room_for_sockets
from distvae.system.plural import counted
from distvae.system.signals import signal_of_parents_death

if TYPE_CHECKING:  # late, see `data.corpus`
    from datasets import Dataset


# Whether the processes that this one forks are to end with it.
_working = False


def _end_with_parent() -> None:
    if _working:
        signal_of_parents_death(signal.SIGKILL)


# Those of `datasets` would wait for a killed process for ever.
os.register_at_fork(after_in_child=_end_with_parent)


class KilledError(UserError):
    """A process was killed. What it has finished is of use to the next attempt."""


def map_rows(rows: Dataset, step: Callable[..., Any], processes: int, title: str, **options: Any) -> Dataset:
    """Map rows; see ``Dataset.map``, which has the other options.

    Raises:
        KilledError: a process was killed.
    """
    with room_for_sockets(), _ended_with_this():
        try:
            return rows.map(step, num_proc=processes if processes > 1 else None, desc=title, **options)
        except RuntimeError as error:
            if "abruptly died" not in str(error):
                raise
            raise KilledError(
                f"data.workers: one of {processes} processes that prepare the sentences was killed, most often because"
                " memory is short; rerun the same command with fewer, such as data.workers=1"
            ) from error


@contextlib.contextmanager
def _ended_with_this() -> Iterator[None]:
    """Within the block, forked processes end with this one, however it ends."""
    global _working
    _working = True
    try:
        yield
    finally:
        _working = False


def map_numbers(numbers: Collection[int], step: Callable[..., Any], processes: int, title: str) -> Dataset:
    """Take a step for each row ``{"number": …}``; see ``map_rows``. Without a progress bar, a line says what begins."""
    from datasets import Dataset, are_progress_bars_disabled

    if are_progress_bars_disabled():
        print(printable(f"data: {title}: {counted(len(numbers), 'part')}, {processes} at a time"), file=sys.stderr)
    rows = Dataset.from_dict({"number": [*numbers]})
    step = partial(_quietly, step=step, alone=processes <= 1)
    return map_rows(rows, step, processes, title, new_fingerprint="numbers", load_from_cache_file=False)


def _quietly(row: dict[str, int], step: Callable[..., Any], alone: bool) -> Any:
    if not alone:  # one bar is for all processes
        from datasets import disable_progress_bars

        disable_progress_bars()
    return step(row)
