"""Text for a trained model is encoded with the model's vocabulary, and only blank lines are left out."""

import json

import pytest

from distvae.config.schema import DataConfig
from distvae.data import new_text
from distvae.data.vocabulary import Vocabulary
from distvae.system.errors import UserError
from tests.data.corpora import prepare, write_folder

VOCABULARY = Vocabulary.build({"a": 9, "dog": 8, "cat": 7}, 1, "classes", "words")


def read(path, tmp_path, vocabulary=VOCABULARY, **settings):
    folder = tmp_path / "folder"
    folder.mkdir(exist_ok=True)
    data = DataConfig(path=str(path), cache=str(tmp_path / "cache"), workers=1, **settings)
    new_text.prepare(data, vocabulary, folder, progress=False)
    return new_text.load(folder, vocabulary)


def decoded(part):
    return [" ".join(VOCABULARY.decode(ids)) for ids in part.sentences]


def test_a_file_is_one_part(tmp_path):
    (tmp_path / "rows.txt").write_text("  a dog\n\n a Fish \n", encoding="utf-8")
    found = read(tmp_path / "rows.txt", tmp_path)
    part = found.parts[new_text.ALL]
    assert list(found.parts) == ["all"]
    assert decoded(part) == ["a dog", "a <unk-initCap>"]
    assert part.shown(slice(0, 9), VOCABULARY) == ["a dog", "a Fish"]
    assert part.sentences.characters.tolist() == [6, 7]
    assert part.unknown == 1 / 4
    assert part.labels is None
    assert found.notes == ("all: 1 empty line left out",)


def test_splits_and_labels_stay_beside_the_sentences(tmp_path):
    rows = {"train": ["a dog", ""], "valid": ["a cat"], "test": ["cat", "dog"]}
    lines = {
        split: "".join(json.dumps({"text": text, "kind": text[-3:] or "none"}) + "\n" for text in texts)
        for split, texts in rows.items()
    }
    found = read(write_folder(tmp_path / "rows", ".jsonl", **lines), tmp_path, label="kind")
    assert {split: decoded(part) for split, part in found.parts.items()} == {
        "train": ["a dog"], "valid": ["a cat"], "test": ["cat", "dog"],
    }  # fmt: skip
    assert {split: part.labels["kind"][:] for split, part in found.parts.items()} == {
        "train": ["dog"], "valid": ["cat"], "test": ["cat", "dog"],
    }  # fmt: skip


def test_the_fingerprint_is_that_of_the_content(tmp_path):
    names = []
    for text in ("a dog\n", "a cat\n", "a dog\n"):
        (tmp_path / "rows.txt").write_text(text, encoding="utf-8")
        names.append(read(tmp_path / "rows.txt", tmp_path).fingerprint)
    assert names[0] == names[2] != names[1]


def test_models_by_the_treebank_rules_have_characters_too(tmp_path):
    (tmp_path / "rows.txt").write_text("a dog.\n", encoding="utf-8")
    old = Vocabulary.build({"a": 9, "dog": 8, ".": 7}, 1, "classes", "treebank")
    part = read(tmp_path / "rows.txt", tmp_path, old).parts["all"]
    assert part.sentences.characters.tolist() == [7]
    assert [old.decode(ids) for ids in part.sentences] == [["a", "dog", "."]]


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        ("\n \n", {}, "rows.txt: contains no sentences"),
        ("a dog\n", {"distinct": True}, "data.distinct: does not apply to text for a trained model; leave it out"),
        ("a dog\n", {"train_size": 3}, "data.train_size: does not apply"),
        ("a dog\n", {"tokenizer": "characters"}, "data.tokenizer: does not apply"),
        ("a dog\n", {"revision": "main"}, "data.revision: is for datasets of the hub"),
    ],
)
def test_bad_input_is_one_line(tmp_path, text, settings, message):
    (tmp_path / "rows.txt").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        read(tmp_path / "rows.txt", tmp_path, **settings)


def test_captions_are_no_text_to_read(tmp_path):
    with pytest.raises(UserError, match="captions: are drawn, not read"):
        read("captions", tmp_path)


def test_the_splits_of_a_corpus_are_parts_without_texts(tmp_path):
    lines = {"train": "x\ta dog\ny\ta cat\nx\ta Fish\n", "valid": "x\ta dog\n", "test": "y\ta cat\n"}
    prepared = prepare(tmp_path, path=write_folder(tmp_path / "rows", **lines), label="kind", min_count=1)
    parts = new_text.of_corpus(prepared)
    assert parts["train"].shown(slice(0, 2), prepared.vocabulary) == ["a dog", "a cat"]
    assert parts["train"].labels["kind"][:] == ["x", "y", "x"]
    assert list(parts) == ["train", "valid", "test"]
