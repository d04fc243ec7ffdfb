import pytest

from distvae.data.readers import columns
from distvae.data.readers.columns import Column, find_column, no_column, read_columns, reason
from distvae.system.errors import UserError


@pytest.mark.parametrize(("rows", "characters"), [(2, 1 << 24), (10_000, 3)])
def test_rows_are_written_in_batches(tmp_path, monkeypatch, rows, characters):
    monkeypatch.setattr(columns, "BATCH", rows)
    monkeypatch.setattr(columns, "BATCH_CHARACTERS", characters)
    column = Column("text", "a.txt", tmp_path / "a.arrow")
    texts = ["a", None, "bcd", "", "efghi"]
    for text in texts:
        column.add(text)
    read = column.finish()
    assert read["text"][:] == texts
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

    texts = read_columns("train", "a.csv", ["b", "a", "b"], tmp_path, fill)
    assert texts.rows["text"][:] == ["b", "a", "b"]
    assert texts.note == "a note"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train-0.arrow", "train-1.arrow"]


def test_a_column_is_found_by_its_name():
    assert find_column(["a", "b"], "b", "a.csv") == 1
    with pytest.raises(UserError, match=r"a\.csv: has no column c, only a, b"):
        find_column(["a", "b"], "c", "a.csv")


def test_a_missing_column_lists_a_few_names():
    assert "c19 … (30 in total)" in str(no_column("a.csv", "x", [f"c{i}" for i in range(30)]))
    assert str(no_column("a.csv", "x", [])) == "a.csv: contains no sentences"


def test_the_reason_is_the_first_line_of_the_root_cause():
    error = OSError("outer")
    error.__cause__ = ValueError("inner\nmore")
    assert reason(error) == "ValueError: inner"
