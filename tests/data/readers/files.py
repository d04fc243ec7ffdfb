"""Write files for the tests of the readers, and read them back."""

import csv
import gzip
import io
import json
from pathlib import Path

import pytest

from distvae.config.schema import DataConfig
from distvae.data import sources
from distvae.data.readers.columns import Texts
from distvae.system.errors import UserError

ROWS = ["A dog, a cat; a bird.", 'He said "go"', "Élan | vital", "None", "12", "2020-01-01"]


def read(path: Path, *columns: str) -> list[str | None]:
    """The pooled rows of a file."""
    return load(path, *columns).rows["text"][:]


def load(path: Path, *columns: str) -> Texts:
    data = DataConfig(path=str(path), columns=columns or None)
    files = sources.find_files(data)
    before = path.read_bytes()
    work = path.with_name("work")
    work.mkdir(exist_ok=True)
    texts = sources.load(data, files, work)["file"]
    assert path.read_bytes() == before
    return texts


def written(path: Path, content: str | bytes) -> Path:
    content = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def json_lines(rows: list) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def separated(rows: list[list[str]], delimiter: str = ",", **options) -> str:
    file = io.StringIO()
    csv.writer(file, delimiter=delimiter, **options).writerows(rows)
    return file.getvalue()


# What is refused.


def refused(path: Path, *columns: str) -> str:
    with pytest.raises(UserError) as caught:
        load(path, *columns)
    assert "\n" not in str(caught.value)
    return str(caught.value)
