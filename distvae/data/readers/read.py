"""Read the wanted columns of a file or a hub dataset.

Other columns are not read and no type is inferred, so other columns may hold anything, and types may change from row to
row.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from datasets import Dataset

from distvae.data.readers.columns import BATCH, Column, Texts, read_columns
from distvae.data.readers.csv import read_csv
from distvae.data.readers.json import read_json, read_json_lines
from distvae.data.readers.lines import read_lines, suffix
from distvae.data.readers.parquet import check_schema, read_parquet

READERS = {
    ".txt": read_lines,
    ".jsonl": read_json_lines,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": read_csv,
    ".parquet": read_parquet,
}


def read_file(path: Path, name: str, columns: Sequence[str], work: Path) -> Texts:
    """Read columns of a file and concatenate them.

    Args:
        path: a file with one of the suffixes of ``READERS``.
        name: prefix of the Arrow files.
        columns: names.
        work: folder of the Arrow files.

    Raises:
        UserError: the file does not match its suffix, or a column is missing or does not hold text.
    """
    return read_columns(name, str(path), columns, work, partial(READERS[suffix(path)], path))


def read_dataset(rows: Dataset, where: str, name: str, columns: Sequence[str], work: Path) -> Texts:
    """Read columns of a hub dataset; see ``read_file``."""

    def fill(wanted: list[Column]) -> str:
        check_schema(rows.data.schema, where, wanted)
        for table in rows.select_columns([c.name for c in wanted]).with_format("arrow").iter(BATCH):
            for column in wanted:
                for chunk in table.column(column.name).chunks:
                    column.add_arrow(chunk)
        return ""

    return read_columns(name, where, columns, work, fill)
