import datasets
import numpy as np
import pytest

from distvae.config.schema import DataConfig
from distvae.data import preparation
from distvae.data.look import _histogram, look
from tests.data.corpora import write_folder

TRAIN = "greet\thello there\nask\twho are you ?\ngreet\tGreet them for me\nask\twhy\n"


@pytest.fixture
def found(tmp_path):
    """Return a look at text with everything that is worth a warning."""
    long = " ".join(["word"] * 150)
    lines = TRAIN + f"ask\t{long}\nask\twhy\nask\twhy\n"
    folder = write_folder(tmp_path / "text", train=lines, valid="ask\twhy\nask\tnot there\n", test="ask\twhere\n")
    data = DataConfig(path=folder, cache=str(tmp_path / "cache"), label="name", min_count=1, workers=1)
    return look(data, progress=False)


def test_the_counts(found):
    train = found.splits["train"]
    assert (train.sentences, train.tokens, train.median, train.longest, train.unknown) == (7, 163, 2, 150, 0.0)
    assert found.splits["valid"].unknown == pytest.approx(1 / 3)
    assert sum(count for _, _, count in found.lengths) == 7
    assert found.labels == {"name": [("ask", 5), ("greet", 2)]}
    assert (found.tokenizer, found.unit) == ("words", "word")
    assert len(found.examples) == 5
    assert all(text == tokens for text, tokens in found.examples if "?" not in text)


def test_what_will_hurt_is_said(found):
    unknown, long, repeated, shared = found.warnings
    assert unknown.startswith("unknown words: 0.00% of train, 33.33% of valid, 100.00% of test.")
    assert long.startswith("train: the longest sentence has 150 tokens, and the median 2: its batch needs")
    assert repeated == "train: 28.6% of the sentences are repetitions; data.distinct=true keeps each once"
    assert shared.startswith("valid: 50.0% of the sentences are in train, too")


def test_a_corpus_in_shards(tmp_path, monkeypatch, capfd):
    lines = "".join(f"w{i % 5} w{i % 3}{' x' * (i % 4)}\n" for i in range(300))
    folder = write_folder(tmp_path / "text", train=lines, valid="w1 w1\n", test="w2 w2 x\n")
    given = {"path": folder, "cache": str(tmp_path / "cache"), "workers": 1}
    whole, found = (look(DataConfig(**given, **more), progress=False) for more in ({}, {"shard_size": 8}))
    assert (found.splits, found.lengths, found.vocabulary_size) == (whole.splits, whole.lengths, whole.vocabulary_size)
    assert found.examples == whole.examples
    assert found.notes[-1].startswith("train: is in shards, so it is not searched for repetitions")
    assert "stand for all" not in capfd.readouterr().err
    monkeypatch.setattr("distvae.data.sentences.SAMPLED", 100)
    found = look(DataConfig(**given, shard_size=8), progress=False)
    assert (found.splits["train"].sentences, found.splits["train"].tokens) == (300, whole.splits["train"].tokens)
    assert sum(count for _, _, count in found.lengths) == 100
    assert capfd.readouterr().err == "train: 100 of its 300 sentences, at equal distances, stand for all\n"


def test_what_datasets_logs_is_not_printed(tmp_path, monkeypatch):
    seen, choose = [], preparation.choose

    def watch(*given):
        seen.append(datasets.logging.get_verbosity())
        return choose(*given)

    monkeypatch.setattr(preparation, "choose", watch)
    look(DataConfig(path=write_folder(tmp_path / "text"), cache=str(tmp_path / "cache"), workers=1), progress=False)
    assert seen == [datasets.logging.CRITICAL] * 2
    assert datasets.logging.get_verbosity() < datasets.logging.CRITICAL


def test_labels_that_are_in_the_text(tmp_path):
    lines = "".join(f"{label}\tplease {label} it\nother\tit\n" for label in ("play", "stop", "go"))
    folder = write_folder(tmp_path / "text", train=lines, valid="play\ta\n", test="play\tb\n")
    data = DataConfig(path=folder, cache=str(tmp_path / "cache"), label="kind", min_count=1, workers=1)
    (warning,) = (w for w in look(data, progress=False).warnings if "data.label" in w)
    assert warning.startswith("data.label=kind: 50% of the sentences contain their own label as a word")


def test_captions_need_no_files_and_no_warnings(tmp_path):
    data = DataConfig(cache=str(tmp_path), train_size=50, valid_size=9, test_size=9)
    found = look(data, progress=False)
    assert (found.warnings, found.splits["train"].sentences, found.splits["test"].unknown) == ([], 50, None)
    assert all(text.replace(",", " ,").replace(".", " .") == tokens for text, tokens in found.examples)


@pytest.mark.parametrize("lengths", [[1], [3, 3, 3], range(1, 30), [1] * 99 + [500], [7, 9, 12, 200]])
def test_the_bars_hold_every_sentence_once(lengths):
    bars = _histogram(np.array(lengths))
    assert sum(count for _, _, count in bars) == len(lengths)
    assert bars[0][0] == min(lengths)
    assert all(low <= high for low, high, _ in bars)
    assert [low for low, _, _ in bars][1:] == [high + 1 for _, high, _ in bars][:-1]
    for low, high, count in bars:
        assert count == sum(low <= length <= high for length in lengths)
