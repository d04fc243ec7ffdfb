"""Parquet files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from distvae.data.readers.columns import BATCH, Column, find_column, not_text
from distvae.system.errors import UserError, reason


def read_parquet(path: Path, columns: list[Column]) -> str:
    """Add the rows of a Parquet file to the columns.

    Raises:
        UserError: the file is not Parquet or is empty, or a column is missing or does not hold text.
    """
    try:
        file = pq.ParquetFile(path, pre_buffer=False)
        schema, rows = file.schema_arrow, file.metadata.num_rows
    except Exception as error:
        raise UserError(f"{path}: is not Parquet: {reason(error)}") from None
    with file:
        if rows == 0:
            raise UserError(f"{path}: contains no sentences")
        check_schema(schema, str(path), columns)
        for batch in _batches(file, path, [column.name for column in columns]):
            for column in columns:
                column.add_arrow(batch.column(column.name))
    return ""


def check_schema(schema: pa.Schema, where: str, columns: list[Column]) -> None:
    """Check that every column exists and holds text, or what labels can be. Read the names of numbered classes.

    Raises:
        UserError: a column is missing, ambiguous, or of another type.
    """
    for column in columns:
        find_column(schema.names, column, where)
        kind = schema.field(column.name).type
        if not (_holds_text(kind) if column.is_text else _holds_text(kind) or _is_single(kind)):
            raise not_text(where, column, str(kind))
        if not column.is_text:
            column.names = _class_names(schema, column.name)


def _class_names(schema: pa.Schema, name: str) -> list[str] | None:
    """Return the names of the classes that a column numbers, as ``datasets`` writes them."""
    try:
        from datasets import ClassLabel, Features  # late, see `data.corpus`

        feature = Features.from_arrow_schema(schema)[name]
    except Exception:  # another program's metadata
        return None
    return list(feature.names) if isinstance(feature, ClassLabel) else None


def _batches(file: pq.ParquetFile, path: Path, names: list[str]) -> Iterator[pa.RecordBatch]:
    try:
        # Stay in this thread: a thread of Arrow's pool that outlives the interpreter may abort the program.
        yield from file.iter_batches(BATCH, columns=names, use_threads=False)
    except Exception as error:
        raise UserError(f"{path}: cannot be read as Parquet: {reason(error)}") from error


def _holds_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    known = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null)
    return any(is_known(kind) for is_known in known)


def _is_single(kind: pa.DataType) -> bool:
    known = (pa.types.is_integer, pa.types.is_boolean, pa.types.is_floating)
    return any(is_known(kind) for is_known in known)
