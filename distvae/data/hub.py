"""Datasets of the hub: a commit that does not change, and the rows of each split."""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, is_offline_mode
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

from distvae.config.schema import SNLI
from distvae.data.readers.columns import TEXT_COLUMN
from distvae.data.splits import choose
from distvae.system.errors import UserError, reason

TIMEOUT_SECONDS = 10


@dataclass(frozen=True)
class Known:
    """What is known of a dataset.

    Attributes:
        revision: pinned, so that everyone has the same sentences and a prepared corpus is found without a network.
        elsewhere: how to get it without the hub.
    """

    revision: str
    columns: tuple[str, ...]
    elsewhere: str


KNOWN = {
    SNLI: Known(
        "cdb5c3d5eed6ead6e5a341c8e56e669bb666725b",
        ("premise", "hypothesis"),
        "copy SNLI 1.0 (https://nlp.stanford.edu/projects/snli) here and pass its folder: data.path=FOLDER"
        " data.columns=[sentence1,sentence2]",
    )
}

_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
_LONGEST_ID = 96
_COMMIT = re.compile("[0-9a-f]{40}")


def is_id(path: str) -> bool:
    """Return whether a path may be the id of a dataset: ``ORG/NAME`` or ``NAME``."""
    return len(path) <= _LONGEST_ID and _ID.fullmatch(path) is not None


def columns(dataset: str) -> tuple[str, ...]:
    """Return the columns of sentences unless others are named."""
    return KNOWN[dataset].columns if dataset in KNOWN else (TEXT_COLUMN,)


def is_pinned(dataset: str, revision: str | None) -> bool:
    """Return whether ``commit`` needs no network."""
    return dataset in KNOWN if revision is None else _COMMIT.fullmatch(revision) is not None


def commit(dataset: str, revision: str | None, cache: Path) -> str:
    """Return the commit of a revision, by default the newest.

    Args:
        cache: of corpora. Without a network, a revision of None is the one that was prepared last.

    Raises:
        UserError: the dataset or the revision does not exist or is not public, or the hub cannot be reached.
    """
    if revision is None and dataset in KNOWN:
        return KNOWN[dataset].revision
    if revision is not None and _COMMIT.fullmatch(revision):
        return revision
    try:
        return _look_up(dataset, revision)
    except _UnreachableError:
        prepared = _prepared(dataset, cache) if revision is None else None
        if prepared is None:
            raise
        return prepared


class _UnreachableError(UserError):
    """The hub cannot be reached."""


def _look_up(dataset: str, revision: str | None) -> str:
    if is_offline_mode():
        raise _unreachable(dataset, "HF_HUB_OFFLINE is set")
    try:
        # Fail fast without a network: load_dataset would retry for half a minute.
        found = HfApi().dataset_info(dataset, revision=revision, timeout=TIMEOUT_SECONDS)
    except Exception as error:
        raise _explain(error, dataset, revision) from error
    return str(found.sha)


def _explain(error: Exception, dataset: str, revision: str | None) -> UserError:
    causes: list[BaseException] = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None:
        causes.append(cause)
    said = " ".join(map(str, causes))
    if any(isinstance(cause, GatedRepoError) for cause in causes) or "is a gated dataset" in said:
        return UserError(
            f"data.path={dataset}: is a gated dataset; accept its terms at https://huggingface.co/datasets/{dataset}"
            " and log in (hf auth login)"
        )
    if any(isinstance(cause, RevisionNotFoundError) for cause in causes):
        return UserError(f"data.revision={revision}: {dataset} has no such branch, tag or commit")
    if any(isinstance(cause, RepositoryNotFoundError) for cause in causes):
        return UserError(
            f"data.path={dataset}: no such file or folder, nor a dataset of the hub; correct the name, or log in (hf"
            " auth login) if the dataset is private"
        )
    return _unreachable(dataset, reason(error))


def _unreachable(dataset: str, why: str) -> UserError:
    if dataset in KNOWN:
        return _UnreachableError(
            f"{dataset}: cannot be loaded from the hub ({why}); without a network, {KNOWN[dataset].elsewhere}"
        )
    return _UnreachableError(
        f"data.path={dataset}: no such file or folder, and it cannot be loaded from the hub ({why}); prepare it where"
        " there is a network, or pass files"
    )


def _prepared(dataset: str, cache: Path) -> str | None:
    """Return the commit of the corpus of a dataset that was prepared last."""
    found: dict[int, str] = {}
    for path in cache.glob("*/manifest.json"):
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            source = json.loads(path.read_bytes())["origin"]["source"]
            if source["hub"] == dataset:
                found[path.stat().st_mtime_ns] = source["revision"]
    return found[max(found)] if found else None


def load(
    dataset: str, revision: str, subset: str | None, wanted: tuple[str | None, ...] | None
) -> dict[str, tuple[str, Any]]:
    """Return the name and the rows of each split; valid and test may be missing.

    The download stays in the hub's cache, where offline sessions (HF_HUB_OFFLINE=1) find it.

    Raises:
        UserError: the dataset cannot be loaded, or has no such subset or split.
    """
    if not is_offline_mode():
        _look_up(dataset, revision)
    import datasets  # late, see `data.corpus`

    path = f"hf://datasets/{dataset}"  # not a folder of this name
    try:
        rows = datasets.load_dataset(path, name=subset, revision=revision)
    except ValueError as error:
        raise _of_subset(path, dataset, revision, subset) or _explain(error, dataset, revision) from error
    except Exception as error:
        raise _explain(error, dataset, revision) from error
    named = next(iter(rows.values())).info.config_name
    if subset is not None and named != subset:
        only = UserError(f"data.subset={subset}: {dataset} has only {named}")
        raise _of_subset(path, dataset, revision, subset) or only
    # Without a network, `datasets` takes what it prepared last, whatever the commit, which is the folder's name.
    folders = {Path(file["filename"]).parent.name for part in rows.values() for file in part.cache_files}
    if any(_COMMIT.fullmatch(folder) and folder != revision for folder in folders):
        raise UserError(
            f"data.revision={revision}: the hub's cache has another commit of {dataset}, and there is no network;"
            " rerun the command where there is one"
        )
    return {split: (name, rows[name]) for split, name in choose(list(rows), wanted, dataset).items()}


def _of_subset(path: str, dataset: str, revision: str, subset: str | None) -> UserError | None:
    """Return the error for a subset that does not exist, or that is not named; None if it is well."""
    import datasets

    try:
        names = datasets.get_dataset_config_names(path, revision=revision)
    except Exception:  # whatever it is, the error that led here explains it better
        return None
    if subset is None and len(names) > 1:
        return UserError(f"data.path={dataset}: has several subsets; name one by data.subset: {', '.join(names)}")
    if subset is not None and subset not in names:
        return UserError(f"data.subset={subset}: {dataset} has no such subset, only {', '.join(names)}")
    return None
