import gzip
import hashlib
import json
import multiprocessing
import os
import shutil
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distvae.config.schema import DataConfig
from distvae.data import captions, corpus, preparation, sources
from distvae.data.vocabulary import Vocabulary
from distvae.system.errors import UserError
from tests.conftest import PATIENCE
from tests.data.corpora import error_of, prepare, sentences, write_folder

# Captions.


def test_captions(tmp_path):
    prepared = prepare(tmp_path, train_size=50, valid_size=20, test_size=30, seed=7)
    assert [len(prepared.train), len(prepared.valid), len(prepared.test)] == [50, 20, 30]
    assert prepared.vocabulary == Vocabulary.closed(captions.words())
    for i, (split, size) in enumerate({"train": 50, "valid": 20, "test": 30}.items()):
        assert sentences(prepared, split) == [" ".join(tokens) for tokens in captions.generate(size, (7, i))]
    assert prepared.unknown == dict.fromkeys(("train", "valid", "test"))
    assert prepared.notes == ()


def test_captions_have_their_factors_as_labels(tmp_path):
    prepared = prepare(tmp_path, train_size=50, valid_size=20, test_size=30, seed=7)
    for i, (split, size) in enumerate({"train": 50, "valid": 20, "test": 30}.items()):
        rows = zip(*(prepared.labels[split][name] for name in captions.Factors._fields), strict=True)
        assert list(rows) == [tuple(factors) for _, factors in captions.draw(size, (7, i))]


def test_captions_of_an_older_version_get_their_labels(tmp_path):
    sizes = {"train_size": 50, "valid_size": 20, "test_size": 30}
    prepared = prepare(tmp_path, **sizes)
    folder = tmp_path / "cache" / prepared.fingerprint
    manifest = json.loads((folder / "manifest.json").read_text())
    shutil.rmtree(folder / "labels")
    del manifest["labels"], manifest["sha256"]
    manifest["files"] = {name: found for name, found in manifest["files"].items() if not name.startswith("labels")}
    (folder / "manifest.json").write_text(json.dumps(manifest | {"sha256": corpus._sha256(manifest)}))
    with pytest.raises(UserError, match="an older version built it, without labels"):
        corpus.load(folder)
    again = prepare(tmp_path, **sizes)
    assert again.fingerprint == prepared.fingerprint
    assert sentences(again, "test") == sentences(prepared, "test")
    assert again.labels["test"].to_dict() == prepared.labels["test"].to_dict()


def test_captions_by_default(tmp_path):
    prepared = prepare(tmp_path)
    assert [len(prepared.train), len(prepared.valid), len(prepared.test)] == [40_000, 4_000, 4_000]
    assert prepared.fingerprint == prepare(tmp_path, train_size=40_000).fingerprint
    assert prepared.fingerprint != prepare(tmp_path, valid_size=10).fingerprint


def test_another_grammar_is_another_corpus(tmp_path, monkeypatch):
    sizes = {"train_size": 3, "valid_size": 3, "test_size": 3}
    before = prepare(tmp_path, **sizes)
    monkeypatch.setattr(captions, "GRAMMAR", "another")
    assert prepare(tmp_path, **sizes).fingerprint != before.fingerprint


def test_the_grammar_that_has_this_name_says_this():
    """If this fails, the grammar has changed: give ``captions.GRAMMAR`` another value, and then update the digest."""
    drawn = captions.generate(2000, seed=0)
    said = "".join(f"{' '.join(tokens)} {captions.log_probability(tokens):.9f}\n" for tokens in drawn)
    digest = hashlib.sha256(f"{captions.GRAMMAR}\n{said}".encode()).hexdigest()
    assert digest == "af6de890b57abf93b0745b20c25c3ac27a2c55db3581a7e63c94f1a29101fbac"


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


# The cache.


def test_prepared_once(tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "text", train="a dog\n\na cat\n")
    first = prepare(tmp_path, path=folder)
    monkeypatch.setattr(preparation, "tokens_of", None)
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
        with pytest.raises(UserError, match="is damaged .*; delete it, and the next training will rebuild it"):
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
    assert "cannot be read: No such file" in message if change == "is deleted" else "while it was being read" in message


def test_another_process_is_faster(tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "text")
    words, nested = preparation.tokens_of, []

    def overtaken(*arguments):
        monkeypatch.setattr(preparation, "tokens_of", words)
        nested.append(prepare(tmp_path, path=folder))
        return words(*arguments)

    monkeypatch.setattr(preparation, "tokens_of", overtaken)
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
    assert folders.get(timeout=PATIENCE) == folders.get(timeout=PATIENCE)
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


# Without a time, which would be part of the test's name, and differ between the workers.
CUT_GZIP = gzip.compress(b"a dog\n" * 999, mtime=0)[:-9]


@pytest.mark.parametrize(
    ("name", "content", "settings", "message"),
    [
        ("a.txt", b"", {}, "a.txt: contains no sentences"),
        ("a.txt", b"\n \n", {}, "a.txt: contains no sentences"),
        (
            "a.txt",
            b"a b c\n\n",
            {"max_words": 2},
            "no sentences: 1 empty line, 1 sentence of more than 2 words left out",
        ),
        (
            "a.txt",
            b"a dog\na cat\n",
            {},
            "a.txt: 2 sentences cannot be split into train, valid and test; add sentences, or",
        ),
        ("a.txt", b"a\n" * 9, {"valid_size": 5, "test_size": 4}, "9 sentences cannot be split into train, 5 for valid"),
        ("a.txt", b"a dog\n", {"columns": ("story",)}, "a.txt: has no column story, only text; set data.columns="),
        ("a.txt", b"a dog\na \xff cat\n", {}, "a.txt, line 2: is not UTF-8"),
        ("a.txt", "a dog\n".encode("utf-16"), {}, "a.txt: is UTF-16, not UTF-8"),
        ("a.txt.gz", b"a dog\n", {}, "a.txt.gz: cannot be unzipped: Not a gzipped file"),
        ("a.txt.gz", CUT_GZIP, {}, "a.txt.gz: cannot be unzipped: Compressed file ended"),
        ("a.jsonl", b"", {}, "a.jsonl: contains no sentences"),
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', {}, "a.jsonl, line 2: is not a JSON object"),
        ("a.jsonl", b'"a"\n', {}, "a.jsonl, line 1: is not a JSON object"),
        ("a.jsonl", b'{"text": "a \xff"}\n', {}, "a.jsonl, line 1: is not UTF-8"),
        ("a.jsonl", b'{"b": 1, "c": 2}\n', {}, "a.jsonl: has no column text, only b, c; set data.columns="),
        ("a.jsonl", b'{"text": 1}\n', {}, "a.jsonl: column text holds numbers (line 1), not text"),
        ("a.jsonl", b'{"text": ["a"]}\n', {}, "a.jsonl, line 1: column text holds a list, not text"),
        (
            "a.jsonl",
            b'{"text": "\\ud800"}\n',
            {},
            "a.jsonl: column text contains half of a surrogate pair, which is no character: '\\ud800'",
        ),
        ("a.json", b"{", {}, "a.json: cannot be read as json"),
        ("a.csv", b"text,b\n", {}, "a.csv: contains no sentences"),
        ("a.csv", b"text\nHello, world\n", {}, "a.csv, line 2: has 2 fields where the header has 1; quote"),
        ("a.csv", b'text\n"Hello\n', {}, "a.csv, line 2: is not CSV: unexpected end of data"),
        ("a.csv", b"\n", {}, "a.csv: contains no sentences"),
        ("a.csv", b"one,two\n1,2\n", {}, "a.csv: has no column text, only one, two"),
        ("a.parquet", b"PAR1", {}, "a.parquet: is not Parquet: ArrowInvalid"),
    ],
)
def test_bad_file(tmp_path, name, content, settings, message):
    (tmp_path / name).write_bytes(content)
    assert message in error_of(tmp_path, path=str(tmp_path / name), **settings)


def test_empty_parquet(tmp_path):
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "a.parquet")
    assert "a.parquet: contains no sentences" in error_of(tmp_path, path=str(tmp_path / "a.parquet"))
