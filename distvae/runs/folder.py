"""The files of a run folder, and whether a folder holds a run."""

from __future__ import annotations

import contextlib
from pathlib import Path

from distvae.runs import attempts
from distvae.runs.status import read_status
from distvae.system.errors import UserError

# Files of a run folder that describe the run.
DESCRIPTIONS = (
    "config.yaml", "environment.json", "vocabulary.json", "tokenizer.json", "status.json", "lineage.json",
    attempts.FOLDER,
)  # fmt: skip

# Files of a run folder that the run produces.
PRODUCTS = (
    "checkpoints", "tensorboard", "metrics.jsonl", "pretrained", "best", "results.json", "sentences.parquet",
    "not_finite.json", "trackers.json", "wandb",
)  # fmt: skip


def holds_run(run: Path) -> bool:
    """Return whether ``run`` contains a run: more than a record of failed attempts.

    Raises:
        UserError: it has files that no run wrote and that a run would overwrite.
    """
    try:
        names = {path.name for path in run.iterdir()} if run.is_dir() else set()
    except OSError as error:
        raise UserError(f"run={run}: cannot be a run folder: {error.strerror}") from None
    if attempts.FOLDER in names:
        return not names.isdisjoint(PRODUCTS)
    # Before its first attempt, a run whose config was refused has a status, and a trial of a sweep has a lineage.
    theirs = names.intersection((*DESCRIPTIONS, *PRODUCTS)) - {"lineage.json"}
    if "status.json" in theirs:
        with contextlib.suppress(UserError):
            read_status(run)
            theirs.remove("status.json")
    if theirs:
        raise UserError(
            f"run={run}: holds {', '.join(sorted(theirs))}, which no run wrote and a run would overwrite; name"
            " another run=FOLDER"
        )
    return False
