import csv
import gzip
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distvae.config.schema import DataConfig
from distvae.data import readers, sources
from distvae.system.errors import UserError

ROWS = ["A dog, a cat; a bird.", 'He said "go"', "Élan | vital", "None", "12", "2020-01-01"]


def read(path: Path, *columns: str) -> list[str | None]:
    """The pooled rows of a file."""
    return load(path, *columns).rows["text"][:]


def load(path: Path, *columns: str) -> readers.Texts:
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


# Columns that are not asked for.

DRIFTS = {
    "null, then text": (None, "x"),
    "absent, then present": (..., 1),
    "int, then float": (5, 4.5),
    "int, then text": (5, "x"),
    "text, then date": ("x", "2020-01-01"),
    "text, then list": ("x", ["x"]),
    "list of int, then of text": ([1], ["x"]),
    "object, then another": ({"a": 1}, {"b": {"c": [1]}}),
    "object, then list": ({"a": 1}, [{"a": 1}]),
    "a number out of range": (1, 10**400),
    "not a number": (0.5, float("nan")),
    "objects with a text": ({"text": "x"}, {"text": ["y"], "n": {"text": 1}}),
}


@pytest.mark.parametrize("drift", DRIFTS)
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.jsonl.gz"])
def test_unused_columns_of_json_may_hold_anything(tmp_path, name, drift):
    first, last = DRIFTS[drift]
    values = [first] * 2000 + [last] * 3
    rows = [{"text": f"row {i}"} | ({} if value is ... else {"other": value}) for i, value in enumerate(values)]
    content = json.dumps(rows) if name == "a.json" else json_lines(rows)
    assert read(written(tmp_path / name, content)) == [row["text"] for row in rows]


def test_a_column_may_be_null_or_absent_at_first(tmp_path):
    rows = [{"text": None}, {"n": 1}] * 7000 + [{"text": "A dog."}]
    assert read(written(tmp_path / "a.jsonl", json_lines(rows))) == [None] * 14_000 + ["A dog."]


def test_unused_columns_of_parquet_may_hold_anything(tmp_path):
    unused = {
        "map": pa.array([[("a", 1)]] * 6, pa.map_(pa.string(), pa.int64())),
        "struct": pa.array([{"a": {"b": [1]}}] * 6),
        "null": pa.nulls(6),
        "decimal": pa.nulls(6, pa.decimal128(5, 2)),
        "text.part": pa.array(["x"] * 6),
    }
    table = pa.table({"text": ROWS, **unused}).replace_schema_metadata({"huggingface": "{broken", "pandas": "null"})
    pq.write_table(table, tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet") == ROWS


def test_all_types_of_text_of_parquet_are_pooled(tmp_path):
    types = {"s": pa.string(), "l": pa.large_string(), "v": pa.string_view(), "n": pa.null()}
    columns = {name: pa.array([None] * 6 if name == "n" else ROWS, kind) for name, kind in types.items()}
    columns["d"] = pa.array(ROWS).dictionary_encode()
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet", "s", "l", "v", "d", "n", "s") == ROWS * 4 + [None] * 6 + ROWS


def test_many_columns_take_no_time(tmp_path):
    names = ["text", *(f"c{i}" for i in range(20_000))]
    path = written(tmp_path / "a.csv", separated([names, *([row, *["1"] * 20_000] for row in ROWS)]))
    assert read(path) == ROWS
    message = refused(path, "no such")
    assert message.endswith("c18 … (20,001 in all); say by data.columns=[…] which hold sentences")


# JSON.


@pytest.mark.parametrize(
    "content",
    [
        json.dumps([{"text": row, "n": 1} for row in ROWS]),
        json.dumps([{"text": row} for row in ROWS], indent=2),
        json_lines([{"text": row} for row in ROWS]),
        "\n".join(json.dumps({"text": row}, indent=2) for row in ROWS),
        json.dumps(ROWS),
        json.dumps({"n": [1], "text": ROWS}),
        json.dumps({"text": {str(i): row for i, row in enumerate(ROWS)}, "n": {}}, indent=1),
        "\ufeff" + json.dumps([{"text": row} for row in ROWS], ensure_ascii=False),
    ],
)
def test_forms_of_json(tmp_path, content):
    assert read(written(tmp_path / "a.json", content)) == ROWS


CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | CELLS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(CELLS, inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=100, deadline=None)
@given(
    values=st.lists(VALUES, max_size=6),
    size=st.integers(1, 20),
    indent=st.sampled_from([None, 0, 2]),
    in_list=st.booleans(),
)
def test_json_is_read_in_pieces_as_it_is_as_a_whole(tmp_path_factory, values, size, indent, in_list):
    path = tmp_path_factory.mktemp("json") / "a.json"
    if not in_list:  # where a list would be the only one, and numbers would run together
        values = [{"a": value} for value in values]
    pieces = [json.dumps(value, indent=indent) for value in values]
    path.write_text(json.dumps(values, indent=indent) if in_list else "\n".join(pieces), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "PIECE", size)
        read = list(readers._json_values(path))
    assert [is_in for is_in, _ in read] == [in_list] * len(values)
    assert [as_text(value) for _, value in read] == [as_text(value, write=json.dumps) for value in values]


@pytest.mark.parametrize("number", ["0", "-0", "0.0", "1.25", "1e5", "1E+05", "-2.5e-3"])
@pytest.mark.parametrize("size", range(1, 9))
def test_a_number_may_lie_across_pieces(tmp_path, monkeypatch, number, size):
    monkeypatch.setattr(readers, "PIECE", size)
    path = tmp_path / "a.json"
    path.write_text(f'[{number},"a"]', encoding="utf-8")
    assert [as_text(value) for _, value in readers._json_values(path)] == [number, "a"]


def as_text(value, write=str):
    """A value of which each number is as it is written."""
    if isinstance(value, list):
        return [as_text(item, write) for item in value]
    if isinstance(value, dict):
        return {key: as_text(item, write) for key, item in value.items()}
    return write(value) if type(value) in (int, float) else value


def test_values_longer_than_a_piece_of_the_file(tmp_path):
    rows = [{"text": "é" * size} for size in (1, 700_000, 10, 1_500_000, 3)]
    for content in (json.dumps(rows, ensure_ascii=False), json.dumps(rows)):
        assert read(written(tmp_path / "a.json", content)) == [row["text"] for row in rows]


def test_numbers_among_texts_are_as_they_are_written(tmp_path):
    path = written(tmp_path / "a.jsonl", '{"text": "a"}\n{"text": 12}\n{"text": 1e5}\n{"text": 0.10}\n{"text": true}\n')
    assert read(path) == ["a", "12", "1e5", "0.10", "true"]
    assert read(written(tmp_path / "a.json", '["a", 1.50, null]')) == ["a", "1.50", None]
    path = written(tmp_path / "b.jsonl", '{"text": ' + "9" * 5000 + '}\n{"text": "a"}\n')
    assert read(path) == ["9" * 5000, "a"]


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
    assert texts.note == ("" if delimiter == usual else f"columns separated by {readers.SEPARATORS[delimiter]}")


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


@pytest.mark.parametrize(("name", "line"), [("a.txt", "A dog."), ("a.jsonl", '{"text": "A dog."}')])
def test_files_that_were_appended_to_others(tmp_path, name, line):
    assert read(written(tmp_path / name, f"\ufeff{line}\n\ufeff{line}\r\n{line}")) == ["A dog."] * 3


def test_quotes_of_tabs_may_be_text(tmp_path):
    note = "quotes read as part of the text"
    for rows in (['"Go!" he said', "A dog."], ['"A dog', 'barks"'], ['"', "A dog."]):
        texts = load(written(tmp_path / "a.tsv", "text\tn\n" + "".join(f"{row}\t1\n" for row in rows)))
        assert (texts.rows["text"][:], texts.note) == (rows, note)
    rows = ['"Go!"', "two\nlines"]
    texts = load(written(tmp_path / "a.tsv", separated([["text", "n"], *([row, "1"] for row in rows)], "\t")))
    assert (texts.rows["text"][:], texts.note) == (rows, "")


def test_long_fields_and_rows(tmp_path):
    rows = ["x" * 300_000, "A dog.", "y, " * 100_000]
    assert read(written(tmp_path / "a.csv", separated([["text"], *([row] for row in rows)]))) == rows


# What is refused.


def refused(path: Path, *columns: str) -> str:
    with pytest.raises(UserError) as caught:
        load(path, *columns)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"text": "a"}\n{"text": {"a": 1}}\n', "line 2: column text holds an object, not text"),
        ("a.jsonl", '{"text": "a", "text": "b"}\n', "line 1: has the key text more than once"),
        ("a.json", '[{"text": "a"}, {"text": "a", "text": "b"}]', "row 2: has the key text more than once"),
        ("a.json", '{"text": ["a"], "text": ["b"]}', "row 1: has the key text more than once"),
        ("a.jsonl", '{"text": 1}\n{"text": false}\n', "column text holds numbers (line 1), not text"),
        ("a.jsonl", '{"text": "a"} {"text": "b"}\n', "line 1: is not a JSON object"),
        ("a.json", '[{"text": "a"}, {"text": "b"}', "row 3: the list is not closed"),
        ("a.json", '[{"text": "a"} {"text": "b"}]', "row 2: a comma is missing"),
        ("a.json", '[{"text": "a"},]', "row 2: Expecting value"),
        ("a.json", '[{"text": "a"}] []', "row 2: more follows"),
        ("a.json", '["a", {"text": "b"}]', "should hold an object a line, or a list of objects or of texts"),
        ("a.json", '{"text": {"en": "a", "de": "b"}}', "row 1: column text holds an object, not text"),
        ("a.json", '{"text": ["a"]}\n{"text": ["b"]}', "should hold an object a line"),
        ("a.json", '{"text": ["a", ["b"]]}', "row 2: column text holds a list, not text"),
        ("a.csv", "text,n,text\na,1,b\n", "has 2 columns with the name text; rename the others"),
        (
            "a.csv",
            "text;n\na;1\nb; c;2\n",
            "line 3: has 3 fields where the header has 2; quote sentences that hold semi",
        ),
        ("a.csv", "text,n\na,1\nb\n", "line 3: has 1 of 2 fields; write empty ones too"),
        ("a.csv", 'text,n\na,1\n"b\nc,2\nd,3\n', "line 3: is not CSV: unexpected end of data"),
        ("a.tsv", "text\tn\n", "holds no sentence"),
        ("a.csv", "text,n\na\0,1\n", "line 2: holds a NUL byte"),
        ("a.csv", "text,n\na,1\n".encode("utf-16"), "line 1: is not UTF-8, but UTF-16"),
        ("a.txt", b"a\n\xe9\n", "line 2: is not UTF-8"),
        ("a.jsonl.gz", b'{"text": "\xe9"}\n', "line 1: is not UTF-8"),
    ],
)
def test_bad_files(tmp_path, name, content, message):
    assert message in refused(written(tmp_path / name, content))


def test_bad_columns_of_parquet(tmp_path):
    columns = {"text": pa.array([["a"]]), "blob": pa.array([b"a"]), "n": pa.array([1])}
    table = pa.table([*columns.values(), pa.array(["a"]), pa.array(["b"])], [*columns, "twice", "twice"])
    pq.write_table(table, tmp_path / "a.parquet")
    assert "column text holds list<" in refused(tmp_path / "a.parquet")
    assert "column blob holds binary, not text" in refused(tmp_path / "a.parquet", "blob")
    assert "column n holds int64, not text" in refused(tmp_path / "a.parquet", "n")
    assert "has 2 columns with the name twice" in refused(tmp_path / "a.parquet", "twice")
