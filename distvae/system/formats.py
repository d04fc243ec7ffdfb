"""The format number of what distvae writes.

The first file that is read of a folder has the number of all files in it: ``config.yaml`` of a run, ``sweep.yaml`` of
a sweep, ``manifest.json`` of a checkpoint or an export. ``metrics.jsonl``, ``sentences.parquet``, ``status.json`` and
the like have none of their own. Every config, ``results.json`` and ``state.json`` has one. Cached corpora have another
number, ``corpus.FORMAT``, and a folder of their own for each.

A new optional key needs no new number, because defaults fill the keys that an older file lacks. Raise ``FORMAT`` when
the code of an older version would misread a new file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from distvae.system.errors import UserError

KEY = "format"

# The newest format that this version reads, and the one it writes. Files without a number are of format 1.
FORMAT = 1


class FormatError(UserError):
    """A file of a newer version. Nothing else can replace it, and no file of an older version may overwrite it."""


def stamped(content: dict[str, Any]) -> dict[str, Any]:
    """Return plain values with the format number in front."""
    return {KEY: FORMAT, **content}


def check_format(content: Any, source: str | Path) -> None:
    """Check that plain values read from a file have a format that this version reads.

    Args:
        source: names the values in errors.

    Raises:
        FormatError: their format is newer.
        UserError: their format is not a whole number from 1.
    """
    found = content.get(KEY, 1) if isinstance(content, dict) else 1
    if type(found) is not int or found < 1:
        raise UserError(
            f"{source}: {KEY} is {found!r}, and should be a whole number from 1; restore the file from a copy"
        )
    if found > FORMAT:
        raise FormatError(
            f"{source}: has format {found}, and this version of distvae reads formats up to {FORMAT}: read it with the"
            " version that wrote it, or a newer one"
        )
