"""Datasets that a program passes are stored once, under the name of their content."""

import pytest
from datasets import Dataset, DatasetDict

from distvae.config.schema import DataConfig
from distvae.data.objects import store
from distvae.system.errors import UserError
from tests.data.corpora import prepare, sentences

ROWS = [f"a {animal}" for animal in ("dog", "cat", "cow", "hen", "fox", "owl", "bat", "ant", "bee", "elk")]


def stored(rows, tmp_path, **settings):
    return store(rows, DataConfig(path="rows", cache=str(tmp_path / "cache"), **settings))


def test_the_same_rows_have_the_same_name(tmp_path):
    one = stored(Dataset.from_dict({"text": ROWS}), tmp_path)
    assert stored(Dataset.from_dict({"number": range(10), "text": ROWS}), tmp_path) == one
    shuffled = [stored(Dataset.from_dict({"text": ROWS}).shuffle(seed=seed), tmp_path) for seed in (1, 1, 2)]
    assert shuffled[0] == shuffled[1]
    assert len({one, *shuffled}) == len(list((tmp_path / "cache").iterdir())) == 3


def test_the_rows_are_a_corpus(tmp_path):
    splits = DatasetDict(train=Dataset.from_dict({"text": ROWS}), test=Dataset.from_dict({"text": ROWS[:2]}))
    prepared = prepare(tmp_path, path=str(stored(splits, tmp_path)), valid_size=1)
    assert sentences(prepared, "test") == ROWS[:2]
    assert len(prepared.train) == 9


def test_other_objects_are_refused(tmp_path):
    iterable = Dataset.from_dict({"text": ROWS}).to_iterable_dataset()
    for rows in (iterable, {"text": ROWS}, 3):
        with pytest.raises(UserError, match=rf"data.path: is {type(rows).__name__}; pass a path"):
            stored(rows, tmp_path)
    assert not (tmp_path / "cache").exists()
