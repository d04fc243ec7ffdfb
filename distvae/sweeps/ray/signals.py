"""The signals that ask a sweep to stop."""

from __future__ import annotations

import signal
from types import FrameType

from distvae.system.signals import asking


class StopSignals:
    """Remembers the first signal that asks this process to stop. A second SIGINT ends the process at once."""

    def __init__(self) -> None:
        self.received: str | None = None

    def install(self) -> None:
        """Handle the signals that ask a program to stop."""
        for number in asking():
            signal.signal(number, self.handle)

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Note a signal."""
        name = signal.Signals(number).name
        if number == signal.SIGINT and self.received == name:
            raise KeyboardInterrupt(name)
        self.received = self.received or name
