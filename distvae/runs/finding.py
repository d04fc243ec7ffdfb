"""Find a trained model: in a folder, or on the hub."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from distvae.system.errors import UserError

if TYPE_CHECKING:  # PyTorch takes a second to import, and a wrong name needs none
    from distvae.runs.checkpoints import Export
    from distvae.runs.results import Results

# Files of every exported model, and the scores that may be beside them.
EXPORT = ("model.safetensors", "config.yaml", "vocabulary.json")
RESULTS = "results.json"

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


@dataclass(frozen=True)
class Found:
    """A trained model in memory.

    Attributes:
        name: as it was asked for.
        results: the scores of the run's test sentences; None if there are none.
    """

    name: str
    export: Export
    results: Results | None


def find(name: str) -> Found:
    """Load the model of a folder or, where there is none, of a repository ``ORG/NAME`` of the hub.

    Raises:
        UserError: there is neither, or a file is missing or damaged.
    """
    if os.path.lexists(name):
        return of_folder(name)
    if not _HUB_ID.fullmatch(name):
        raise UserError(f"{name}: no such folder; give a run folder, an exported folder or a hub id, ORG/NAME")
    try:
        return of_hub(name)
    except UserError as error:
        reason = str(error).removeprefix(f"{name}: ")
        raise UserError(f"{name}: no such folder; tried the hub: {reason}") from None


def check_folder(name: str, why: str) -> None:
    """Check that a run is a folder, for a command that takes no hub id.

    Args:
        why: the command needs one.

    Raises:
        UserError: it is not.
    """
    if not os.path.lexists(name):
        raise UserError(f"{name or repr(name)}: no such run folder; {why}")


def of_folder(name: str) -> Found:
    """Load the model of a run folder or of an exported folder.

    Raises:
        UserError: there is no model, or a file is missing or damaged.
    """
    from distvae.runs.checkpoints import load_export
    from distvae.runs.results import load_results

    export, folder = load_export(name), Path(name)
    folder = folder.parent if folder.name == "best" else folder
    return Found(name, export, load_results(folder) if (folder / RESULTS).is_file() else None)


def of_hub(
    repository: str,
    revision: str | None = None,
    token: str | None = None,
    cache: Path | None = None,
    local_only: bool = False,
) -> Found:
    """Load the model of a repository of the hub. The arguments are those of ``api.from_pretrained``.

    Raises:
        UserError: there is no such repository or revision, it holds no model, or the hub cannot be reached.
    """
    from distvae.runs.hub import download

    with download(repository, revision, token, cache, local_only) as folder:
        found = of_folder(str(folder))
    return Found(repository, found.export, found.results)
