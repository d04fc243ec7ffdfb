"""Read the wanted columns of a file or a hub dataset.

Other columns are not read and no type is inferred, so other columns may hold anything, and types may change from row to
row.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from distvae.data.readers.arrow import read_arrow
from distvae.data.readers.columns import BATCH, Column, Texts, Wanted, join, read_columns
from distvae.data.readers.csv import read_csv
from distvae.data.readers.json import read_json, read_json_lines
from distvae.data.readers.lines import read_lines, suffix
from distvae.data.readers.parquet import check_schema, read_parquet

if TYPE_CHECKING:  # see `data.corpus`
    from datasets import Dataset

READERS = {
    ".txt": read_lines,
    ".jsonl": read_json_lines,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": read_csv,
    ".parquet": read_parquet,
    ".arrow": read_arrow,
}

# Kinds of files that have their own compression.
BINARY = (".parquet", ".arrow")


def read_files(paths: Sequence[Path], name: str, wanted: Wanted, work: Path) -> Texts:
    """Read columns of files and concatenate them.

    Args:
        paths: files with suffixes of ``READERS``.
        name: prefix of the Arrow files.
        wanted: names of columns.
        work: folder of the Arrow files.

    Raises:
        UserError: a file does not match its suffix, or a column is missing or does not hold text.
    """
    parts = [
        read_columns(f"{name}-{number}", str(path), wanted, work, partial(READERS[suffix(path)], path))
        for number, path in enumerate(paths)
    ]
    return join(parts, f"{paths[0]} and {len(paths) - 1:,} more")


def read_dataset(rows: Dataset, where: str, name: str, wanted: Wanted, work: Path) -> Texts:
    """Read columns of a hub dataset; see ``read_files``."""

    def fill(columns: list[Column]) -> str:
        check_schema(rows.features.arrow_schema, where, columns)
        for table in rows.select_columns([c.name for c in columns]).with_format("arrow").iter(BATCH):
            for column in columns:
                for chunk in table.column(column.name).chunks:
                    column.add_arrow(chunk)
        return ""

    return read_columns(name, where, wanted, work, fill)
