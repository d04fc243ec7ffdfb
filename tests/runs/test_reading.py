"""The sentences of a training, as commands on its model read them again."""

import itertools
import json
import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from distvae.config.load import ConfigError, parse_config
from distvae.config.schema import Config, DataConfig, OptimizerConfig
from distvae.data import corpus
from distvae.data.splits import SPLITS
from distvae.data.vocabulary import Vocabulary
from distvae.distributed.runtime import Runtime
from distvae.runs import reading
from distvae.runs.checkpoints import Export
from distvae.runs.reading import own_corpus, own_settings, own_text
from distvae.system.errors import UserError
from tests.data.corpora import write_folder

WORDS = random.Random(0).sample([*itertools.product("abcdefgh", "stuvwxyz")], 64)
# Every word is in any train, so that sentences can be told from their ids.
ROWS = [
    {"text": f"{one} {other}", "intent": "ask" if i % 5 else "tell", "n": i % 3, "author": f"a{i // 4}"}
    for i, (one, other) in enumerate(WORDS)
]
LABEL = {row["text"]: str(row["n"]) for row in ROWS}

RUNTIME = Runtime(OptimizerConfig(mixed_precision="no"))


def as_jsonl(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def trained(tmp_path, **data):
    """What a training with these settings of data would export, without its weights."""
    if "tokenizer" not in data:
        data["min_count"] = 1
    config = parse_config({"data": data | {"cache": str(tmp_path / "cache"), "workers": 1}}, "test")
    prepared = corpus.load(corpus.prepare(config.data, progress=False))
    return Export(tmp_path, {}, config, prepared.vocabulary), prepared


@pytest.fixture
def path(tmp_path):
    """A single file."""
    (tmp_path / "all.jsonl").write_text(as_jsonl(ROWS))
    return str(tmp_path / "all.jsonl")


@pytest.fixture
def tokenizer(tmp_path, path):
    """A ``tokenizer.json`` that gives every split the same vocabulary."""
    found, _ = trained(tmp_path, path=path, tokenizer="bpe", vocabulary_size=280)
    (tmp_path / "tokenizer.json").write_text(found.vocabulary.definition)
    return {"tokenizer": "pretrained", "tokenizer_file": str(tmp_path / "tokenizer.json")}


def check_labels(found, prepared, overrides):
    """Read with a column of labels; check that these are those of the file, beside the sentences of the training."""
    text = own_text("run", found, own_settings(found, overrides), RUNTIME)
    assert text.fingerprint == prepared.fingerprint
    for split in SPLITS:
        part, own = text.parts[split], getattr(prepared, split)
        assert len(part.sentences) == len(own) > 1
        assert all(map(np.array_equal, part.sentences, own))
        expected = [LABEL[found.vocabulary.text(ids)] for ids in own]
        assert part.label_names == ["n"]
        assert list(part.labels["n"]) == expected
        assert len({*expected}) > 1


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"label": "intent"},
        {"label": ["intent", "n"]},
        {"group": "author"},
        {"distinct": True, "disjoint": True, "max_words": 5, "seed": 3},
        {"train_size": 30, "valid_size": 9, "test_size": 11},
    ],
)
def test_labels_come_to_the_splits_that_the_training_cut(tmp_path, path, settings):
    found, prepared = trained(tmp_path, path=path, **settings)
    check_labels(found, prepared, ["data.label=n"])


@pytest.mark.parametrize("settings", [{}, {"label": "intent"}])
def test_the_vocabulary_of_a_pretrained_tokenizer_does_not_hide_another_cut(tmp_path, path, tokenizer, settings):
    found, prepared = trained(tmp_path, path=path, **tokenizer, **settings)
    check_labels(found, prepared, ["data.label=n"])


def test_labels_of_a_folder_with_splits(tmp_path, tokenizer):
    parts = {"train": ROWS[:40], "valid": ROWS[40:50], "test": ROWS[50:]}
    folder = write_folder(tmp_path / "f", ".jsonl", **{split: as_jsonl(rows) for split, rows in parts.items()})
    check_labels(*trained(tmp_path, path=folder), ["data.label=n"])
    check_labels(*trained(tmp_path, path=folder, **tokenizer), ["data.label=n"])


def test_labels_that_the_training_kept_can_be_left_out(tmp_path, path):
    found, prepared = trained(tmp_path, path=path, label="intent")
    text = own_text("run", found, own_settings(found, ["data.label=null"]), RUNTIME)
    assert all(part.labels is None for part in text.parts.values())
    assert all(map(np.array_equal, text.parts["test"].sentences, prepared.test))


def test_the_corpus_is_that_of_the_training_whichever_labels_are_asked_for(tmp_path, path):
    found, prepared = trained(tmp_path, path=path)
    assert own_corpus("run", found, own_settings(found, ["data.label=n"]), RUNTIME).fingerprint == prepared.fingerprint


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("data.seed=5", "seed"),
        ("data.train_size=20", "train_size"),
        ("data.min_count=2", "min_count"),
        ("data.distinct=true", "distinct"),
        ("data.group=author", "group"),
        ("data.columns=[intent]", "columns"),
        ("data.tokenizer=whitespace", "tokenizer"),
        ("data.split=[test,valid,train]", "split"),
    ],
)
def test_settings_that_would_choose_other_sentences_are_refused_by_name(tmp_path, path, override, key):
    found, _ = trained(tmp_path, path=path)
    with pytest.raises(ConfigError, match=f"^data.{key}: would choose other sentences or splits than those of the"):
        own_settings(found, ["data.label=n", override])


def test_settings_of_the_place_and_those_of_the_training_are_taken(tmp_path, path):
    found, prepared = trained(tmp_path, path=path, seed=4)
    moved = tmp_path / "moved.jsonl"
    moved.write_text(as_jsonl(ROWS))
    overrides = [f"data.path={moved}", f"data.cache={tmp_path / 'other'}", "data.workers=2", "data.seed=4"]
    check_labels(found, prepared, [*overrides, "data.label=n"])
    assert own_settings(found, ["data.path=some/set", "data.subset=small", "data.split=[a,b,c]"]).subset == "small"


def test_a_text_file_whose_lines_would_be_read_in_another_way(tmp_path, tokenizer):
    lines = "".join(f"{row['intent']}\t{row['text']}\n" for row in ROWS)
    folder = write_folder(tmp_path / "text", **dict.fromkeys(SPLITS, lines))
    found, _ = trained(tmp_path, path=folder, **tokenizer)
    message = "^data.label=intent: cannot be read beside the sentences that run was trained on: a line of a text file"
    with pytest.raises(UserError, match=message):
        own_text("run", found, own_settings(found, ["data.label=intent"]), RUNTIME)


def test_shards_that_were_sampled_in_another_way(tmp_path):
    folder = write_folder(tmp_path / "f", ".jsonl", **dict.fromkeys(SPLITS, as_jsonl(ROWS * 3)))
    found, prepared = trained(tmp_path, path=folder, shard_size=8)
    assert len(prepared.train) > 16 * 8
    check_labels(found, prepared, ["data.label=n"])
    found, _ = trained(tmp_path, path=folder, shard_size=8, train_size=100)
    with pytest.raises(UserError, match="data.label=n: cannot be read .*: data.shard_size cut and sampled them"):
        own_text("run", found, own_settings(found, ["data.label=n"]), RUNTIME)


def test_another_vocabulary_is_of_other_sentences(tmp_path, path):
    found, _ = trained(tmp_path, path=path)
    other = replace(found, vocabulary=Vocabulary.closed(["a", "b"]))
    with pytest.raises(UserError, match="run: its vocabulary .* is not that of .*: it was trained on other sentences"):
        own_text("run", other, own_settings(other, ["data.label=n"]), RUNTIME)


# -- Where they are ----------------------------------------------------------------------------------------------------


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
