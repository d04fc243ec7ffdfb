"""Where the sentences of a trained model are."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from distvae.config.schema import Config, DataConfig
from distvae.runs import reading
from distvae.system.errors import UserError

TRAINED = DataConfig(path="rows.jsonl", columns=("title",))


def own(path):
    return reading.own_settings(SimpleNamespace(config=Config(run="a", data=TRAINED), folder=Path("a/best")), path=path)


def test_sentences_that_were_moved_are_read_as_before():
    assert own("elsewhere.jsonl") == DataConfig(path="elsewhere.jsonl", columns=("title",))
    assert own(None) == own("rows.jsonl") == TRAINED


@pytest.mark.parametrize(
    ("path", "message"), [("captions", "--data captions: columns: not for data.path=captions"), ("", "--data : path")]
)
def test_a_path_that_the_settings_are_not_for_is_one_line(path, message):
    with pytest.raises(UserError, match=f"^{message}"):
        own(path)


def test_a_label_that_a_source_cannot_have_is_one_line():
    with pytest.raises(UserError, match="^--label a: "):
        reading.with_labels(DataConfig(), ["a"])
    assert reading.with_labels(TRAINED, ["a"]).labels == ("a",)


def test_the_files_of_a_source_are_those_that_are_read(tmp_path):
    for name in ("train.txt", "valid.txt", "test.txt", "notes.md"):
        (tmp_path / name).touch()
    train, valid, test = (tmp_path / f"{split}.txt" for split in ("train", "valid", "test"))
    assert reading.files_of(DataConfig(path=str(tmp_path))) == [train, valid, test]
    assert reading.files_of(DataConfig(path=f"{tmp_path}/t*.txt")) == [train, test]
    for none in ("-", "captions", f"{tmp_path}/nowhere"):
        assert reading.files_of(DataConfig(path=none)) == []
