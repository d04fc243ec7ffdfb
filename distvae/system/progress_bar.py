"""Progress over sentences: a bar on a terminal, and lines in a log file."""

from __future__ import annotations

import sys
import time
from datetime import timedelta
from typing import Literal

from tqdm import tqdm

from distvae.system.errors import printable
from distvae.system.plural import counted

# Seconds between the lines of a log file.
PAUSE = 60.0


class Log:
    """Lines of progress for a standard stream that is no terminal: at most one a minute.

    Args:
        stream: which of the standard streams.
    """

    def __init__(self, stream: Literal["stdout", "stderr"] = "stderr"):
        self._stream, self._printed = stream, time.monotonic()

    @property
    def due(self) -> bool:
        """Whether a line is due."""
        return time.monotonic() - self._printed >= PAUSE and not getattr(sys, self._stream).isatty()

    def print(self, line: str) -> None:
        """Print a line."""
        self._printed = time.monotonic()
        print(printable(line), file=getattr(sys, self._stream), flush=True)


class Progress:
    """A progress bar on stderr, if that is a terminal; lines in a log file, if there is one.

    Args:
        description: text before the bar.
        total: number of sentences.
        shown: whether to show anything.
        done: sentences that are finished already.
        log: where lines go; default: stderr, if it is no terminal.
    """

    def __init__(self, description: str, total: int, shown: bool, done: int = 0, log: Log | None = None):
        self._description, self._total, self._done, self._first = description, total, done, done
        self._began, self._shown, self._log = time.monotonic(), shown, log or Log()
        self._bar = tqdm(
            desc=description,
            total=total,
            initial=done,
            unit=" sentences",
            leave=False,
            disable=not (shown and sys.stderr.isatty()),
            dynamic_ncols=True,
        )

    @property
    def due(self) -> bool:
        """Whether ``advance`` would show something now."""
        return not self._bar.disable or (self._shown and self._log.due)

    def advance(self, sentences: int, left: float | None = None, **values: float) -> None:
        """Add finished sentences, and show values beside them. With no sentence, only the time it shows moves.

        Args:
            left: seconds that the whole run still takes, at most.
        """
        self._done += sentences
        if self._shown and self._log.due:
            self._log.print(self._line(left, values))
        if values or left is not None:
            shown = {name: f"{value:.3f}" for name, value in values.items()}
            shown |= {} if left is None else {"run": f"{duration(left)} left"}
            self._bar.set_postfix(shown, refresh=False)
        if sentences:
            self._bar.update(sentences)
        else:
            self._bar.refresh()

    def _line(self, left: float | None, values: dict[str, float]) -> str:
        seconds = max(time.monotonic() - self._began, 1e-9)
        parts = [f"{self._done:,} of {counted(self._total, 'sentence')}"]
        parts += [f"{name} {value:.3f}" for name, value in values.items()]
        pace = (self._done - self._first) / seconds
        if pace:
            parts += [f"{pace:.0f}/s", f"{duration((self._total - self._done) / pace)} left"]
        if left is not None:
            parts.append(f"{duration(left)} of the run")
        return f"{self._description}: {', '.join(parts)}"

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()


def duration(seconds: float) -> str:
    """Return a duration as ``1:02:03``."""
    return str(timedelta(seconds=round(seconds)))
