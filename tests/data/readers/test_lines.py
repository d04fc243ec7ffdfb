import gzip
import lzma
from pathlib import Path

import pytest

from distvae.data.readers import lines
from distvae.data.readers.columns import Wanted
from distvae.data.readers.lines import suffix
from distvae.data.readers.read import read_files
from distvae.system.errors import UserError
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


@pytest.mark.parametrize("piece", [1, 5, 1 << 20])
def test_lines_are_the_same_however_many_are_read_at_a_time(tmp_path, monkeypatch, piece):
    monkeypatch.setattr(lines, "PIECE", piece)
    content = "a\r\nb\rc\n\n\ufeffd\x0b\u2028e\n\r\nf \r"
    assert read(written(tmp_path / "a.txt", content)) == ["a", "b", "c", "", "d\x0b\u2028e", "", "f "]


def test_the_line_of_an_error_is_counted_over_all_that_was_read(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "PIECE", 4)
    path = written(tmp_path / "a.txt", "x\ta\n" * 5 + "b\n" + "x\tc\n")
    with pytest.raises(UserError, match=r"a\.txt, line 6: has no tab"):
        read_files([path], "a", Wanted(("text",), ("kind",)), tmp_path, 1)


def test_a_suffix_is_lowercase_and_without_gz():
    assert [suffix(Path(name)) for name in ("a.TXT", "a.csv.GZ", "a.b.json", "a")] == [".txt", ".csv", ".json", ""]
