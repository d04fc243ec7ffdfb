"""The ``distvae`` command, also ``python -m distvae``."""

from __future__ import annotations

import signal
import sys
from functools import partial
from importlib import import_module

from distvae.system.programs import program_of


def main() -> int:
    """Run the command that the command line names. Return its exit code."""
    words = sys.argv[1:]
    # The imports take seconds and there is nothing to save yet: let Ctrl-C end the program without a traceback.
    former = signal.signal(signal.SIGINT, signal.SIG_DFL)
    program = program_of(words) or partial(import_module("distvae.cli").main, words)
    signal.signal(signal.SIGINT, former)
    return program()


if __name__ == "__main__":
    sys.exit(main())
