"""Counts with their nouns, for messages."""

from __future__ import annotations


def counted(count: float, noun: str, plural: str | None = None) -> str:
    """Return a count and its noun: ``1 sentence``, ``2,000 sentences``.

    Args:
        plural: default: the noun with an s.
    """
    return f"{count:,.12g} {noun if count == 1 else plural or noun + 's'}"
