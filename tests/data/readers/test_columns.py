import pyarrow as pa
import pytest
from datasets import Dataset

from distvae.data.readers import columns
from distvae.data.readers.columns import Column, Number, Wanted, find_column, no_column, read_columns
from distvae.system.errors import UserError


@pytest.mark.parametrize(("rows", "characters"), [(2, 1 << 24), (10_000, 3)])
def test_rows_are_written_in_batches(tmp_path, monkeypatch, rows, characters):
    monkeypatch.setattr(columns, "BATCH", rows)
    monkeypatch.setattr(columns, "BATCH_CHARACTERS", characters)
    column = Column("text", "a.txt", tmp_path / "a.arrow")
    texts = ["a", None, "bcd", "", "efghi"]
    for text in texts:
        column.add(text)
    column.extend(["jk", "l"])
    column.finish()
    read = Dataset.from_file(str(tmp_path / "a.arrow"))
    assert read["text"][:] == [*texts, "jk", "l"]
    assert column.rows == len(read) == 7
    assert read.data.column("text").num_chunks > 1


def test_half_of_a_surrogate_pair_is_an_error(tmp_path):
    column = Column("text", "a.json", tmp_path / "a.arrow")
    column.add("a \ud83d")
    with pytest.raises(UserError, match=r"half of a surrogate pair.*\\ud83d"):
        column.finish()
    column.close()


def test_a_repeated_column_is_read_once(tmp_path):
    def fill(wanted: list[Column]) -> str:
        for column in wanted:
            column.add(column.name)
        return "a note"

    texts = read_columns("train", "a.csv", Wanted(("b", "a", "b")), tmp_path, fill)
    assert texts.rows["text"][:] == ["b", "a", "b"]
    assert texts.note == "a note"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train-0.arrow", "train-1.arrow"]


@pytest.fixture
def column(tmp_path):
    """A column b of a.csv."""
    made = Column("b", "a.csv", tmp_path / "b.arrow")
    yield made
    made.close()


def test_a_column_is_found_by_its_name(column):
    assert find_column(["a", "b"], column, "a.csv") == 1
    with pytest.raises(UserError, match=r"a\.csv: has no column b, only a, c; set data.columns="):
        find_column(["a", "c"], column, "a.csv")


def test_a_missing_column_lists_a_few_names(column):
    assert "c19 … (30 in total)" in str(no_column("a.csv", column, [f"c{i}" for i in range(30)]))
    assert str(no_column("a.csv", column, [])) == "a.csv: contains no sentences"


def test_labels_may_be_numbers_and_have_no_space_around_them(tmp_path):
    column = Column("label", "a.jsonl", tmp_path / "a.arrow", "label")
    for value in (" good\t", Number("12"), True, None, "  "):
        column.add_json(value, "line 1")
    column.add_arrow(pa.array([1, None]))
    column.names = ["no", "yes"]
    column.add_arrow(pa.array([1, -1, None, 0]))
    column.names = None
    column.add_arrow(pa.array([0.5, float("nan"), 1.0]))
    read = ["good", "12", "true", None, None, "1", None, "yes", None, None, "no", "0.5", None, "1"]
    column.finish()
    assert Dataset.from_file(str(tmp_path / "a.arrow"))["text"][:] == read


def test_a_column_of_sentences_is_no_column_of_labels(tmp_path):
    with pytest.raises(UserError, match="data.label=a: is a column of sentences"):
        read_columns("train", "a.csv", Wanted(("a",), ("a",)), tmp_path, lambda columns: "")
    with pytest.raises(UserError, match="data.label: names a column twice: b, b"):
        read_columns("train", "a.csv", Wanted(("a",), ("b", "b")), tmp_path, lambda columns: "")


def test_columns_have_a_value_for_each_row(tmp_path):
    def fill(wanted: list[Column]) -> str:
        wanted[0].add("a")
        return ""

    with pytest.raises(UserError, match=r"a\.json: columns differ in their numbers of rows: 1 of a, 0 of b; write"):
        read_columns("train", "a.json", Wanted(("a",), ("b",)), tmp_path, fill)
