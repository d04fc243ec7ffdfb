import random
import tempfile

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from distvae.config.schema import DataConfig
from distvae.data import corpus, encoding, preparation, splits
from distvae.data.vocabulary import Vocabulary
from tests.data.corpora import error_of, prepare, sentences, write_folder

WORDS = st.lists(st.lists(st.sampled_from(["a", "dog", "</s>", "<unk-lower>", "Oslo", "12", "é"]), max_size=6))


@hypothesis_settings(max_examples=60, deadline=None)
@given(rows=WORDS.filter(bool), start=st.integers(0, 3))
def test_batches_are_encoded_as_single_sentences_are(rows, start):
    vocabulary = Vocabulary.build({"a": 3, "dog": 1}, 1, "classes", "words")
    words = pa.array(rows, pa.list_(pa.string())).slice(start)
    encoded = encoding._encode_batch(pa.table({"words": words}), vocabulary).column("ids")
    assert encoded.to_pylist() == [vocabulary.encode(row) for row in rows[start:]]
    assert encoded.type == pa.list_(pa.int32())


@pytest.mark.parametrize("line", ["\u200b", "\ufeff\u2060 \u200d", "\u3164", "\x07", "\u2800\xad", "\U000e0041"])
def test_lines_without_anything_to_see_are_empty(tmp_path, line):
    folder = write_folder(tmp_path / "text", train=f"a dog\n{line}\n\u200b{line}a\u200b\n")
    prepared = prepare(tmp_path, path=folder)
    assert sentences(prepared, "train") == ["a dog", f"\u200b{line}a\u200b"]
    assert prepared.notes[0] == "train: 1 empty line left out"


def test_one_file_is_split(tmp_path):
    path = tmp_path / "all.txt"
    rows = [f"w{i}" for i in range(100)]
    path.write_text("\n".join([*rows, "", *rows[:7]]), encoding="utf-8")
    prepared = prepare(tmp_path, path=str(path), distinct=True)
    single = prepare(tmp_path, path=str(path), distinct=True, unk="single")
    assert [len(sentences(single, split)) for split in corpus.SPLITS] == [80, 10, 10]
    assert prepared.notes[:-1] == ("file: 1 empty line, 7 repeated sentences left out",)
    sizes = {"valid": 10, "test": 10}
    cut = splits.cut(np.arange(100), sizes, 0)
    assert sorted(np.concatenate(list(cut.values())).tolist()) == list(range(100))
    assert sentences(prepared, "train") == [rows[i] for i in cut["train"]]
    other = splits.cut(np.arange(100), sizes, 1)
    assert other["valid"].tolist() != cut["valid"].tolist()
    sized = prepare(tmp_path, path=str(path), distinct=True, valid_size=30, test_size=20, train_size=60)
    assert [len(sized.train), len(sized.valid), len(sized.test)] == [50, 30, 20]
    assert sized.notes[1] == "train: 50 sentences, fewer than the 60 requested"


def test_down_sample(tmp_path):
    rows = [f"w{i}" for i in range(200)]
    folder = write_folder(tmp_path / "text", train="\n".join(rows))
    sample = sentences(prepare(tmp_path, path=folder, train_size=50), "train")
    assert len(set(sample)) == 50
    assert sample == [row for row in rows if row in sample]
    assert sample == sentences(prepare(tmp_path / "again", path=folder, train_size=50), "train")
    assert sample != sentences(prepare(tmp_path, path=folder, train_size=50, seed=1), "train")


def test_tokenising_in_parallel_changes_nothing(tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "text", train="\n".join(f"A dog runs {i} times." for i in range(40)))
    one = prepare(tmp_path, path=folder)
    monkeypatch.setattr(encoding, "SENTENCES_PER_WORKER", 10)
    data = DataConfig(path=folder, workers=2, min_count=1, cache=str(tmp_path / "other"))
    two = corpus.load(corpus.prepare(data, progress=False))
    assert sentences(one, "train") == sentences(two, "train")
    assert one.fingerprint == two.fingerprint


# Unknown words.


@pytest.mark.parametrize("unk", ["classes", "single"])
def test_the_share_of_unknown_words_is_counted(tmp_path, unk):
    lines = {"train": "a dog\na dog barks\n", "valid": "a cat 12\n", "test": "a dog\n\na\na <unk> </s>\n"}
    prepared = prepare(tmp_path, path=write_folder(tmp_path / "text", **lines), min_count=2, unk=unk)
    assert prepared.unknown == {"train": 1 / 5, "valid": 2 / 3, "test": 2 / 6}
    assert prepared.notes[-1].startswith(
        "WARNING: unknown words: 20.00% of train, 66.67% of valid, 33.33% of test. A model"
    )
    assert "Try one of: lower data.min_count; add text; set data.tokenizer=bpe" in prepared.notes[-1]


@pytest.mark.parametrize("share", [0.05, 0.06])
def test_few_unknown_words_are_no_warning(tmp_path, share):
    known = int(round(100 * (1 - share)))
    folder = write_folder(tmp_path / "text", valid="a\n" * known + "b\n" * (100 - known))
    prepared = prepare(tmp_path, path=folder)
    assert prepared.unknown["valid"] == pytest.approx(share)
    shares = f"unknown words: 0.00% of train, {share:.2%} of valid, 0.00% of test"
    assert prepared.notes[-1].removeprefix("WARNING: ").startswith(shares)
    assert prepared.notes[-1].startswith("WARNING") == (share > 0.05)


def test_text_without_words_is_a_warning(tmp_path):
    noise = random.Random(0)
    chinese = ["".join(noise.choices("今天天气很好我们去公园散步吧", k=12)) for _ in range(60)]
    letters = ["".join(noise.choices("abcdefghijkl", k=9)) for _ in range(60)]
    for rows, min_count in ((chinese, 2), (letters, 2), (["a dog"] * 60, 100_000)):
        path = tmp_path / "all.txt"
        path.write_text("\n".join(rows), encoding="utf-8")
        prepared = prepare(tmp_path, path=str(path), min_count=min_count)
        assert prepared.unknown == {"train": 1.0, "valid": 1.0, "test": 1.0}
        assert "set data.tokenizer=characters for a script without spaces" in prepared.notes[-1]


def test_empty_split(tmp_path):
    folder = write_folder(tmp_path / "text", test="one two three\n")
    message = error_of(tmp_path, path=folder, max_words=2)
    assert message.endswith("test.txt: contains no sentences: 1 sentence of more than 2 words left out")


def test_a_temporary_folder_with_a_long_name_keeps_nobody_from_tokenising(tmp_path, monkeypatch):
    """Sockets, whose paths have at most 107 bytes, would find no room there."""
    folder = tmp_path / ("é" * 40)
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setattr(encoding, "SENTENCES_PER_WORKER", 10)
    (tmp_path / "some.txt").write_text("".join(f"sentence {i} .\n" for i in range(60)), encoding="utf-8")
    data = DataConfig(path=str(tmp_path / "some.txt"), cache=str(tmp_path / "cache"), workers=2)
    assert len(corpus.load(corpus.prepare(data, progress=False)).train) == 48
    assert tempfile.gettempdir() == str(folder)


@pytest.mark.parametrize(
    ("name", "count", "characters"),
    [("words", True, True), ("whitespace", True, False), ("characters", True, False), ("unigram", False, False)],
)
def test_what_to_try_against_unknown_words_is_for_the_tokenizer(name, count, characters):
    note = preparation.note_on_unknown({"train": 0.5}, name)
    assert ("data.min_count" in note, "data.tokenizer=characters" in note) == (count, characters)
