"""Read the wanted columns of a file or a hub dataset.

Other columns are not read and no type is inferred, so other columns may hold anything, and types may change from row to
row.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from distvae.data.digests import total_size
from distvae.data.readers.arrow import read_arrow
from distvae.data.readers.columns import BATCH, Column, Texts, Wanted, join, open_columns, read_columns, write_columns
from distvae.data.readers.csv import read_csv
from distvae.data.readers.json import read_json, read_json_lines
from distvae.data.readers.lines import read_lines, suffix
from distvae.data.readers.parquet import check_schema, read_parquet
from distvae.data.workers import announce, map_numbers
from distvae.system.cores import usable_cores

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

# Starting a process takes as long as reading about this much.
BYTES_PER_PROCESS = 1 << 24


def read_files(paths: Sequence[Path], name: str, wanted: Wanted, work: Path, workers: int | None) -> Texts:
    """Read columns of files and concatenate them. Several large files are read in several processes.

    Args:
        paths: files with suffixes of ``READERS``.
        name: prefix of the Arrow files.
        wanted: names of columns.
        work: folder of the Arrow files.
        workers: processes at most. None: one per core.

    Raises:
        UserError: a file does not match its suffix, or a column is missing or does not hold text.
    """
    processes = min(workers or usable_cores(), len(paths), total_size(paths) // BYTES_PER_PROCESS)
    read = partial(_read_file, paths=paths, name=name, wanted=wanted, work=work)
    if processes > 1:
        title = f"Reading {paths[0].name} and {len(paths) - 1:,} more"
        announce(title, len(paths), processes)
        notes = map_numbers(range(len(paths)), read, processes, title)
    else:
        notes = [read(number) for number in range(len(paths))]
    parts = [
        open_columns(f"{name}-{number}", str(path), wanted, work, note)
        for number, (path, note) in enumerate(zip(paths, notes, strict=True))
    ]
    return join(parts, f"{paths[0]} and {len(paths) - 1:,} more")


def _read_file(number: int, paths: Sequence[Path], name: str, wanted: Wanted, work: Path) -> str:
    """Write the columns of a file; return its note."""
    path = paths[number]
    fill = partial(READERS[suffix(path)], path)
    return write_columns(f"{name}-{number}", str(path), wanted, work, fill)


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
