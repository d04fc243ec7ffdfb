"""The files in which Tune saves its state, which a killed driver may leave incomplete."""

from __future__ import annotations

import json
import pickletools
import sys
from collections import deque
from pathlib import Path

from distvae.system.errors import printable

# Files that Tune saves in each of its runs, by how trials are chosen; its start time replaces the braces. These are
# Tune's private names: Tune itself fails on a torn file, and has no public check.
STATE_FILES = {
    "random": ("experiment_state-{}.json", "basic-variant-state-{}.json"),
    "optuna": ("experiment_state-{}.json", "search_gen_state-{}.json", "searcher-state-{}.pkl"),
}


def remove_torn(saved: Path, search: str) -> bool:
    """Remove incomplete states that are newer than the newest complete one. Return whether Tune can be restored.

    Tune overwrites its files in place, those of earlier runs too.

    Args:
        saved: Tune's folder.
        search: how the sweep chooses trials.
    """
    names = STATE_FILES[search]
    for path in sorted(saved.glob(names[0].format("*")), reverse=True):
        started = path.stem.rpartition("state-")[2]
        files = [saved / name.format(started) for name in names]
        if all(map(_is_whole, files)):
            return _is_whole(saved / "tuner.pkl")
        warning = f"distvae: WARNING {path}: is incomplete, or its companion files are missing; using the previous one"
        print(printable(warning), file=sys.stderr)
        for file in files:
            file.unlink(missing_ok=True)
    return False


def _is_whole(path: Path) -> bool:
    """Return whether a file is complete JSON or a complete pickle. Executes nothing."""
    try:
        content = path.read_bytes()
        if path.name.startswith("experiment"):
            json.loads(content)
        else:
            deque(pickletools.genops(content), maxlen=0)
    except (FileNotFoundError, ValueError):
        return False
    return True
