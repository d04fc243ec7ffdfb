"""Work on rows that is shared by several processes, with a progress bar."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection
from functools import partial
from typing import TYPE_CHECKING, Any

from distvae.system.errors import UserError, printable
from distvae.system.files import room_for_sockets
from distvae.system.plural import counted

if TYPE_CHECKING:  # late, see `data.corpus`
    from datasets import Dataset


class KilledError(UserError):
    """A process was killed. What it has finished is of use to the next attempt."""


def map_rows(rows: Dataset, step: Callable[..., Any], processes: int, title: str, **options: Any) -> Dataset:
    """Map rows; see ``Dataset.map``, which has the other options.

    Raises:
        KilledError: a process was killed.
    """
    with room_for_sockets():
        try:
            return rows.map(step, num_proc=processes if processes > 1 else None, desc=title, **options)
        except RuntimeError as error:
            if "abruptly died" not in str(error):
                raise
            raise KilledError(
                f"data.workers: one of {processes} processes that prepare the sentences was killed, most often because"
                " memory is short; rerun the same command with fewer, such as data.workers=1"
            ) from error


def map_numbers(numbers: Collection[int], step: Callable[..., Any], processes: int, title: str) -> Dataset:
    """Take a step for each row ``{"number": …}``; see ``map_rows``. Without a progress bar, a line says what begins."""
    from datasets import Dataset, are_progress_bars_disabled

    if are_progress_bars_disabled():
        print(printable(f"data: {title}: {counted(len(numbers), 'part')}, {processes} at a time"), file=sys.stderr)
    rows = Dataset.from_dict({"number": [*numbers]})
    step = partial(_take, step=step, alone=processes <= 1)
    return map_rows(rows, step, processes, title, new_fingerprint="numbers", load_from_cache_file=False)


def _take(row: dict[str, int], step: Callable[..., Any], alone: bool) -> Any:
    if not alone:  # one bar is for all processes
        from datasets import disable_progress_bars

        disable_progress_bars()
    return step(row)
