import gzip
import json
import multiprocessing
import os
import random
import re
import shutil
import tempfile
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from distvae.config.schema import CAPTIONS, DataConfig
from distvae.data import captions, corpus, sources
from distvae.data.readers import columns
from distvae.data.vocabulary import Vocabulary
from distvae.system.errors import UserError

# Pairs in the form of SNLI's own files, of our own writing.
PAIRS = [
    ("Two cooks peel potatoes beside a window.", "The cooks are busy."),
    ("Two cooks peel potatoes beside a window.", "Nobody is near the window."),
    ("A violinist naps on a night train to Oslo with her shoes off and a scarf over her eyes.", "She is asleep."),
    ("A violinist naps on a night train to Oslo with her shoes off and a scarf over her eyes.", "   "),
]


def prepare(tmp_path, **settings):
    if settings.get("path", CAPTIONS) != CAPTIONS:
        settings = {"min_count": 1} | settings
    data = DataConfig(cache=str(tmp_path / "cache"), workers=1, **settings)
    return corpus.load(corpus.prepare(data, progress=False))


def sentences(prepared, split):
    rows = getattr(prepared, split)
    return [" ".join(prepared.vocabulary.decode(rows[i])) for i in range(len(rows))]


def write_folder(folder, suffix=".txt", **splits):
    folder.mkdir(exist_ok=True)
    for split in ("train", "valid", "test"):
        (folder / f"{split}{suffix}").write_text(splits.get(split, "a dog\na cat\n"), encoding="utf-8")
    return str(folder)


def snli_lines(pairs):
    label = {"gold_label": "-", "annotator_labels": ["neutral", "entailment"]}
    return "".join(json.dumps({**label, "sentence1": p, "sentence2": h}) + "\n" for p, h in pairs)


def error_of(tmp_path, **settings):
    """The message of the UserError, once it is known that it is one line and that nothing stays behind."""
    with pytest.raises(UserError) as caught:
        prepare(tmp_path, **settings)
    cache = tmp_path / "cache"
    assert not cache.exists() or not list(cache.iterdir())
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Captions.


def test_captions(tmp_path):
    prepared = prepare(tmp_path, train_size=50, valid_size=20, test_size=30, seed=7)
    assert [len(prepared.train), len(prepared.valid), len(prepared.test)] == [50, 20, 30]
    assert prepared.vocabulary == Vocabulary.closed(captions.words())
    for i, (split, size) in enumerate({"train": 50, "valid": 20, "test": 30}.items()):
        assert sentences(prepared, split) == [" ".join(tokens) for tokens in captions.generate(size, (7, i))]
    assert prepared.unknown == dict.fromkeys(("train", "valid", "test"))
    assert prepared.notes == ()


def test_captions_by_default(tmp_path):
    prepared = prepare(tmp_path)
    assert [len(prepared.train), len(prepared.valid), len(prepared.test)] == [40_000, 4_000, 4_000]
    assert prepared.fingerprint == prepare(tmp_path, train_size=40_000).fingerprint
    assert prepared.fingerprint != prepare(tmp_path, valid_size=10).fingerprint


def test_another_grammar_is_another_corpus(tmp_path, monkeypatch):
    sizes = {"train_size": 3, "valid_size": 3, "test_size": 3}
    before = prepare(tmp_path, **sizes)
    changed = tmp_path / "captions.py"
    changed.write_text(Path(captions.__file__).read_text(encoding="utf-8") + "\n# Changed.\n", encoding="utf-8")
    monkeypatch.setattr(captions, "__file__", str(changed))
    assert prepare(tmp_path, **sizes).fingerprint != before.fingerprint


# Sentences.


@hypothesis_settings(max_examples=30, deadline=None)
@given(rows=st.lists(st.lists(st.integers(0, 2**31 - 1), max_size=6), min_size=1, max_size=40), size=st.integers(1, 50))
def test_sentences_are_the_rows_of_memory_mapped_arrow(tmp_path_factory, rows, size):
    folder = tmp_path_factory.mktemp("arrow")
    features = datasets.Features({"ids": datasets.List(datasets.Value("int32"))})
    dataset = datasets.Dataset.from_dict({"ids": rows}, features=features)
    dataset.map(lambda batch: batch, batched=True, batch_size=size, writer_batch_size=size).save_to_disk(folder)
    before = pa.total_allocated_bytes()
    sentences = corpus.Sentences(datasets.Dataset.load_from_disk(folder))
    assert [sentences[i].tolist() for i in range(len(sentences))] == rows
    assert sentences.lengths.tolist() == [len(row) for row in rows]
    assert (sentences[0].dtype, sentences.lengths.dtype) == (np.int32, np.int32)
    assert not sentences[0].flags.writeable
    assert pa.total_allocated_bytes() - before < 4096
    for outside in (-1, len(rows)):
        with pytest.raises(IndexError):
            sentences[outside]


WORDS = st.lists(st.lists(st.sampled_from(["a", "dog", "</s>", "<unk-lower>", "Oslo", "12", "é"]), max_size=6))


@hypothesis_settings(max_examples=60, deadline=None)
@given(rows=WORDS.filter(bool), start=st.integers(0, 3))
def test_batches_are_encoded_as_single_sentences_are(rows, start):
    vocabulary = Vocabulary.build({"a": 3, "dog": 1}, 1, "classes")
    words = pa.array(rows, pa.list_(pa.string())).slice(start)
    encoded = corpus._encode_batch(pa.table({"words": words}), vocabulary).column("ids")
    assert encoded.to_pylist() == [vocabulary.encode(row) for row in rows[start:]]
    assert encoded.type == pa.list_(pa.int32())


# Files.


def test_folder_of_text(tmp_path):
    folder = write_folder(
        tmp_path / "text",
        train="A dog runs.\n\n  A dog runs.\t\n one two three four \nA cat isn't here.\r\n   \nA dog runs.",
        valid="\ufeffA bird sings.",
        test="A dog sleeps.\nA dog sleeps.\n",
    )
    prepared = prepare(tmp_path, path=folder, max_words=3, distinct=True)
    assert sentences(prepared, "train") == ["A dog runs ."]
    assert sentences(prepared, "valid") == ["A <unk-lower> <unk-lower> ."]
    assert sentences(prepared, "test") == ["A dog <unk-lower> ."]
    assert prepared.notes[:-1] == (
        "train: 2 empty lines, 2 sentences of more than 3 words, 2 repeated sentences left out",
        "test: 1 repeated sentence left out",
    )
    assert prepared.train.lengths.tolist() == [6]
    everything = prepare(tmp_path, path=folder)
    assert sentences(everything, "train") == [
        "A dog runs .",
        "A dog runs .",
        "one two three four",
        "A cat is n't here .",
        "A dog runs .",
    ]


@pytest.mark.parametrize(
    "suffix", [".jsonl", ".json", ".csv", ".parquet", ".txt.gz", ".jsonl.gz", ".JSON.gz", ".csv.gz"]
)
def test_kinds_of_files(tmp_path, suffix):
    # "None", "NA" and "12" are words, and a sentence may hold commas, quotes and line breaks.
    rows = ["None", "NA", "12", 'He said "go", and\nwent', "Élan"]
    if suffix.startswith(".txt"):
        rows[3] = 'He said "go", and went'
    folder = tmp_path / "folder [of] *"
    folder.mkdir()
    for split in ("train", "valid", "test"):
        path = folder / f"{split}{suffix}"
        if suffix == ".parquet":
            pq.write_table(pa.table({"n": range(5), "text": rows}), path)
            continue
        if suffix == ".json":
            content = json.dumps([{"text": row} for row in rows], indent=1)
        elif "json" in suffix.lower():
            content = "".join(json.dumps({"n": [1], "text": row}) + "\n" for row in rows)
        elif "csv" in suffix:
            content = "n,text\n" + "".join('{},"{}"\n'.format(n, row.replace('"', '""')) for n, row in enumerate(rows))
        else:
            content = "\n".join(rows)
        content = content.encode()
        path.write_bytes(gzip.compress(content) if suffix.endswith(".gz") else content)
    prepared = prepare(tmp_path, path=str(folder))
    for split in ("train", "valid", "test"):
        assert sentences(prepared, split) == ["None", "NA", "12", "He said `` go '' , and went", "Élan"]


def test_snli_folder(tmp_path):
    folder = tmp_path / "snli_1.0"
    folder.mkdir()
    for name in ("train", "dev", "test"):
        (folder / f"snli_1.0_{name}.jsonl").write_text(snli_lines(PAIRS), encoding="utf-8")
        (folder / f"snli_1.0_{name}.txt").write_text("gold_label\tsentence1\n", encoding="utf-8")
        (folder / f"._snli_1.0_{name}.jsonl").write_bytes(b"\x00")
    (folder / "README.txt").write_text("Read me.", encoding="utf-8")
    prepared = prepare(
        tmp_path, path=str(folder), columns=("sentence1", "sentence2"), max_words=12, distinct=True, train_size=100
    )
    expected = ["Two cooks peel potatoes beside a window .", "The cooks are busy .", "Nobody is near the window ."]
    for split in ("train", "valid", "test"):
        assert sentences(prepared, split) == [*expected, "She is asleep ."]
    left_out = "1 empty line, 2 sentences of more than 12 words, 1 repeated sentence left out"
    shortage = "train: 4 sentences, fewer than the 100 asked for"
    assert prepared.notes[:-1] == (f"train: {left_out}", f"valid: {left_out}", f"test: {left_out}", shortage)


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
    splits = [sentences(prepare(tmp_path, path=str(path), distinct=True, unk="single"), s) for s in corpus.SPLITS]
    assert [len(split) for split in splits] == [80, 10, 10]
    assert prepared.notes[:-1] == ("file: 1 empty line, 7 repeated sentences left out",)
    data = DataConfig(path=str(path), distinct=True)
    whole = columns.Texts(None, str(path))
    cut = corpus._split_rows(np.arange(100), data, whole)
    assert sorted(np.concatenate(list(cut.values())).tolist()) == list(range(100))
    assert sentences(prepared, "train") == [rows[i] for i in cut["train"]]
    other = corpus._split_rows(np.arange(100), DataConfig(path=str(path), seed=1), whole)
    assert other["valid"].tolist() != cut["valid"].tolist()
    sized = prepare(tmp_path, path=str(path), distinct=True, valid_size=30, test_size=20, train_size=60)
    assert [len(sized.train), len(sized.valid), len(sized.test)] == [50, 30, 20]
    assert sized.notes[1] == "train: 50 sentences, fewer than the 60 asked for"


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
    monkeypatch.setattr(corpus, "SENTENCES_PER_WORKER", 10)
    data = DataConfig(path=folder, workers=2, min_count=1, cache=str(tmp_path / "other"))
    two = corpus.load(corpus.prepare(data, progress=False))
    assert sentences(one, "train") == sentences(two, "train")
    assert one.fingerprint == two.fingerprint


# Unknown words.


@pytest.mark.parametrize("unk", ["classes", "single"])
def test_the_share_of_unknown_words_is_counted(tmp_path, unk):
    lines = {"train": "a dog\na dog barks\n", "valid": "a cat 12\n", "test": "a dog\n\na\na <unk> </s>\n"}
    prepared = prepare(tmp_path, path=write_folder(tmp_path / "text", **lines), min_count=2, unk=unk)
    # NLTK's rules take <unk> and </s> apart into three tokens each.
    assert prepared.unknown == {"train": 1 / 5, "valid": 2 / 3, "test": 6 / 10}
    assert prepared.notes[-1].startswith(
        "WARNING: unknown words: 20.00% of train, 66.67% of valid, 60.00% of test. A model"
    )
    assert "Lower data.min_count" in prepared.notes[-1]


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
        assert "separate words by spaces" in prepared.notes[-1]


# The hub.


def hub(monkeypatch, load_dataset, is_there=True):
    def dataset_info(self, repo, revision, timeout):
        if not is_there:
            raise ConnectionError("Name or service not known\nmore")

    monkeypatch.setattr(sources.HfApi, "dataset_info", dataset_info)
    monkeypatch.setattr(sources.datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(sources, "is_offline_mode", lambda: False)


def hub_snli(path, revision):
    assert path == "stanfordnlp/snli"
    assert re.fullmatch("[0-9a-f]{40}", revision)
    features = datasets.Features(
        {
            "premise": datasets.Value("string"),
            "hypothesis": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["entailment", "neutral", "contradiction"]),
        }
    )
    rows = {"premise": [p for p, _ in PAIRS], "hypothesis": [h for _, h in PAIRS], "label": [0, 2, 1, -1]}
    names = ("test", "train", "validation")
    return datasets.DatasetDict({name: datasets.Dataset.from_dict(rows, features=features) for name in names})


def test_hub(tmp_path, monkeypatch):
    hub(monkeypatch, hub_snli)
    prepared = prepare(tmp_path, path="stanfordnlp/snli", distinct=True, max_words=12, valid_size=2)
    expected = ["Two cooks peel potatoes beside a window .", "The cooks are busy ."]
    expected += ["Nobody is near the window .", "She is asleep ."]
    assert sentences(prepared, "train") == sentences(prepared, "test") == expected
    assert len(prepared.valid) == 2
    hypotheses = prepare(tmp_path, path="stanfordnlp/snli", columns=("hypothesis",))
    assert sentences(hypotheses, "train") == expected[1:]
    assert hypotheses.notes[:-1] == tuple(f"{split}: 1 empty line left out" for split in corpus.SPLITS)


def test_prepared_hub_corpus_needs_no_network(tmp_path, monkeypatch):
    hub(monkeypatch, hub_snli)
    before = prepare(tmp_path, path="stanfordnlp/snli")
    hub(monkeypatch, None, is_there=False)
    assert prepare(tmp_path, path="stanfordnlp/snli").fingerprint == before.fingerprint


def test_no_network(tmp_path, monkeypatch):
    hub(monkeypatch, None, is_there=False)
    message = error_of(tmp_path, path="stanfordnlp/snli")
    assert "(ConnectionError: Name or service not known)" in message
    assert "data.path=FOLDER data.columns=[sentence1,sentence2]" in message


def test_hub_column(tmp_path, monkeypatch):
    hub(monkeypatch, hub_snli)
    message = error_of(tmp_path, path="stanfordnlp/snli", columns=("text",))
    assert "snli, train: has no column text, but premise, hypothesis, label" in message
    assert "column label holds int64, not text" in error_of(tmp_path, path="stanfordnlp/snli", columns=("label",))


# The cache.


def test_prepared_once(tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "text", train="a dog\n\na cat\n")
    first = prepare(tmp_path, path=folder)
    monkeypatch.setattr(corpus, "_words", None)
    for path in (folder, write_folder(tmp_path / "moved", train="a dog\n\na cat\n")):
        again = prepare(tmp_path, path=path)
        assert again.fingerprint == first.fingerprint
        assert again.notes == first.notes
        assert again.notes[0] == "train: 1 empty line left out"
        assert again.unknown == first.unknown
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [first.fingerprint]
    assert {path.name for path in (tmp_path / "cache" / first.fingerprint).iterdir()} == {
        *corpus.SPLITS,
        "vocabulary.json",
        "manifest.json",
    }


def test_what_a_killed_process_had_begun_to_build_is_swept_away_after_a_while(tmp_path):
    long_ago, lately, other = (
        tmp_path / "cache" / name for name in (".0123456789abcdef-x1_y", ".0123456789abcdef-z", ".a-b")
    )
    for folder in (long_ago, lately, other):
        folder.mkdir(parents=True)
        (folder / "half").touch()
    for folder in (long_ago, other):
        os.utime(folder, (0, 0))
    prepare(tmp_path, train_size=5, valid_size=2, test_size=2)
    assert [folder.exists() for folder in (long_ago, lately, other)] == [False, True, True]


def test_what_another_process_finishes_meanwhile_is_no_fault(tmp_path, monkeypatch):
    """It has its folder, made for building, renamed after that was listed."""
    real = Path.glob
    monkeypatch.setattr(Path, "glob", lambda path, pattern: [path / ".0123456789abcdef-gone", *real(path, pattern)])
    prepare(tmp_path, train_size=5, valid_size=2, test_size=2)


def test_what_changes_the_content_changes_the_fingerprint(tmp_path):
    folder = write_folder(tmp_path / "text")
    changes = ({}, {"max_words": 9}, {"train_size": 1}, {"distinct": True}, {"min_count": 2}, {"unk": "single"})
    fingerprints = {prepare(tmp_path, path=folder, **change).fingerprint for change in changes}
    write_folder(tmp_path / "text", test="a dog\n")
    fingerprints.add(prepare(tmp_path, path=folder).fingerprint)
    assert len(fingerprints) == len(changes) + 1


def flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


def swapped(content: bytes, one: bytes, other: bytes) -> bytes:
    return content.replace(one, b"\0").replace(other, one).replace(b"\0", other)


def replace_in(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_damaged_folders_are_built_again(tmp_path):
    folder = write_folder(tmp_path / "text")
    first = prepare(tmp_path, path=folder)
    built = tmp_path / "cache" / first.fingerprint
    arrow = next((built / "valid").glob("*.arrow"))
    tokens = (built / "vocabulary.json").read_bytes()
    damages = (
        lambda: arrow.write_bytes(arrow.read_bytes()[:-9]),
        # As long as before: an id or an offset, two words, a note.
        lambda: arrow.write_bytes(flipped(arrow.read_bytes(), arrow.stat().st_size // 2)),
        lambda: (built / "vocabulary.json").write_bytes(swapped(tokens, b'"dog"', b'"cat"')),
        lambda: replace_in(built / "manifest.json", "0.00% of valid", "0.01% of valid"),
        lambda: replace_in(built / "manifest.json", '"valid', '"train'),
        lambda: (built / "manifest.json").write_bytes(b"[]"),
        lambda: (built / "manifest.json").unlink(),
        lambda: (built / "manifest.json").write_text("{", encoding="utf-8"),
        lambda: (built / "vocabulary.json").unlink(),
    )
    for damage in damages:
        damage()
        with pytest.raises(UserError, match="is damaged .*; delete it, and the next training builds it again"):
            corpus.load(built)
        assert sentences(prepare(tmp_path, path=folder), "valid") == ["a dog", "a cat"]
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [first.fingerprint]


def test_a_corpus_under_another_name_is_damaged(tmp_path):
    folder = write_folder(tmp_path / "text")
    first, other = (tmp_path / "cache" / prepare(tmp_path, path=folder, min_count=n).fingerprint for n in (1, 2))
    shutil.rmtree(other)
    first.rename(other)
    with pytest.raises(UserError, match="is damaged"):
        corpus.load(other)
    assert len(prepare(tmp_path, path=folder, min_count=2).vocabulary) < len(prepare(tmp_path, path=folder).vocabulary)


@pytest.mark.parametrize("change", ["grows", "is replaced", "is replaced, and put back", "is deleted"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_file_that_changes_while_it_is_read(tmp_path, monkeypatch, change, when):
    folder = Path(write_folder(tmp_path / "text", train="a dog\n" * 9))
    changes = {
        "grows": lambda: (folder / "train.txt").open("a").write("a bird\n"),
        "is replaced": lambda: (folder / "train.txt").write_text("a dot\n" * 9),
        "is deleted": lambda: (folder / "train.txt").unlink(),
    }
    changes["is replaced, and put back"] = changes["is replaced"]
    content = (folder / "train.txt").read_text()
    real = sources.load

    def load(*arguments):
        if when == "before":
            changes[change]()
        texts = real(*arguments)
        if when == "after":
            changes[change]()
        if change == "is replaced, and put back":
            (folder / "train.txt").write_text(content)
        return texts

    monkeypatch.setattr(sources, "load", load)
    message = error_of(tmp_path, path=str(folder))
    assert "cannot be read: No such file" in message if change == "is deleted" else "while it was read" in message


def test_another_process_is_faster(tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "text")
    words, nested = corpus._words, []

    def overtaken(*arguments):
        monkeypatch.setattr(corpus, "_words", words)
        nested.append(prepare(tmp_path, path=folder))
        return words(*arguments)

    monkeypatch.setattr(corpus, "_words", overtaken)
    slower = prepare(tmp_path, path=folder)
    assert sentences(nested[0], "train") == sentences(slower, "train") == ["a dog", "a cat"]
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [slower.fingerprint]


def prepare_once_all_are_there(data, barrier, folders):
    barrier.wait()
    folders.put(corpus.prepare(data, progress=False))


def test_two_processes_at_once(tmp_path):
    data = DataConfig(path=write_folder(tmp_path / "text"), cache=str(tmp_path / "cache"))
    context = multiprocessing.get_context("spawn")
    barrier, folders = context.Barrier(2), context.Queue()
    processes = [context.Process(target=prepare_once_all_are_there, args=(data, barrier, folders)) for _ in range(2)]
    for process in processes:
        process.start()
    assert folders.get(timeout=60) == folders.get(timeout=60)
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_progress_bars_only_if_asked_for(tmp_path, capfd):
    folder = write_folder(tmp_path / "text")
    prepare(tmp_path, path=folder)
    assert capfd.readouterr().err == ""
    assert not datasets.are_progress_bars_disabled()
    corpus.prepare(DataConfig(path=folder, cache=str(tmp_path / "other")), progress=True)
    assert "Tokenising train" in capfd.readouterr().err


# Bad input.


def test_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    data = DataConfig(path=write_folder(tmp_path / "text"), cache=str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError, match="data.cache=.*/file/cache: cannot be written: Not a directory"):
        corpus.prepare(data, progress=False)


@pytest.mark.parametrize("path", ["no/such", "someone/dataset", "~/no/such/folder"])
def test_missing_path(tmp_path, path):
    message = error_of(tmp_path, path=path)
    assert message.startswith(f"data.path={path}: there is no such file or folder")
    assert "captions" in message
    assert "stanfordnlp/snli" in message


def test_missing_and_ambiguous_splits(tmp_path):
    folder = Path(write_folder(tmp_path / "text"))
    (folder / "valid.txt").rename(folder / "rest.txt")
    assert "text: holds no file for valid, such as valid.txt" in error_of(tmp_path, path=str(folder))
    (folder / "rest.txt").rename(folder / "validation.txt")
    (folder / "my-dev-set.txt.gz").write_bytes(gzip.compress(b"a dog\n"))
    message = error_of(tmp_path, path=str(folder))
    assert "holds several files for valid: my-dev-set.txt.gz, validation.txt; leave one there" in message
    (folder / "my-dev-set.txt.gz").unlink()
    (folder / "test.txt").rename(folder / "test_of_train.txt")
    (folder / "train.txt").unlink()
    assert "test_of_train.txt: is it train or test?" in error_of(tmp_path, path=str(folder))


def test_unknown_kind_of_file(tmp_path):
    for name in ("sentences.doc", "sentences.parquet.gz", "sentences"):
        (tmp_path / name).write_text("a dog\n", encoding="utf-8")
        assert f"{name}: is of no kind that can be read (.txt, .jsonl" in error_of(tmp_path, path=str(tmp_path / name))


# Without a time, which would be part of the test's name, and differ between the workers.
CUT_GZIP = gzip.compress(b"a dog\n" * 999, mtime=0)[:-9]


@pytest.mark.parametrize(
    ("name", "content", "settings", "message"),
    [
        ("a.txt", b"", {}, "a.txt: holds no sentence"),
        ("a.txt", b"\n \n", {}, "a.txt: holds no sentence"),
        (
            "a.txt",
            b"a b c\n\n",
            {"max_words": 2},
            "no sentence: 1 empty line, 1 sentence of more than 2 words left out",
        ),
        ("a.txt", b"a dog\na cat\n", {}, "a.txt: 2 sentences cannot be cut into train, 0 for valid and 0 for test"),
        ("a.txt", b"a\n" * 9, {"valid_size": 5, "test_size": 4}, "9 sentences cannot be cut into train, 5 for valid"),
        ("a.txt", b"a dog\n", {"columns": ("story",)}, "a.txt: has no column story, but text; say by data.columns="),
        ("a.txt", b"a dog\na \xff cat\n", {}, "a.txt, line 2: is not UTF-8"),
        ("a.txt", "a dog\n".encode("utf-16"), {}, "a.txt, line 1: is not UTF-8"),
        ("a.txt.gz", b"a dog\n", {}, "a.txt.gz: cannot be unzipped: Not a gzipped file"),
        ("a.txt.gz", CUT_GZIP, {}, "a.txt.gz: cannot be unzipped: Compressed file ended"),
        ("a.jsonl", b"", {}, "a.jsonl: holds no sentence"),
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', {}, "a.jsonl, line 2: is not a JSON object"),
        ("a.jsonl", b'"a"\n', {}, "a.jsonl, line 1: is not a JSON object"),
        ("a.jsonl", b'{"text": "a \xff"}\n', {}, "a.jsonl, line 1: is not UTF-8"),
        ("a.jsonl", b'{"b": 1, "c": 2}\n', {}, "a.jsonl: has no column text, but b, c; say by data.columns="),
        ("a.jsonl", b'{"text": 1}\n', {}, "a.jsonl: column text holds numbers (line 1), not text"),
        ("a.jsonl", b'{"text": ["a"]}\n', {}, "a.jsonl, line 1: column text holds a list, not text"),
        (
            "a.jsonl",
            b'{"text": "\\ud800"}\n',
            {},
            "a.jsonl: column text holds half of a surrogate pair, which is no character: '\\ud800'",
        ),
        ("a.json", b"{", {}, "a.json: cannot be read as json"),
        ("a.csv", b"text,b\n", {}, "a.csv: holds no sentence"),
        ("a.csv", b"text\nHello, world\n", {}, "a.csv, line 2: has 2 fields where the header has 1; quote"),
        ("a.csv", b'text\n"Hello\n', {}, "a.csv, line 2: is not CSV: unexpected end of data"),
        ("a.csv", b"\n", {}, "a.csv: holds no sentence"),
        ("a.csv", b"one,two\n1,2\n", {}, "a.csv: has no column text, but one, two"),
        ("a.parquet", b"PAR1", {}, "a.parquet: is not Parquet: ArrowInvalid"),
    ],
)
def test_bad_file(tmp_path, name, content, settings, message):
    (tmp_path / name).write_bytes(content)
    assert message in error_of(tmp_path, path=str(tmp_path / name), **settings)


def test_empty_parquet(tmp_path):
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "a.parquet")
    assert "a.parquet: holds no sentence" in error_of(tmp_path, path=str(tmp_path / "a.parquet"))


def test_empty_split(tmp_path):
    folder = write_folder(tmp_path / "text", test="one two three\n")
    message = error_of(tmp_path, path=folder, max_words=2)
    assert message.endswith("test.txt: holds no sentence: 1 sentence of more than 2 words left out")


def test_a_temporary_folder_with_a_long_name_keeps_nobody_from_tokenising(tmp_path, monkeypatch):
    """Python's multiprocessing makes sockets there, whose paths have at most 107 bytes."""
    folder = tmp_path / ("é" * 40)
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setattr(corpus, "SENTENCES_PER_WORKER", 10)
    (tmp_path / "some.txt").write_text("".join(f"sentence {i} .\n" for i in range(60)), encoding="utf-8")
    data = DataConfig(path=str(tmp_path / "some.txt"), cache=str(tmp_path / "cache"), workers=2)
    assert len(corpus.load(corpus.prepare(data, progress=False)).train) == 48
    assert tempfile.gettempdir() == str(folder)
