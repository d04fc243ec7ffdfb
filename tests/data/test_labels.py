"""Labels, and how they and groups split a single file."""

import json

import numpy as np
import pytest

from distvae.config.schema import DataConfig
from distvae.data import corpus
from distvae.system.errors import UserError
from tests.data.corpora import error_of, prepare, sentences, write_folder


def as_jsonl(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


ROWS = [
    {"text": f"dog {i}", "intent": "ask" if i % 4 else "tell", "n": i % 4, "author": f"a{i // 5}"} for i in range(60)
]


def test_labels_stand_beside_their_sentences(tmp_path):
    folder = write_folder(tmp_path / "f", ".jsonl", **dict.fromkeys(corpus.SPLITS, as_jsonl(ROWS)))
    whole = prepare(tmp_path, path=folder, label=("intent", "n"))
    assert sentences(whole, "train") == [row["text"] for row in ROWS]
    assert whole.labels["train"].to_dict() == {
        "intent": [row["intent"] for row in ROWS], "n": [str(row["n"]) for row in ROWS],
    }  # fmt: skip
    manifest = json.loads((tmp_path / "cache" / whole.fingerprint / "manifest.json").read_text())
    assert manifest["labels"] == {"intent": ["ask", "tell"], "n": ["0", "1", "2", "3"]}


def test_a_corpus_without_labels_has_none(tmp_path):
    prepared = prepare(tmp_path, path=write_folder(tmp_path / "text"))
    assert prepared.labels == {}
    assert not (tmp_path / "cache" / prepared.fingerprint / "labels").exists()


def test_a_single_file_is_stratified(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(as_jsonl(ROWS))
    prepared = prepare(tmp_path, path=str(path), label="intent", valid_size=8, test_size=20)
    assert [prepared.labels[split]["intent"][:].count("tell") for split in corpus.SPLITS] == [8, 2, 5]


def test_labels_that_are_read_later_do_not_cut_the_splits(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(as_jsonl(ROWS))
    for label in (None, "intent"):
        data = DataConfig(path=str(path), cache=str(tmp_path / "cache"), workers=1, min_count=1, label=label)
        own = corpus.load(corpus.prepare(data, progress=False))
        later = corpus.load(corpus.prepare(data, progress=False, labels=("n",)))
        assert later.fingerprint != own.fingerprint
        for split in corpus.SPLITS:
            assert all(map(np.array_equal, getattr(later, split), getattr(own, split)))
            assert later.labels[split].column_names == ["n"]
        numbers = [int(sentence.split()[1]) for sentence in sentences(later, "train")]
        assert later.labels["train"]["n"][:] == [str(number % 4) for number in numbers]
        assert corpus.prepare(data, progress=False, labels=data.labels).name == own.fingerprint


def test_pooled_columns_share_their_label(tmp_path):
    train, rest = "a,b,label\na dog,a cat,x\na bird,a fish,\n", "a,b,label\n1 a,2,y\n"
    path = write_folder(tmp_path / "f", ".csv", train=train, valid=rest, test=rest)
    prepared = prepare(tmp_path, path=path, columns=("a", "b"), label="label")
    assert sentences(prepared, "train") == ["a dog", "a bird", "a cat", "a fish"]
    assert prepared.labels["train"]["label"][:] == ["x", None, "x", None]
    assert prepared.notes[0] == "train: 2 sentences without a label in column label"


def test_lines_of_label_and_text(tmp_path):
    text = "good\ta dog\n\nbad \ta cat\twith a tab\n"
    path = write_folder(tmp_path / "text", train=text, valid=text, test=text)
    prepared = prepare(tmp_path, path=path, label="mood")
    assert sentences(prepared, "train") == ["a dog", "a cat with a tab"]
    assert prepared.labels["train"]["mood"][:] == ["good", "bad"]
    (tmp_path / "text" / "valid.txt").write_text("good\ta dog\na cat\n")
    message = error_of(tmp_path / "other", path=path, label="mood")
    assert "valid.txt, line 2: has no tab; with data.label=mood, a line" in message


@pytest.mark.parametrize(
    ("row", "settings", "message"),
    [
        (
            {"text": "a", "label": [1]},
            {"label": "label"},
            "column label holds a list, not labels; set data.label",
        ),
        (
            {"text": "a"},
            {"label": "label"},
            "has no column label, only text; set data.label to one",
        ),
        ({"text": "a"}, {"group": "author"}, "has no column author, only text; set data.group to one with groups"),
        ({"text": "a"}, {"label": "text"}, "data.label=text: is a column of sentences; name another"),
    ],
)
def test_columns_without_labels(tmp_path, row, settings, message):
    (tmp_path / "a.jsonl").write_text(as_jsonl([row]))
    assert message in error_of(tmp_path, path=str(tmp_path / "a.jsonl"), **settings)


def test_groups_stay_together(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(as_jsonl(ROWS))
    prepared = prepare(tmp_path, path=str(path), label="author", group="author", valid_size=11, test_size=10)
    authors = [set(prepared.labels[split]["author"]) for split in corpus.SPLITS]
    assert [len(found) for found in authors] == [8, 2, 2]
    assert len(set.union(*authors)) == 12
    assert prepared.notes[0] == "valid: 10 sentences in whole groups, of at most 11"
    message = error_of(tmp_path / "a", path=str(path), group="author", valid_size=2)
    assert "the groups of data.group=author are too large to leave one for valid" in message
    folder = write_folder(tmp_path / "f", ".jsonl", **dict.fromkeys(corpus.SPLITS, as_jsonl(ROWS)))
    assert "has splits already, so none is cut by groups" in error_of(tmp_path / "a", path=folder, group="author")


def test_no_sentence_in_two_splits(tmp_path):
    folder = write_folder(
        tmp_path / "text", train="a dog\na cat \na bird\n", valid="a cat\na fish\n", test="a fish\n a bird"
    )
    prepared = prepare(tmp_path, path=folder, disjoint=True)
    assert [len(getattr(prepared, split)) for split in corpus.SPLITS] == [1, 1, 2]
    assert sentences(prepared, "train") == ["a dog"]
    assert prepared.notes[:2] == (
        "train: 2 sentences left out: in another split",
        "valid: 1 sentence left out: in another split",
    )
    with pytest.raises(UserError, match="data.disjoint leaves no sentence of train"):
        prepare(tmp_path, path=write_folder(tmp_path / "same"), disjoint=True)
