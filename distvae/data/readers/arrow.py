"""Arrow files: of streams, which ``datasets`` writes, and of the file format (Feather)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from distvae.data.readers.columns import Column
from distvae.data.readers.parquet import check_schema
from distvae.system.errors import UserError, reason

# The first bytes of the file format.
FILE_FORMAT = b"ARROW1"
# The last bytes of a stream, which a writer that was stopped leaves out.
END = b"\xff\xff\xff\xff\0\0\0\0"


def read_arrow(path: Path, columns: list[Column]) -> str:
    """Add the rows of an Arrow file to the columns.

    Raises:
        UserError: the file is not Arrow, or a column is missing or does not hold text.
    """
    try:
        with pa.memory_map(str(path)) as file:
            is_file = file.read(len(FILE_FORMAT)) == FILE_FORMAT
            file.seek(0)
            reader = pa.ipc.open_file(file) if is_file else pa.ipc.open_stream(file)
            check_schema(reader.schema, str(path), columns)
            for batch in _batches(reader):
                for column in columns:
                    column.add_arrow(batch.column(column.name))
            file.seek(max(file.size() - len(END), 0))
            ended = is_file or file.read() == END
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: is not Arrow: {reason(error)}") from None
    return "" if ended else "has no end mark, so rows may be missing"


def _batches(reader: pa.RecordBatchFileReader | pa.RecordBatchStreamReader) -> Iterator[pa.RecordBatch]:
    if isinstance(reader, pa.RecordBatchFileReader):
        yield from (reader.get_batch(i) for i in range(reader.num_record_batches))
    else:
        yield from reader
