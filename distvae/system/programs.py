"""The programs' shared entry point, which turns errors and signals into one line and an exit code."""

from __future__ import annotations

import atexit
import gc
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from importlib import import_module

from distvae.system import launcher, streams
from distvae.system.errors import UserError, printable, tell
from distvae.system.signals import ENDED, INTERRUPTED, InterruptedRun, Signals

# Exit codes for a user error or too little memory, and for a closed standard output (as shells report it).
REFUSED = 2
CLOSED = 128 + signal.SIGPIPE

# Commands of ``distvae`` that are programs, with options, signals and exit codes of their own: module and summary.
PROGRAMS = {
    "train": ("distvae.train", "Train a config, or resume its run."),
    "table": ("distvae.table.__main__", "Train every row of a table on this machine, and report on them."),
    "sweep": ("distvae.sweeps.__main__", "Train a config with many values of any settings."),
}


def program_of(words: Sequence[str]) -> Callable[[], int] | None:
    """Import the program that a command line of ``distvae`` names. Return what runs it; None if it names none."""
    if not words or words[0] not in PROGRAMS:
        return None
    module, _ = PROGRAMS[words[0]]
    # There is nothing to save yet: let Ctrl-C end the program without a traceback.
    former = signal.signal(signal.SIGINT, signal.SIG_DFL)
    program = partial(import_module(module).main, list(words[1:]))
    signal.signal(signal.SIGINT, former)
    return program


def run_program(
    body: Callable[[], int], *, strict: bool = False, signals: Signals | None = None, hint: str = ""
) -> int:
    """Run a program and return its exit code, which is also written to the file that the launcher asks for.

    ======================================  ====
    the program returns                     its own code
    ``UserError``, out of memory            2, with one line
    ``InterruptedRun``                      75, with one line
    ``KeyboardInterrupt`` by SIGINT         130
    ``KeyboardInterrupt`` by other signals  75
    standard output closed (``strict``)     141
    ======================================  ====

    Any other exception is a fault of the program and is raised.

    Args:
        body: the program, including the parsing of its arguments.
        strict: treat a failed write to the standard output as an error; see ``streams.secure``.
        signals: handlers to install while the program runs. None: Python's own.
        hint: advice on too little memory, for the error.
    """
    streams.secure(strict)
    # At its exit, Python looks for garbage among all that torch has made, which takes half a second.
    atexit.register(gc.freeze)
    try:
        try:
            if signals is not None:
                signals.install()
            code = _guarded(body, hint, signals)
        except KeyboardInterrupt:
            # After a single SIGTERM or the like there was nothing to save yet: the run can be started again.
            code = ENDED if signals is None or signals.asked == "SIGINT" else INTERRUPTED
        # Once a process has ended, launchers send a signal to the others, which must not arrive before this is written.
        if launcher.is_main():
            launcher.leave_code(code)
    finally:
        if signals is not None:
            signals.restore()
    return code


def _guarded(body: Callable[[], int], hint: str, signals: Signals | None) -> int:
    try:
        try:
            with nullcontext() if signals is None else signals.kept():
                return body()
        finally:
            sys.stdout.flush()
    except InterruptedRun as interrupted:
        if launcher.is_main():
            print(printable(f"{interrupted}; rerun the same command to resume"), file=sys.stderr)
        return INTERRUPTED
    except UserError as error:
        tell(error)
        return REFUSED
    except streams.ClosedError:  # by a reader such as `head`
        return CLOSED
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        rank = f"rank {launcher.number('RANK', 0)} is " if launcher.number("WORLD_SIZE", 1) > 1 else ""
        tell(UserError(f"{rank}out of memory: {error}" + (f"; {hint}" if hint else "")), own=True)
        return REFUSED


def out_of_memory(error: RuntimeError) -> bool:
    """Return whether torch ran out of memory on the GPU or the CPU (for which it has no exception class)."""
    # Compare names, because some programs do not import torch.
    names = {kind.__name__ for kind in type(error).__mro__}
    return "OutOfMemoryError" in names or "can't allocate memory" in str(error)
