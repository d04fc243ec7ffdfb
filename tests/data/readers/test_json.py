import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distvae.data.readers import json as reader
from tests.data.readers.files import ROWS, json_lines, read, refused, separated, written

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


def test_many_columns_take_no_time(tmp_path):
    names = ["text", *(f"c{i}" for i in range(20_000))]
    path = written(tmp_path / "a.csv", separated([names, *([row, *["1"] * 20_000] for row in ROWS)]))
    assert read(path) == ROWS
    message = refused(path, "no such")
    assert "c18 … (20,001 in total); set data.columns=[…] to those with sentences, or write the names" in message


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
        patch.setattr(reader, "PIECE", size)
        read = list(reader._values(path))
    assert [is_in for is_in, _ in read] == [in_list] * len(values)
    assert [as_text(value) for _, value in read] == [as_text(value, write=json.dumps) for value in values]


@pytest.mark.parametrize("number", ["0", "-0", "0.0", "1.25", "1e5", "1E+05", "-2.5e-3"])
@pytest.mark.parametrize("size", range(1, 9))
def test_a_number_may_lie_across_pieces(tmp_path, monkeypatch, number, size):
    monkeypatch.setattr(reader, "PIECE", size)
    path = tmp_path / "a.json"
    path.write_text(f'[{number},"a"]', encoding="utf-8")
    assert [as_text(value) for _, value in reader._values(path)] == [number, "a"]


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
    assert read(written(tmp_path / "a.json", '["a", 1.50, null, NaN, Infinity]')) == [
        "a",
        "1.50",
        None,
        None,
        "Infinity",
    ]
    path = written(tmp_path / "b.jsonl", '{"text": ' + "9" * 5000 + '}\n{"text": "a"}\n')
    assert read(path) == ["9" * 5000, "a"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"text": "a"}\n{"text": {"a": 1}}\n', "line 2: column text holds an object, not text"),
        ("a.jsonl", '{"text": "a", "text": "b"}\n', "line 1: has the key text more than once"),
        ("a.json", '[{"text": "a"}, {"text": "a", "text": "b"}]', "row 2: has the key text more than once"),
        ("a.json", '{"text": ["a"], "text": ["b"]}', "row 1: has the key text more than once"),
        ("a.jsonl", '{"text": 1}\n{"text": false}\n', "column text holds numbers (line 1), not text"),
        ("a.jsonl", '{"text": "a"} {"text": "b"}\n', "line 1: is not a JSON object (Extra data, at character 15); a"),
        ("a.jsonl", '{"text": "a",}\n', "line 1: is not a JSON object (Expecting property name"),
        (
            "a.jsonl",
            '[{"text": "a"}]\n',
            "is not a JSON object; a .jsonl file has one per line, and a .json file holds a",
        ),
        ("a.jsonl", '{"text": ' + "[" * 9**5, "line 1: is not a JSON object (it is nested too deeply); a"),
        ("a.json", '[{"text": "a"}, {"text": "b"}', "row 3: the list is not closed"),
        ("a.json", '[{"text": "a"} {"text": "b"}]', "row 2: a comma is missing"),
        ("a.json", '[{"text": "a"},]', "row 2: Expecting value"),
        ("a.json", '[{"text": "a"}] []', "row 2: unexpected text"),
        ("a.json", '["a", {"text": "b"}]', "should hold one object per line, or a list of objects or strings"),
        ("a.json", '{"text": {"en": "a", "de": "b"}}', "row 1: column text holds an object, not text"),
        ("a.json", '{"text": ["a"]}\n{"text": ["b"]}', "should hold one object per line"),
        ("a.json", '{"text": ["a", ["b"]]}', "row 2: column text holds a list, not text"),
    ],
)
def test_bad_files_are_refused(tmp_path, name, content, message):
    assert message in refused(written(tmp_path / name, content))
