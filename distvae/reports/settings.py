"""The settings of a config as lines for a terminal."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Iterator
from typing import Any

from distvae.config.reference import SECTION, Setting


def lines(settings: Iterable[Setting], width: int) -> Iterator[str]:
    """Yield each setting as ``key=default``, its type, what reads it, its meaning and its choices."""
    for setting in settings:
        if setting.type == SECTION:
            yield from ("", *_wrapped(f"{setting.key}: {setting.meaning}", width, ""), "")
            continue
        reads = f"; read by {setting.read_by}" if setting.read_by else ""
        yield from _wrapped(
            f"{setting.key}={_plain(setting.default)}  ({setting.type}{reads})", width, "    ", first=""
        )
        yield from _wrapped(setting.meaning, width, "    ")
        for name, meaning in setting.choices.items():
            if meaning is not None:
                yield from _wrapped(f"{name}: {meaning}", width, "        ", first="      ")


def _wrapped(text: str, width: int, indent: str, first: str | None = None) -> list[str]:
    return textwrap.wrap(
        text, width, initial_indent=indent if first is None else first, subsequent_indent=indent,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def _plain(value: Any) -> str:
    """Return a value as it is written after ``key=``."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
