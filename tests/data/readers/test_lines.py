import gzip
import lzma
from pathlib import Path

import pytest

from distvae.data.readers.lines import suffix
from tests.data.readers.files import read, refused, written


@pytest.mark.parametrize(("name", "line"), [("a.txt", "A dog."), ("a.jsonl", '{"text": "A dog."}')])
def test_files_that_were_appended_to_others(tmp_path, name, line):
    assert read(written(tmp_path / name, f"\ufeff{line}\n\ufeff{line}\r\n{line}")) == ["A dog."] * 3


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "text,n\na\0,1\n", "line 2: contains a NUL byte"),
        ("a.csv", "text,n\na,1\n".encode("utf-16"), "a.csv: is UTF-16, not UTF-8; convert it (iconv -f UTF-16 "),
        ("a.csv", "text,n\na,1\n".encode("utf-32"), "a.csv: is UTF-32, not UTF-8; convert it (iconv -f UTF-32 "),
        ("a.txt", gzip.compress(b"a\n"), "a.txt: is gzip, not text; rename it to end in .gz"),
        ("a.txt.gz", gzip.compress(b"a\n"), "a.txt.gz: is gzip, not text, after unpacking .gz"),
        ("a.txt", lzma.compress(b"a\n"), "a.txt: is xz, not text; rename it to end in .xz"),
        ("a.txt", b"\x28\xb5\x2f\xfd\x04\0\x11\0\0", "a.txt: is zstd, not text; rename it to end in .zst"),
        ("a.csv", b"PK\x03\x04\x14\0", "a.csv: is a zip archive or a spreadsheet, not text; unpack it, or export"),
        ("a.txt", b"PAR1\x15\0", "a.txt: is Parquet, not text; rename it to end in .parquet"),
        ("a.txt", b"a\n\xe9\n", "line 2: is not UTF-8"),
        ("a.jsonl.gz", b'{"text": "\xe9"}\n', "line 1: is not UTF-8"),
    ],
)
def test_bad_files_are_refused(tmp_path, name, content, message):
    assert message in refused(written(tmp_path / name, content))


def test_lines_keep_everything_but_their_ends(tmp_path):
    assert read(written(tmp_path / "a.txt.gz", "a \r\n\n\tb")) == ["a ", "", "\tb"]


def test_a_suffix_is_lowercase_and_without_gz():
    assert [suffix(Path(name)) for name in ("a.TXT", "a.csv.GZ", "a.b.json", "a")] == [".txt", ".csv", ".json", ""]
