"""Datasets that a Python program passes as ``data.path``."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import xxhash
from datasets import Dataset, DatasetDict

from distvae.config.schema import DataConfig
from distvae.data import sources
from distvae.data.corpus import quiet_datasets
from distvae.data.readers.columns import TEXT_COLUMN
from distvae.data.sentences import digest
from distvae.system.errors import UserError
from distvae.system.files import writing


def store(rows: Any, data: DataConfig) -> Path:
    """Save the columns that are read below ``data.cache``, in a folder that is named after their content.

    Args:
        rows: a ``Dataset``, or a ``DatasetDict`` of splits.

    Returns:
        A folder for ``data.path``.

    Raises:
        UserError: it is something else.
    """
    if not isinstance(rows, (Dataset, DatasetDict)):
        raise UserError(
            f"data.path: is {type(rows).__name__}; pass a path, the id of a hub dataset, a datasets.Dataset or a"
            " DatasetDict"
        )
    wanted = {*(data.columns or (TEXT_COLUMN,)), *data.labels, data.group}
    parts = rows.values() if isinstance(rows, DatasetDict) else [rows]
    names = {name for part in parts for name in part.column_names}
    if wanted.issubset({*names, None}):  # otherwise the reader says what is missing
        rows = rows.select_columns([name for name in names if name in wanted])
    cache = sources.expand("data.cache", data.cache)
    with writing(cache):
        cache.mkdir(parents=True, exist_ok=True)
        with (
            tempfile.TemporaryDirectory(prefix=".dataset-", dir=cache, ignore_cleanup_errors=True) as work,
            quiet_datasets(),
        ):
            saved = Path(work, "saved")
            rows.save_to_disk(str(saved))
            name = xxhash.xxh3_64()
            for path in sorted(path for path in saved.rglob("*") if path.is_file() and path.name != "state.json"):
                name.update(f"{path.relative_to(saved)} {digest(path)} ".encode())
            folder = cache / f"dataset-{name.hexdigest()}"
            if not folder.exists():
                shutil.move(saved, folder)
    return folder
