"""A progress bar on the terminal."""

from __future__ import annotations

import sys

from tqdm import tqdm


class Progress:
    """A progress bar over sentences. It is silent if ``shown`` is False or stderr is not a terminal.

    Args:
        description: text before the bar.
        total: number of sentences.
        done: sentences that are finished already.
    """

    def __init__(self, description: str, total: int, shown: bool, done: int = 0):
        self.shown = shown and sys.stderr.isatty()
        self._bar = tqdm(
            desc=description,
            total=total,
            initial=done,
            unit=" sentences",
            leave=False,
            disable=not self.shown,
            dynamic_ncols=True,
        )

    def advance(self, sentences: int, **values: float) -> None:
        """Add finished sentences, and show values beside the bar. With none, only the time it shows moves."""
        if values:
            self._bar.set_postfix({name: f"{value:.3f}" for name, value in values.items()}, refresh=False)
        if sentences:
            self._bar.update(sentences)
        else:
            self._bar.refresh()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()
