import pytest
from datasets import Dataset

from distvae.data.readers import read as read_module
from distvae.data.readers.columns import Wanted
from distvae.data.readers.read import BINARY, READERS, read_dataset, read_files
from distvae.system.errors import UserError
from tests.data.readers.files import read, separated, written


def test_long_fields_and_rows(tmp_path):
    rows = ["x" * 300_000, "A dog.", "y, " * 100_000]
    assert read(written(tmp_path / "a.csv", separated([["text"], *([row] for row in rows)]))) == rows


@pytest.mark.parametrize("suffix", sorted(READERS.keys() - set(BINARY)))
def test_the_suffix_chooses_the_reader(tmp_path, suffix):
    content = {".txt": "A dog.\n", ".json": '["A dog."]', ".jsonl": '{"text": "A dog."}\n'}
    path = written(tmp_path / f"a{suffix}", content.get(suffix, "text\nA dog.\n"))
    assert read_files([path], "a", Wanted(("text",)), tmp_path, 1).rows["text"][:] == ["A dog."]


def test_several_processes_read_several_files(tmp_path, monkeypatch):
    monkeypatch.setattr(read_module, "BYTES_PER_PROCESS", 8)
    contents = {
        "a.csv": "text,kind\nA dog.,x\nA cat.,\n",
        "b.csv": "text;kind\nA bird.;y\n",
        "c.jsonl": '{"text": null}\n',
    }
    paths = [written(tmp_path / name, content) for name, content in contents.items()]
    wanted = Wanted(("text",), ("kind",))
    with pytest.raises(UserError, match=r"c\.jsonl: has no column kind"):
        read_files(paths, "a", wanted, tmp_path, 3)
    written(paths[2], '{"text": null, "kind": 1}\n')
    one, three = (read_files(paths, "a", wanted, tmp_path, workers) for workers in (1, 3))
    assert three.rows["text"][:] == one.rows["text"][:] == ["A dog.", "A cat.", "A bird.", None]
    assert three.labels["kind"][:] == one.labels["kind"][:] == ["x", None, "y", "1"]
    assert three.note == one.note == "columns separated by semicolons"


def test_columns_of_a_dataset_are_concatenated(tmp_path):
    rows = Dataset.from_dict({"a": ["1", None], "n": [1, 2], "b": ["3", "4"]})
    texts = read_dataset(rows, "the hub", "train", Wanted(("b", "a", "b")), tmp_path)
    assert texts.rows["text"][:] == ["3", "4", "1", None, "3", "4"]
    with pytest.raises(UserError, match="the hub: column n holds int64, not text"):
        read_dataset(rows, "the hub", "train", Wanted(("n",)), tmp_path)
