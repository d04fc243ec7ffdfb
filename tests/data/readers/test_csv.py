import csv

import pytest

from distvae.data.readers.csv import SEPARATORS
from tests.data.readers.files import ROWS, load, read, refused, separated, written

# Separated values.


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".csv.gz"])
def test_separators(tmp_path, suffix, delimiter, line_end):
    rows = [["id", "text", "id"], *(["1,5; | x", row, ""] for row in [*ROWS, "two\nlines\tand a tab"])]
    content = "\ufeff" + separated(rows, delimiter, lineterminator=line_end, quoting=csv.QUOTE_ALL)
    texts = load(written(tmp_path / f"a{suffix}", content.removesuffix(line_end)))
    assert texts.rows["text"][:] == [row[1] for row in rows[1:]]
    usual = "\t" if suffix == ".tsv" else ","
    assert texts.note == ("" if delimiter == usual else f"columns separated by {SEPARATORS[delimiter]}")


@pytest.mark.parametrize("header", ["text\t", "\ttext", "n\t text ", "a,b\ttext", 'text\t"a;b;c"'])
def test_the_header_tells_the_separator(tmp_path, header):
    place = [name.strip() for name in header.split("\t")].index("text")
    rows = [["A dog, a cat; a bird", "1"], ['"two\nlines"', "2"]]
    lines = ["\t".join(row[::-1] if place else row) for row in rows]
    assert read(written(tmp_path / "a.csv", "\n".join([header, *lines]))) == ["A dog, a cat; a bird", "two\nlines"]


def test_a_space_may_follow_each_separator(tmp_path):
    path = written(tmp_path / "a.csv", 'id, "text", n\n1, "A dog, a cat", 2\n2, A bird, 3\n3,"A ""dog""",4\n')
    assert read(path) == ["A dog, a cat", "A bird", 'A "dog"']
    path = written(tmp_path / "a.csv", 'id,text\n1, "A dog" he said\n')
    assert read(path) == [' "A dog" he said']


def test_quotes_of_tabs_may_be_text(tmp_path):
    note = "quotes read as part of the text"
    for rows in (['"Go!" he said', "A dog."], ['"A dog', 'barks"'], ['"', "A dog."]):
        texts = load(written(tmp_path / "a.tsv", "text\tn\n" + "".join(f"{row}\t1\n" for row in rows)))
        assert (texts.rows["text"][:], texts.note) == (rows, note)
    rows = ['"Go!"', "two\nlines"]
    texts = load(written(tmp_path / "a.tsv", separated([["text", "n"], *([row, "1"] for row in rows)], "\t")))
    assert (texts.rows["text"][:], texts.note) == (rows, "")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "text,n,text\na,1,b\n", "has 2 columns with the name text; rename the others"),
        (
            "a.csv",
            "text;n\na;1\nb; c;2\n",
            "line 3: has 3 fields where the header has 2; quote sentences that contain semi",
        ),
        ("a.csv", "text,n\na,1\nb\n", "line 3: has 1 of 2 fields; write empty ones too"),
        ("a.csv", 'text,n\na,1\n"b\nc,2\nd,3\n', "line 3: is not CSV: unexpected end of data"),
        ("a.tsv", "text\tn\n", "contains no sentences"),
        (
            "a.csv",
            "a dog\na cat\n",
            "to those with sentences, or write the names of the columns into the first line if",
        ),
    ],
)
def test_bad_files_are_refused(tmp_path, name, content, message):
    assert message in refused(written(tmp_path / name, content))
